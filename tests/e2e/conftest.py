"""A deployment per test, on both databases; nothing is migrated, declared or started yet."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from order_service.contract.broker_rights import definitions
from sandbox.processes import Logins
from sandbox.servers import broker_users
from sandbox.servers.broker import Broker
from tests.e2e.deployment import Deployment


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, not migrated; the test runs once with each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/orders.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def logins(broker: Broker, amqp_url: str) -> Iterator[Logins]:
    """The URL of each of the broker's users, with its rights; the topology is not declared yet."""

    def without_topology(vhost: str, passwords: Mapping[str, str]) -> dict[str, Any]:
        return definitions(passwords, vhost=vhost) | {"exchanges": [], "queues": [], "bindings": []}

    with broker_users.created(broker, amqp_url, without_topology) as logins:
        yield logins


@pytest.fixture
def deployment(amqp_url: str, logins: Logins, database_url: str, tmp_path: Path) -> Iterator[Deployment]:
    """Each process has its own user of the broker."""
    with Deployment(amqp_url, database_url, tmp_path, logins=logins) as deployment:
        yield deployment
