"""What most integration tests receive: a database, a broker with the topology, running processes, the HTTP API."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika.data
import pytest
import structlog
from flask.testing import FlaskClient

from order_service import vendor
from order_service.storage.database import Database
from publishers import deadlines
from publishers.relay import Relay
from sandbox.issuer import Issuer
from tests.http_service import Eventually, Service, ServiceWith, application
from tests.integration import core
from tests.integration.old_menu import OldMenu
from tests.integration.stand_in import StandIn
from tests.tokens import ISSUER, Published, published


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
def own_logging() -> Iterator[None]:
    """The lines of the log are no part of the output of commands."""
    structlog.reset_defaults()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    yield
    structlog.reset_defaults()


@pytest.fixture
def service_with(database_url: str, eventually: Eventually) -> Iterator[ServiceWith]:
    """`service_with(waiters=3)` is the API on this test's database with these settings."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(contextlib.closing(Service(database_url, eventually, **settings)))


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(ISSUER)


@pytest.fixture
def keys(issuer: Issuer) -> Iterator[Published]:
    with published(issuer) as keys:
        yield keys


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


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with contextlib.closing(StandIn()) as stand_in:
        yield stand_in


@pytest.fixture
def menu() -> Iterator[OldMenu]:
    menu = OldMenu()
    menu.start()
    yield menu
    menu.stop()


@pytest.fixture
def consuming(amqp_url: str, database: Database) -> core.Start:
    """`with consuming():` consumes for the length of the block."""
    return lambda **more: core.running(core.worker(core.settings(amqp_url, database.url, **more), database))


@pytest.fixture
def relaying(amqp_url: str, database: Database) -> core.Start:
    """`with relaying():` relays for the length of the block."""
    settings = core.settings(amqp_url, database.url)
    return lambda: core.running(lambda stop: Relay(settings, database, stop))


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> core.Start:
    """`with passing(database):` passes deadlines for the length of the block, with short pauses."""
    monkeypatch.setattr(deadlines, "TICK_SECONDS", 0.02)

    def run(database: Database, **more: Any) -> contextlib.AbstractContextManager[core.Running]:
        settings = core.settings(core.UNREACHABLE_BROKER, database.url, **more)
        return core.running(lambda stop: deadlines.Deadlines(settings, database, stop))

    return run


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> core.Log:
    """What the processes of this test log."""
    log = core.Log()
    for module in core.LOGGING:
        monkeypatch.setattr(f"{module}.log", log)
    return log


@pytest.fixture
def raw_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests' client send core.RawHeader."""
    vendor.tolerate_unusual_headers()
    encode = pika.data.encode_value

    def encode_value(pieces: list[bytes], value: Any) -> int:
        if isinstance(value, core.RawHeader):
            pieces.append(value.encoded)
            return len(value.encoded)
        return encode(pieces, value)

    monkeypatch.setattr(pika.data, "encode_value", encode_value)


@pytest.fixture
def round_trips(tmp_path: Path) -> Iterator[core.RoundTrips]:
    counter = core.RoundTrips(tmp_path / "trace")
    yield counter
    counter.close()
