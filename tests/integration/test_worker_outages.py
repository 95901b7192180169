"""The consumer during outages: nothing is acked or dead-lettered, and work continues when the outage ends."""

import os
import subprocess
import sys
from typing import Any

import pytest
import sqlalchemy as sa

from order_service import handlers
from order_service.contract import topology
from order_service.storage import migrate
from order_service.storage.database import Database
from order_service.storage.tables import order_history, outbox
from sandbox.broker import Broker
from sandbox.management import Management
from tests.integration import core
from tests.integration.core import Eventually, Log, Start, Wire, reserved

RETRYING = "the transaction failed, retrying"


def assert_applied_once(database: Database, ids: list[int]) -> None:
    assert core.count(database, order_history) == len(ids)
    assert core.rows(database, outbox, outbox.c.exchange == "") == []


def test_messages_wait_while_the_database_is_unreachable(
    database_url: str, amqp_url: str, wire: Wire, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    core.shorten_lock_wait(monkeypatch)
    with core.opened(database_url) as database:
        ids = core.place_sent(database, 20)

        with core.running(core.worker(core.settings(amqp_url, database_url), database)):
            eventually(lambda: log.count("consuming"), "the consumer to start")
            with core.database_unreachable(database_url):
                wire.send(*[reserved(id) for id in ids])
                eventually(lambda: log.count(RETRYING), "the outage to be noticed")
            eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "them to be applied")

        assert_applied_once(database, ids)
        assert wire.depth() == 0


def test_consumer_stopped_while_the_database_is_unreachable_returns_its_messages(
    database_url: str, amqp_url: str, wire: Wire, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    core.shorten_lock_wait(monkeypatch)
    with core.opened(database_url) as database:
        ids = core.place_sent(database, 5)
        wire.send(*[reserved(id) for id in ids])

        consumer = core.worker(core.settings(amqp_url, database_url), database)
        with core.database_unreachable(database_url), core.running(consumer):
            eventually(lambda: log.count(RETRYING), "the outage to be noticed")

        eventually(lambda: wire.depth() == len(ids), "the messages to be in the queue again")


@pytest.mark.parametrize("table", ["orders", "order_history", "outbox"])
def test_messages_wait_while_a_table_is_missing(
    table: str, database: Database, wire: Wire, consuming: Start, eventually: Eventually, log: Log
) -> None:
    ids = core.place_sent(database, 3)
    with database.writing() as connection:
        connection.execute(sa.text(f"alter table {table} rename to renamed"))
    wire.send(*[reserved(id) for id in ids])

    with consuming():
        eventually(lambda: log.count(RETRYING) > 1, "the fault to be noticed")
        with database.writing() as connection:
            connection.execute(sa.text(f"alter table renamed rename to {table}"))
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "them to be applied")

    assert_applied_once(database, ids)


@core.POSTGRESQL_ONLY
def test_everything_is_applied_once_when_database_connections_are_cut(
    database: Database, wire: Wire, consuming: Start, eventually: Eventually
) -> None:
    ids = core.place_sent(database, 150)
    wire.send(*[reserved(id) for id in ids])

    with consuming(batch_size=10):
        for _ in range(3):
            core.end_connections(database.url)
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "them to be applied")

    assert_applied_once(database, ids)


@core.SQLITE_ONLY
def test_everything_is_applied_once_when_broker_connections_are_cut(
    database: Database, wire: Wire, management: Any, consuming: Start, eventually: Eventually, log: Log
) -> None:
    ids = core.place_sent(database, 150)

    with consuming(batch_size=20):
        eventually(management.close_connections, "the consumer's connection to be cut")
        wire.send(*[reserved(id) for id in ids])
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "them to be applied")

    assert log.count("consuming") == 2
    assert_applied_once(database, ids)


def test_queue_deleted_and_declared_again_is_consumed_again(
    database: Database, wire: Wire, consuming: Start, eventually: Eventually, log: Log, broker: Broker
) -> None:
    assert broker.management_url is not None
    if Management(broker.management_url).call("GET", "overview")["rabbitmq_version"].startswith("3."):
        pytest.skip("RabbitMQ 3 does not cancel the consumer of a deleted queue")
    first, second = core.place_sent(database, 2)

    with consuming():
        eventually(lambda: log.count("consuming"), "the consumer to start")
        # While the consumer waits for this transaction, it cannot notice that the queue is missing.
        with core.unit_of_work(database) as work:
            handlers.apply_replies(work, [reserved(first, id="ours")])
            wire.send(reserved(first, id="theirs"))
            eventually(lambda: wire.depth() == 0, "the consumer to have received it")
            with wire.channel() as channel:
                channel.queue_delete(topology.MENU.name)
                topology.declare(channel)
        eventually(lambda: log.count("consuming") == 2, "the consumer to subscribe again")
        wire.send(reserved(second))
        eventually(lambda: core.states(database, [second]) == {"awaiting_payment"}, "the new queue to be consumed")


def assert_refused(ended: object, command: str, output: str) -> None:
    assert isinstance(ended, SystemExit)
    assert ended.code == 2
    assert f"python -m order_service {command}" in output


def test_consumer_of_a_queue_that_stays_deleted_ends_naming_the_command(
    database: Database, amqp_url: str, wire: Wire, eventually: Eventually, capsys: pytest.CaptureFixture[str], log: Log
) -> None:
    process = core.started(core.worker(core.settings(amqp_url, database.url), database))
    eventually(lambda: log.count("consuming"), "the consumer to start")

    with wire.channel() as channel:
        channel.queue_delete(topology.PAYMENT.name)

    assert_refused(eventually(process.ended, "the consumer to end"), "topology", capsys.readouterr().err)


def test_consumers_refuse_a_database_that_is_not_migrated_naming_the_command(
    database: Database, amqp_url: str, wire: Wire
) -> None:
    migrate.downgrade(database.url)
    environment = os.environ | {"DATABASE_URL": database.url, "RABBITMQ_URL": amqp_url}

    ended = subprocess.run(
        [sys.executable, "-m", "consumers"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )

    assert_refused(SystemExit(ended.returncode), "migrate", ended.stderr)
