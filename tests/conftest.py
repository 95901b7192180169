"""Fixtures for all tests: a fresh vhost, fresh databases, and waiting with a deadline."""

import contextlib
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pika
import pytest

from sandbox.servers.broker import Broker, fresh_vhost
from sandbox.servers.management import Management
from sandbox.servers.postgres import Server, fresh_database
from tests import servers
from tests.databases import ReusableDatabase
from tests.polling import wait_until

SERVERS = pytest.StashKey[servers.SharedServers]()

#: The server that each of these fixtures needs.
NEEDS = {"broker": "broker", "postgres_server": "postgres"}


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # an xdist worker: the servers belong to the controller
        return
    capture = config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        reporter = config.pluginmanager.getplugin("terminalreporter")
        reporter.ensure_newline()
        reporter.write_line(line)

    config.stash[SERVERS] = servers.SharedServers(say, capture.global_and_fixture_disabled)
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(signum: int, frame: object) -> None:
    """End the run on SIGTERM as on Ctrl-C, so that the servers are stopped."""
    raise KeyboardInterrupt


def pytest_unconfigure(config: pytest.Config) -> None:
    if shared := config.stash.get(SERVERS, None):
        shared.close()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the servers that the selected tests need before the first test, whose time limit does not include this."""
    if not session.config.option.collectonly:
        servers.start({name for item in session.items for name in _needed(item)})


def _needed(item: pytest.Item) -> Iterator[str]:
    names = getattr(item, "fixturenames", [])
    yield from (server for fixture, server in NEEDS.items() if fixture in names)
    callspec = getattr(item, "callspec", None)
    if callspec and callspec.params.get("database_url") == "postgresql":
        yield "postgres"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print why a server was unavailable: many tests failed for this reason."""
    shared = config.stash.get(SERVERS, None)
    for result in shared.results.values() if shared else ():
        if isinstance(result, str):
            terminalreporter.write_line(result)


@pytest.fixture(scope="session")
def broker() -> Broker:
    """The RabbitMQ of the run, shared by all tests; each works in the vhost of its `amqp_url`."""
    return servers.require("broker", Broker)


@pytest.fixture
def amqp_url(broker: Broker) -> Iterator[str]:
    """The URL of a vhost that only this test uses."""
    with fresh_vhost(broker, "order-service-test") as url:
        yield url


@pytest.fixture(autouse=True)
def shared_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run in this process leave its logging, which all of its tests share, as it is."""
    monkeypatch.setattr("order_service.process.configure_logging", lambda *_: None)


class VhostManagement:
    """The management API, limited to the vhost of the test."""

    def __init__(self, amqp_url: str, management_url: str) -> None:
        self._amqp_url = amqp_url
        self.api = Management(management_url)
        self.vhost = unquote(urlsplit(amqp_url).path[1:])

    def depth(self, queue: str) -> int:
        """Return the number of ready messages, over AMQP: the figures of the API are up to 5 s old."""
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self._amqp_url))) as connection:
            count: int = connection.channel().queue_declare(queue, passive=True).method.message_count
            return count

    def queues(self) -> dict[str, dict[str, Any]]:
        """Return all queues by name, with durable, type, arguments."""
        return {queue["name"]: queue for queue in self.api.call("GET", "queues", self.vhost)}

    def bindings(self) -> set[tuple[str, str, str]]:
        """Return (exchange, routing key, queue) of every binding except those of the default exchange."""
        found = self.api.call("GET", "bindings", self.vhost)
        return {(each["source"], each["routing_key"], each["destination"]) for each in found if each["source"]}

    def close_connections(self) -> int:
        """Close every connection to the vhost; return their number."""
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
    """The URL of the PostgreSQL server of the run, shared by all tests; each works in a database of its own."""
    return servers.require("postgres", Server).url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database that only this test uses."""
    with fresh_database(postgres_server, "order_test") as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: str) -> Iterator[ReusableDatabase]:
    with fresh_database(postgres_server, "order_template") as url:
        _migrate(url)
        with contextlib.closing(ReusableDatabase(postgres_server, template=urlsplit(url).path[1:])) as database:
            yield database


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, copied for each test."""
    path = tmp_path_factory.mktemp("migrated") / "template.db"
    _migrate(f"sqlite:///{path}")
    return path


def _migrate(url: str) -> None:
    from order_service.storage.migrate import upgrade  # takes 1 s to import, which the xdist controller saves

    upgrade(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a migrated, empty database; the test runs once with each kind."""
    if request.param == "sqlite":
        path = tmp_path / "orders.db"
        _copy(request.getfixturevalue("migrated_sqlite"), path)
        return f"sqlite:///{path}"
    database: ReusableDatabase = request.getfixturevalue("migrated_postgres")
    return database.empty()


def _copy(source: Path, target: Path) -> None:
    """Copy with SQLite, which includes the write-ahead log beside the file."""
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """`tests.polling.wait_until`."""
    return wait_until
