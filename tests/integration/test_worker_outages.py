"""The consumer during outages: nothing is acked or dead-lettered, and work continues when the outage ends."""

import contextlib
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest
import sqlalchemy as sa

from consumers.worker import BATCH_BYTES
from order_service import handlers
from order_service.contract import topology
from order_service.storage.database import Database
from order_service.storage.tables import order_history, outbox
from sandbox.servers.broker import Broker
from sandbox.servers.management import Management
from tests.integration import core
from tests.integration.core import Eventually, Log, Start, Wire, completed, reserved

RETRYING = "the transaction failed, retrying"


def assert_applied_once(database: Database, ids: list[int]) -> None:
    assert core.count(database, order_history) == len(ids)
    assert core.rows(database, outbox, outbox.c.exchange == topology.DEAD_LETTER_EXCHANGE) == []


def test_messages_wait_while_the_database_is_unreachable_and_return_to_the_queue_when_the_consumer_stops(
    database_url: str, amqp_url: str, wire: Wire, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    core.shorten_lock_wait(monkeypatch)
    with core.opened(database_url) as database:
        ids = core.place_sent(database, 20)
        consumer = core.worker(core.settings(amqp_url, database_url), database)

        with core.running(consumer):
            eventually(lambda: log.count("consuming"), "the consumer to start")
            with core.database_unreachable(database_url):
                wire.send(*[reserved(id) for id in ids])
                eventually(lambda: log.count(RETRYING), "the outage to be noticed")
            eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "them to be applied")
        assert_applied_once(database, ids)
        assert wire.depth() == 0

        before = log.count(RETRYING)
        with core.database_unreachable(database_url), core.running(consumer):
            wire.send(*[completed(id) for id in ids])
            eventually(lambda: log.count(RETRYING) > before, "the second outage to be noticed")
        eventually(lambda: wire.depth() == len(ids), "the messages to be in the queue again")


@core.POSTGRESQL_ONLY
def test_large_messages_that_wait_for_the_database_take_bounded_memory_and_are_rejected_in_bounded_transactions(
    database: Database, wire: Wire, consuming: Start, eventually: Eventually, log: Log
) -> None:
    # given: 96 MiB in oversized bodies, and 18 MiB in bodies that are kept whole
    sizes = [8 * 1024 * 1024] * 12 + [250 * 1024] * 74
    is_dead = outbox.c.exchange == topology.DEAD_LETTER_EXCHANGE

    # when: all of them wait for the database at once
    with consuming(), traced_memory() as peak_bytes:
        eventually(lambda: log.count("consuming"), "the consumer to start")
        with core.database_unreachable(database.url):
            with wire.channel() as channel:
                for size in sizes:
                    channel.basic_publish(topology.EXCHANGE, "menu.reserved", b"x" * size)
            eventually(lambda: wire.depth() == 0, "all of them to be delivered")
            taken = peak_bytes()
        eventually(lambda: len(core.rows(database, outbox, is_dead)) == len(sizes), "the dead letters")

    # then
    assert taken < 64 * 1024 * 1024
    written: Counter[datetime] = Counter()
    for row in core.rows(database, outbox, is_dead):
        written[row.created_at] += len(row.body)
    assert max(written.values()) <= BATCH_BYTES


@contextlib.contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """Trace the memory that Python allocates in the block; the value is a function that returns the highest amount."""
    tracemalloc.start(1)
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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


def test_consumer_of_a_queue_that_stays_deleted_ends_naming_the_command(
    database: Database, amqp_url: str, wire: Wire, eventually: Eventually, capsys: pytest.CaptureFixture[str], log: Log
) -> None:
    process = core.started(core.worker(core.settings(amqp_url, database.url), database))
    eventually(lambda: log.count("consuming"), "the consumer to start")

    with wire.channel() as channel:
        channel.queue_delete(topology.PAYMENT.name)

    ended = eventually(process.ended, "the consumer to end")
    assert (type(ended), getattr(ended, "code", None)) == (SystemExit, 2)
    assert "python -m order_service topology" in capsys.readouterr().err
