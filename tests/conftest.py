"""Fixtures for all tests: a broker with a fresh vhost, fresh databases, and waiting without sleeping."""

import contextlib
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pika
import pytest

from sandbox.servers.broker import Broker, fresh_vhost
from sandbox.servers.management import Management
from sandbox.servers.postgres import fresh_database
from tests import servers
from tests.databases import Databases

KEEPER = pytest.StashKey[servers.Keeper]()

#: Fixtures that need a server, with its name.
NEEDS = {"broker": "broker", "postgres_server": "postgres"}


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # an xdist worker: the controller keeps the servers
        return
    capture = config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        reporter = config.pluginmanager.getplugin("terminalreporter")
        reporter.ensure_newline()
        reporter.write_line(line)

    config.stash[KEEPER] = servers.Keeper(say, capture.global_and_fixture_disabled)
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(signum: int, frame: object) -> None:
    """A polite kill ends the run as Ctrl-C does, with the servers stopped."""
    raise KeyboardInterrupt


def pytest_unconfigure(config: pytest.Config) -> None:
    if keeper := config.stash.get(KEEPER, None):
        keeper.close()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start what the selected tests need before the first of them, whose time limit is not for this."""
    if not session.config.option.collectonly:
        servers.ask_ahead({name for item in session.items for name in _needed(item)})


def _needed(item: pytest.Item) -> Iterator[str]:
    names = getattr(item, "fixturenames", [])
    yield from (server for fixture, server in NEEDS.items() if fixture in names)
    callspec = getattr(item, "callspec", None)
    if callspec and callspec.params.get("database_url") == "postgresql":
        yield "postgres"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    keeper = config.stash.get(KEEPER, None)
    for answer in keeper.answers.values() if keeper else ():
        if isinstance(answer, str):  # why a server could not be had, which many tests failed for
            terminalreporter.write_line(answer)


@pytest.fixture(scope="session")
def broker() -> Broker:
    """The run's RabbitMQ, shared by all tests: work in `amqp_url`'s vhost."""
    return servers.broker_or_fail()


@pytest.fixture
def amqp_url(broker: Broker) -> Iterator[str]:
    """The URL of a vhost of this test's own."""
    with fresh_vhost(broker, "order-service-test") as url:
        yield url


class VhostManagement:
    """What an operator sees and does in the console, in the test's own vhost."""

    def __init__(self, amqp_url: str, management_url: str) -> None:
        self._amqp_url = amqp_url
        self.api = Management(management_url)
        self.vhost = unquote(urlsplit(amqp_url).path[1:])

    def depth(self, queue: str) -> int:
        """Messages ready in the queue, from the queue itself: the API's figures lag behind by up to 5 s."""
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self._amqp_url))) as connection:
            count: int = connection.channel().queue_declare(queue, passive=True).method.message_count
            return count

    def take(self, queue: str, count: int = 100) -> list[dict[str, Any]]:
        """Remove messages: each with payload (text), properties, routing_key, exchange, redelivered."""
        return self._get(queue, count, "ack_requeue_false")

    def peek(self, queue: str, count: int = 100) -> list[dict[str, Any]]:
        """Messages as `take`, put back: marked redelivered, which a quorum queue counts as a delivery."""
        return self._get(queue, count, "reject_requeue_true")

    def _get(self, queue: str, count: int, ackmode: str) -> list[dict[str, Any]]:
        body = {"count": count, "ackmode": ackmode, "encoding": "auto"}
        messages: list[dict[str, Any]] = self.api.call("POST", "queues", self.vhost, queue, "get", body=body)
        return messages

    def publish(self, exchange: str, routing_key: str, payload: str, **properties: Any) -> bool:
        """Publish as by hand in the console; True if it was routed to a queue."""
        body = {"routing_key": routing_key, "payload": payload, "payload_encoding": "string", "properties": properties}
        answer = self.api.call("POST", "exchanges", self.vhost, exchange, "publish", body=body)
        return bool(answer["routed"])

    def queues(self) -> dict[str, dict[str, Any]]:
        """All queues by name, with durable, type, arguments."""
        return {queue["name"]: queue for queue in self.api.call("GET", "queues", self.vhost)}

    def bindings(self) -> set[tuple[str, str, str]]:
        """(exchange, routing key, queue) of every binding, without those of the default exchange."""
        found = self.api.call("GET", "bindings", self.vhost)
        return {(each["source"], each["routing_key"], each["destination"]) for each in found if each["source"]}

    def close_connections(self) -> int:
        """Cut every client of the vhost off, as an operator can; returns how many there were."""
        connections = self.api.call("GET", "vhosts", self.vhost, "connections")
        for connection in connections:
            self.api.call("DELETE", "connections", connection["name"])
        return len(connections)


@pytest.fixture
def management(broker: Broker, amqp_url: str) -> VhostManagement:
    assert broker.management_url is not None
    return VhostManagement(amqp_url, broker.management_url)


@pytest.fixture(scope="session")
def postgres_server() -> str:
    """The URL of the run's PostgreSQL server, shared by all tests: work in a database of your own."""
    return servers.postgres_or_fail().url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of this test's own."""
    with fresh_database(postgres_server, "order_test") as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: str) -> Iterator[Databases]:
    """Migrated databases, empty at the start of each test."""
    from order_service.schema import upgrade

    with fresh_database(postgres_server, "order_template") as url:
        upgrade(url)
        databases = Databases(postgres_server, template=urlsplit(url).path[1:])
        yield databases
        databases.close()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that others are copied from."""
    from order_service.schema import upgrade

    path = tmp_path_factory.mktemp("migrated") / "template.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a migrated, empty database of this test's own; the test runs once with each kind."""
    if request.param == "sqlite":
        path = tmp_path / "orders.db"
        _copy(request.getfixturevalue("migrated_sqlite"), path)
        return f"sqlite:///{path}"
    databases: Databases = request.getfixturevalue("migrated_postgres")
    return databases.empty()


def _copy(source: Path, target: Path) -> None:
    """Copy by SQLite itself, which knows about a write-ahead log beside the file."""
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """`eventually(check, "what is waited for", seconds=10)` returns check()'s first truthy value, or fails."""
    return _eventually


def _eventually(check: Callable[[], Any], what: str, *, seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:g} s for {what}; last seen: {value!r}")
        time.sleep(0.05)
