"""The service through pgbouncer in transaction mode; `make test-field` runs these tests."""

import contextlib
import getpass
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from order_service.domain.order import State
from order_service.storage import migrate, schema
from order_service.storage.claims import Claim, Outcomes
from order_service.storage.database import Database
from publishers.relay import Relay
from sandbox.servers import ports
from sandbox.servers.postgres import SERVER_USER
from tests.builders import REQUEST_TOTAL, menu_reserved, payment_completed
from tests.http_service import RESPOND_ASYNC, Service, body_of
from tests.integration import core
from tests.integration.core import Eventually

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [
    pytest.mark.field,
    pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer (apt-get install pgbouncer)"),
    core.POSTGRESQL_ONLY,
]
#: Fewer than the connections of the service, so that its transactions alternate between those of the pooler.
POOL_SIZE = 4
#: Seconds within which a change is noticed: POLL_SECONDS of the watcher, on a busy machine. Far less than the wait of a
#: POST and the interval of a stream's comments.
NOTICED_SECONDS = 5
CONFIGURATION = """[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
"""


@pytest.fixture
def direct_url(database_url: str) -> str:
    return database_url


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that the user of pgbouncer may read; `tmp_path` is closed to others."""
    with tempfile.TemporaryDirectory(prefix="order-service-pgbouncer-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def pooled_url(direct_url: str, directory: Path, eventually: Eventually) -> Iterator[str]:
    """The database through a pgbouncer of its own."""
    server, [port] = urlsplit(direct_url), ports.free_ports(0)
    configuration = directory / "pgbouncer.ini"
    configuration.write_text(
        CONFIGURATION.format(
            host="127.0.0.1", port=server.port, user=server.username, password=server.password, listen_port=port,
            pool_size=POOL_SIZE,
        )
    )  # fmt: skip
    as_user = []
    if getpass.getuser() == "root":  # pgbouncer refuses to run as root
        as_user = ["setpriv", "--reuid", SERVER_USER, "--regid", SERVER_USER, "--clear-groups"]
    url = f"postgresql://{server.username}:{server.password}@127.0.0.1:{port}{server.path}"
    with (directory / "pgbouncer.log").open("w") as log:
        process = subprocess.Popen([*as_user, str(PROGRAM), str(configuration)], stdout=log, stderr=log)
        try:
            eventually(lambda: accepts_connections(url), "pgbouncer to accept connections")
            yield url
        finally:
            process.terminate()
            process.wait(30)


def accepts_connections(url: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect(url, connect_timeout=5).close()
        return True
    return False


def test_orders_are_placed_published_and_paid_through_a_transaction_pooler(
    pooled_url: str, amqp_url: str, wire: core.Wire, eventually: Eventually
) -> None:
    # given
    service = Service(pooled_url, eventually)
    wire.listen("order.*")
    relay_database = Database(pooled_url, pool_size=5, pre_ping=False, durable=False)
    settings = core.settings(amqp_url, pooled_url)

    # when
    with core.running(lambda stop: Relay(settings, relay_database, stop)), ThreadPoolExecutor(2 * POOL_SIZE) as pool:
        answers = list(pool.map(lambda _: service.post(headers=RESPOND_ASYNC), range(50)))
        ids = [body_of(answer)["id"] for answer in answers if answer.status_code == 202]
        for order_id in ids:
            service.receive(order_id, menu_reserved(), payment_completed("P1", REQUEST_TOTAL))
        eventually(lambda: not core.count(service.database, core.outbox), "all events to be published")

    # then
    assert [answer.status_code for answer in answers] == [202] * 50
    assert {service.get_order(order_id)["status"] for order_id in ids} == {"paid"}
    assert len({message.event["id"] for message in wire.take()}) == 2 * 50
    service.close()
    relay_database.dispose()


def test_settings_of_the_relay_do_not_reach_other_clients_of_the_pooler(pooled_url: str) -> None:
    relay_database, database = Database(pooled_url, pool_size=POOL_SIZE, durable=False), Database(pooled_url)

    # when: every connection of the pooler has had a transaction of the relay
    core.place(database, POOL_SIZE)
    claims = [Claim(relay_database, 1) for _ in range(POOL_SIZE)]
    for claim in claims:
        claim.settle(Outcomes())

    # then
    assert all(claim.rows for claim in claims)
    with psycopg.connect(pooled_url) as client:
        for _ in range(2 * POOL_SIZE):
            changed = client.execute("SELECT name, setting FROM pg_settings WHERE source = 'session'").fetchall()
            assert {name for name, _ in changed} <= {"application_name", "client_encoding"}, changed
            client.rollback()
    relay_database.dispose()
    database.dispose()


def test_there_are_no_notifications_to_wait_for_through_a_pooler(pooled_url: str, direct_url: str) -> None:
    with core.opened(pooled_url) as pooled, core.opened(direct_url) as direct:
        assert pooled.listen() is None

        # But those of a pooler's client reach a relay that is connected to the server.
        listener = direct.listen()
        assert listener
        core.place(pooled)
        assert list(listener.notifies(timeout=5, stop_after=1))
        listener.close()


def test_waiting_post_sees_the_reply_through_a_pooler(pooled_url: str, eventually: Eventually) -> None:
    with contextlib.closing(Service(pooled_url, eventually, wait_seconds=30)) as service:
        start = time.monotonic()

        answer = service.post_with_reply(menu_reserved())

        assert (answer.status_code, time.monotonic() - start < NOTICED_SECONDS) == (201, True)


def test_stream_sees_each_change_through_a_pooler(pooled_url: str, eventually: Eventually) -> None:
    with contextlib.closing(Service(pooled_url, eventually)) as service:
        order_id = service.order_in(State.AWAITING_MENU)
        with contextlib.closing(service.client.get(f"/orders/{order_id}/events", buffered=False)) as stream:
            # given: a stream that watches its order, and has seen all changes
            pieces = stream.iter_encoded()
            next(pieces)
            service.receive(order_id, menu_reserved())
            second = next(pieces)
            assert (b'"pending"' in second, f'"total_price": {REQUEST_TOTAL}'.encode() in second) == (True, True), (
                second
            )

            # when
            start = time.monotonic()
            service.receive(order_id, payment_completed("P1", REQUEST_TOTAL))
            third = next(pieces)

            # then
            assert (b'"paid"' in third, time.monotonic() - start < NOTICED_SECONDS) == (True, True), third


def test_migrations_run_through_a_pooler(pooled_url: str, postgres_url: str) -> None:
    empty_url = urlunsplit(urlsplit(pooled_url)._replace(path=urlsplit(postgres_url).path))

    migrate.upgrade(empty_url)

    with core.opened(empty_url) as database:
        schema.check_migrated(database)
