"""What most integration tests are given: an open database, a broker that is declared, and the HTTP API."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from order_service.storage.database import Database
from tests.http_service import Eventually, Service, ServiceWith, application
from tests.integration import core


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with core.opened(database_url) as database:
        yield database


@pytest.fixture
def wire(amqp_url: str) -> core.Wire:
    wire = core.Wire(amqp_url)
    wire.declare()
    return wire


@pytest.fixture
def service_with(database_url: str, eventually: Eventually) -> Iterator[ServiceWith]:
    """`service_with(waiters=3)` is the API on this test's database with these settings."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(contextlib.closing(Service(database_url, eventually, **settings)))


@pytest.fixture
def service(service_with: ServiceWith) -> Service:
    return service_with()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[FlaskClient]:
    """The API on a database that cannot be opened: what it answers without 503, it answers without the database."""
    unusable = tmp_path / "unusable.db"
    unusable.mkdir()
    with application(f"sqlite:///{unusable}", wait_seconds=0) as app:
        yield app.test_client()
