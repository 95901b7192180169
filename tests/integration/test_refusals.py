"""A broker or database that refuses a process is named as such, with its address and without its password."""

import contextlib
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from click.testing import CliRunner

from consumers.worker import Worker
from order_service.cli.main import main
from order_service.contract import topology
from order_service.contract.broker_rights import USERS
from order_service.storage.database import Database
from order_service.storage.schema import wait_for_database
from order_service.storage.tables import outbox
from publishers.relay import Relay
from tests.conftest import VhostManagement
from tests.integration import core
from tests.integration.core import Eventually, Log, Wire, reserved

REFUSED, BACK = "access to the broker is refused, retrying", "the broker is reachable again"
NOTHING = {"configure": "^$", "write": "^$", "read": "^$"}


def rights(name: str) -> dict[str, str]:
    """The rights of a user of docs/rights.md."""
    [user] = [user for user in USERS if user.name == name]
    return {right: getattr(user, right) for right in NOTHING}


Grant = Callable[[dict[str, str]], str]


@pytest.fixture
def grant(management: VhostManagement, amqp_url: str) -> Iterator[Grant]:
    """`grant(rights)` gives these to a user of its own, and returns its URL."""
    name = f"poor-{management.vhost}"
    management.api.call("PUT", "users", name, body={"password": "S3cret", "tags": ""})

    def give(rights: dict[str, str]) -> str:
        management.api.call("PUT", "permissions", management.vhost, name, body=rights)
        parts = urlsplit(amqp_url)
        return urlunsplit(parts._replace(netloc=f"{name}:S3cret@{parts.netloc.rpartition('@')[2]}"))

    yield give
    management.api.call("DELETE", "users", name)


def errors(log: Log, message: str) -> list[str]:
    return [str(call.kwargs["error"]) for call in log.calls if call.args and call.args[0] == message]


def consumer(url: str, database: Database) -> Callable[..., Worker]:
    return core.worker(core.settings(url, database.url), database)


def relay(url: str, database: Database) -> Callable[..., Relay]:
    return lambda stop: Relay(core.settings(url, database.url), database, stop)


@core.SQLITE_ONLY
@pytest.mark.parametrize("process", [consumer, relay])
def test_a_wrong_password_a_missing_vhost_and_a_missing_right_to_it_are_named(
    process: Callable[..., Any], amqp_url: str, management: VhostManagement, database: Database, wire: Wire,
    grant: Grant, eventually: Eventually, log: Log,
) -> None:  # fmt: skip
    granted = grant(NOTHING)
    management.api.call("DELETE", "permissions", management.vhost, f"poor-{management.vhost}")
    urls = {
        "Login was refused": granted.replace("S3cret", "S3cret2"),
        "vhost S3no not found": re.sub("/[^/]*$", "/S3no", amqp_url),
        "access to vhost": granted,
    }
    for answer, url in urls.items():
        with core.running(process(url, database)):
            eventually(lambda answer=answer: any(answer in each for each in errors(log, REFUSED)), answer)

    assert all(str(urlsplit(amqp_url).port) in each for each in errors(log, REFUSED))
    assert not [call for call in log.calls if "S3cret" in str(call)]


@core.SQLITE_ONLY
def test_a_consumer_without_the_right_to_read_names_its_queue_and_continues_once_it_is_given(
    database: Database, wire: Wire, grant: Grant, eventually: Eventually, log: Log
) -> None:
    url = grant(NOTHING)

    with core.running(consumer(url, database)):
        eventually(lambda: log.count(REFUSED), "the refusal")
        grant(rights("order-service"))
        eventually(lambda: log.count(BACK), "the end of it")

    assert "access to queue 'order-service.menu'" in errors(log, REFUSED)[0]


@core.SQLITE_ONLY
def test_the_documented_rights_suffice(
    database: Database, amqp_url: str, wire: Wire, grant: Grant, eventually: Eventually
) -> None:
    # the topology
    url = grant(rights("order-topology"))
    for arguments in ["topology"], ["topology", "--recreate"]:
        ended = CliRunner(env={"RABBITMQ_URL": url}).invoke(main, arguments)
        assert ended.exit_code == 0, ended.output

    # a reply and a message that becomes a dead letter
    [order] = core.place_sent(database)
    with core.running(consumer(grant(rights("order-service")), database)):
        wire.send(reserved(order))
        wire.send_raw("menu.reserved", b"no event")
        eventually(lambda: core.count(database, outbox) == 3, "PaymentRequested, the dead letter, MessageRejected")

    wire.listen("payment.requested")
    with core.running(relay(grant(rights("order-service")), database)):
        eventually(lambda: core.count(database, outbox) == 0, "all of it to be published")


def test_a_command_without_the_right_to_declare_says_so(wire: Wire, grant: Grant) -> None:
    ended = CliRunner(env={"RABBITMQ_URL": grant(NOTHING)}).invoke(main, ["topology"])

    assert ended.exit_code == 2
    assert "access to the broker is refused" in ended.output
    assert "restaurant.events" in ended.output
    assert "S3cret" not in ended.output


def test_every_node_that_cannot_be_reached_is_named_with_its_error() -> None:
    urls = "amqp://a:S3cret@127.0.0.1:1/,amqp://a:S3cret@127.0.0.1:2/"

    with (
        pytest.raises(topology.BrokerUnreachable) as failed,
        topology.connected(core.settings(urls, "sqlite:///x"), role="test"),
    ):
        pass

    for node in ("amqp://a:***@127.0.0.1:1/", "amqp://a:***@127.0.0.1:2/"):
        assert f"{node}: ConnectionRefusedError: [Errno 111] Connection refused" in str(failed.value)


# The database.


@pytest.fixture
def poor_role(postgres_url: str) -> Iterator[tuple[psycopg.Connection[Any], str]]:
    """A connection of the owner of an empty database, and the URL of a role without rights on it."""
    with contextlib.closing(psycopg.connect(postgres_url, autocommit=True)) as owner:
        # Roles belong to the whole server, which other tests use at the same time.
        name = f"poor_{secrets.token_hex(4)}"
        owner.execute(f"create role {name} login password 'S3cret'".encode())
        parts = urlsplit(postgres_url)
        try:
            yield owner, urlunsplit(parts._replace(netloc=f"{name}:S3cret@{parts.netloc.rpartition('@')[2]}"))
        finally:
            owner.execute(f"drop owned by {name}; drop role {name}".encode())


def migrate(url: str, command: str = "migrate") -> tuple[int, str]:
    ended = CliRunner(env={"DATABASE_URL": url}).invoke(main, command.split())
    assert "S3cret" not in ended.output
    return ended.exit_code, ended.output


def test_a_missing_right_on_the_schema_is_named_with_the_grant_that_gives_it(
    poor_role: tuple[psycopg.Connection[Any], str],
) -> None:
    owner, url = poor_role

    status, output = migrate(url)
    granted = re.search("must run: (GRANT .*)", output)

    assert status == 2
    assert "permission denied for schema public" in output
    assert granted
    owner.execute(granted[1].encode())
    assert migrate(url)[0] == 0


@pytest.mark.parametrize("command", ["ids", "ids --start-at 5", "outbox retry", "compensations retry"])
def test_grants_that_a_command_names_suffice_for_it(
    poor_role: tuple[psycopg.Connection[Any], str], postgres_url: str, command: str
) -> None:
    owner, url = poor_role
    assert migrate(postgres_url)[0] == 0
    role = owner.execute(b"grant select on alembic_version to public") and urlsplit(url).username

    status, output = migrate(url, command)
    for _ in range(3):
        if granted := re.search("must run: (GRANT .*)", output):
            assert f"TO {role}" in granted[1]
            owner.execute(granted[1].encode())
            status, output = migrate(url, command)

    assert "access to the database is refused" not in output
    assert status == ("retry" in command)
    assert granted is None


@pytest.mark.parametrize(("wrong", "answer"), [
    (lambda url: url.replace("poor_", "unknown_"), "unknown_"),
    (lambda url: re.sub("/[^/]*$", "/unknown_db", url), 'database "unknown_db" does not exist'),
])  # fmt: skip
def test_a_wrong_login_or_database_name_is_named(
    wrong: Callable[[str], str], answer: str, poor_role: tuple[psycopg.Connection[Any], str], log: Log,
    eventually: Eventually,
) -> None:  # fmt: skip
    url = wrong(poor_role[1])
    refused = "access to the database is refused, retrying"

    with core.opened(url) as database, core.running(lambda stop: Waiting(database, stop)):
        eventually(lambda: log.count(refused), "the refusal")

    assert answer in errors(log, refused)[0]
    assert "***" in errors(log, refused)[0]
    status, output = migrate(url)
    assert (status, "access to the database is refused" in output) == (2, True)


class Waiting:
    def __init__(self, database: Database, stop: Any) -> None:
        self.run = lambda: wait_for_database(database, stop)


def unusable_files(directory: Path) -> dict[str, Path]:
    (directory / "directory.db").mkdir()
    (directory / "other.db").write_bytes(b"no database" * 1000)
    return {
        "a directory": directory / "directory.db",
        "another file": directory / "other.db",
        "below a file": directory / "other.db" / "orders.db",
        "below a pseudo file system": Path("/proc/orders/orders.db"),
    }


def test_an_sqlite_file_that_cannot_be_used_is_named_with_its_setting(tmp_path: Path) -> None:
    for kind, path in unusable_files(tmp_path).items():
        status, output = migrate(f"sqlite:///{path}")

        assert status == 2, (kind, output)
        assert output.startswith(f"DATABASE_URL: sqlite:///{path} cannot be used: "), kind
        assert len(output.splitlines()) == 1
        with core.opened(f"sqlite:///{path}") as database, pytest.raises(SystemExit) as refused:
            wait_for_database(database, core.threading.Event())
        assert refused.value.code == 2


# Who is connected.


@core.POSTGRESQL_ONLY
def test_connections_are_named_after_their_role_process_and_host(database: Database, amqp_url: str) -> None:
    process = f"{os.getpid()}@{socket.gethostname()}"

    with topology.connected(core.settings(amqp_url, database.url), role="relay") as (_, node):
        assert node.client_properties == {"connection_name": f"order-service relay {process}"}
    with database.reading() as connection:
        name = connection.exec_driver_sql("show application_name").scalar_one()
    assert name == f"order-service command {process}"
