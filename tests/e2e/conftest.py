"""A deployment per test, on both databases; nothing is migrated, declared or started yet."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.deployment import Deployment


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, not migrated; the test runs once with each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/orders.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def deployment(amqp_url: str, database_url: str, tmp_path: Path) -> Iterator[Deployment]:
    with Deployment(amqp_url, database_url, tmp_path) as deployment:
        yield deployment
