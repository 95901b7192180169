"""A house of its own for every test, on both databases, before anything is migrated or declared."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.house import House


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of this test's own, not migrated; the test runs once with each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/orders.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def house(amqp_url: str, database_url: str, tmp_path: Path) -> Iterator[House]:
    with contextlib.closing(House(amqp_url, database_url, tmp_path)) as house:
        yield house
