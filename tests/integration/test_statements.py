"""What a batch, a POST and the relay may cost, in statements and round trips: counts, so a busy machine fails none."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from api import create_app
from consumers.batch import process_batch
from order_service import handlers
from order_service.config import Settings
from order_service.contract.envelope import Delivery, Reply
from order_service.contract.events import INCOMING
from order_service.contract.topology import QUEUES
from order_service.storage import history, orders
from order_service.storage.claims import Claim, Outcomes
from order_service.storage.database import Database
from order_service.storage.tables import outbox
from tests import builders
from tests.integration import core

#: Large beside every bound: a statement or round trip for each message would exceed it.
BATCH = 200


@pytest.fixture
def statements(database: Database) -> list[str]:
    return record_statements(database)


def record_statements(database: Database) -> list[str]:
    """Every statement sent from now on, each once for all of its rows; without SQLite's settings."""
    sent: list[str] = []

    @sa.event.listens_for(database.engine, "before_cursor_execute")
    def record(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(("PRAGMA", "BEGIN")):
            sent.append(statement)

    return sent


@pytest.fixture
def traced(round_trips: core.RoundTrips) -> Iterator[core.RoundTrips]:
    """The round trips of all connections opened from now on."""

    def trace(connection: Any, _: object) -> None:
        round_trips.trace(connection)

    sa.event.listen(sa.pool.Pool, "connect", trace)
    yield round_trips
    sa.event.remove(sa.pool.Pool, "connect", trace)


def process(database: Database, *replies: Reply) -> None:
    """Process these as one batch of deliveries."""
    deliveries = []
    for reply in replies:
        [queue] = [queue for queue in QUEUES if reply.type in queue.accepts]
        deliveries.append(Delivery(queue.name, INCOMING[reply.type].routing_key, builders.event(reply)))
    process_batch(database, builders.policy(), deliveries)


def test_batch_of_any_size_costs_three_statements_also_with_compensations(
    database: Database, statements: list[str]
) -> None:
    ids = core.place_sent(database, BATCH)
    second = [core.reserved(id, "R2", id="menu-2") for id in ids]
    for batch in ([core.reserved(id) for id in ids], [core.completed(id) for id in ids], second):
        statements.clear()

        process(database, *batch)

        # Lock the orders, look into the inbox, write; SQLite needs one statement for each table.
        on_sqlite = 6 if batch is second else 5
        assert len(statements) <= (on_sqlite if database.is_sqlite else 3), statements
    assert core.states(database, ids) == {"paid"}
    assert len(core.compensation_rows(database)) == BATCH


def test_messages_that_change_nothing_cost_one_more_statement(database: Database, statements: list[str]) -> None:
    ids = core.place_sent(database, BATCH)
    process(database, *[core.reserved(id) for id in ids])
    statements.clear()

    process(database, *[core.reserved(id, id="again") for id in ids])

    assert len(statements) <= 4, statements


@core.POSTGRESQL_ONLY
def test_batch_costs_five_round_trips(database: Database, database_url: str, traced: core.RoundTrips) -> None:
    ids = core.place_sent(database, BATCH)
    consumers = Database(database_url, pre_ping=False)
    with consumers.reading():
        traced.count()

    process(consumers, *[core.reserved(id) for id in ids])
    first = traced.count()
    process(consumers, *[core.completed(id) for id in ids])
    second = traced.count()

    # BEGIN, lock, write, COMMIT with NOTIFY; the inbox is looked into only for orders that a message has changed.
    assert (first <= 4, second <= 5) == (True, True), (first, second)
    consumers.dispose()


@core.POSTGRESQL_ONLY
def test_post_costs_five_round_trips(database_url: str, traced: core.RoundTrips) -> None:
    app = create_app(Settings(database_url=database_url, wait_seconds=0))
    client = app.test_client()
    for _ in range(2):  # The first request opens the connection.
        traced.count()
        assert client.post("/orders", json=builders.order_request()).status_code == 202

    # The pool's ping, BEGIN, the order, its event, COMMIT with NOTIFY.
    assert traced.count() <= 5
    app.extensions["api"].close()


@core.POSTGRESQL_ONLY
def test_limit_of_pending_orders_costs_one_round_trip_more(database_url: str, traced: core.RoundTrips) -> None:
    app = create_app(Settings(database_url=database_url, wait_seconds=0, pending_limit=20, rate_limit="9/second"))
    client = app.test_client()
    for _ in range(2):  # The first request opens the connection.
        traced.count()
        assert client.post("/orders", json=builders.order_request()).status_code == 202

    assert traced.count() <= 6
    app.extensions["api"].close()


#: Of 20,000 orders that have ended, user 7 has 12,000, and 1,000 others have 8 each.
ENDED_ORDERS = """
    INSERT INTO orders (key, user_id, menu_ids, created_at, state, version, ledger, reminders_left)
    SELECT gen_random_uuid(), CASE WHEN mod(i, 5) < 3 THEN 7 ELSE 100 + mod(i, 1000) END, '[1]', now(), 'paid', 1, '{}', 0
    FROM generate_series(1, 20000) AS i
"""


@core.POSTGRESQL_ONLY
def test_pending_orders_of_a_batch_are_counted_by_one_statement_that_reads_few_orders(
    database: Database, statements: list[str]
) -> None:
    # given
    with database.writing() as connection:
        connection.exec_driver_sql(ENDED_ORDERS)
        connection.exec_driver_sql("ANALYZE orders")
    core.place_sent(database, 3, user_id=8)
    statements.clear()

    # when
    with core.unit_of_work(database) as work:
        placements = [builders.placement(user_id=7 + number % 2, pending_limit=4) for number in range(100)]
        room = handlers.has_room(work, placements)

    # then: four more of user 7, and one of user 8
    assert [number for number, has_room in enumerate(room) if has_room] == [0, 1, 2, 4, 6]
    [statement] = statements
    lock, count = statement.split(";")
    with database.writing() as connection:
        connection.exec_driver_sql(lock)
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN ANALYZE {count}").scalars())
    assert "Index Scan Backward" in plan, plan
    read = [int(rows) for rows in re.findall(r"actual time=\S+ rows=([0-9]+)", plan)]
    assert max(read) <= orders.NEWEST_ORDERS, plan


@core.POSTGRESQL_ONLY
@pytest.mark.parametrize("count", [1, 100])
def test_orders_placed_together_cost_two_statements(count: int, database: Database, statements: list[str]) -> None:
    with core.unit_of_work(database) as work:
        handlers.place_orders(work, [builders.placement()] * count)

    assert len(statements) <= 2, statements


def test_page_of_a_history_reads_the_entries_of_its_order_only(database: Database) -> None:
    # given
    [order_id] = core.place_sent(database)
    order, sent = core.get(database, order_id), list[tuple[str, Any]]()
    sa.event.listen(database.engine, "before_cursor_execute", lambda *given: sent.append((given[2], given[3])))

    # when
    with database.reading() as connection:
        history.read_history(connection, order, after=1, limit=21)

    # then
    [(statement, values)] = [each for each in sent if each[0].startswith("SELECT")]
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    with database.reading() as connection:
        rows = connection.exec_driver_sql(f"{explain} {statement}", values)
        plan = "\n".join(str(row[-1]) for row in rows)
    assert "order_id=?" in plan or "uq_order_history_order_id_type_message_id" in plan, plan


def test_deadlines_look_for_unsent_events_once(database: Database, statements: list[str]) -> None:
    core.place(database, 50)
    statements.clear()

    assert core.pass_deadlines(database) == 50

    # Without an index it reads the whole outbox, which is long after an outage of the broker.
    scans = [each for each in statements if "FROM outbox" in each and "message_id" in each.partition("WHERE")[2]]
    assert len(scans) <= 1, scans


def test_relay_costs_two_statements_for_any_number_of_rows(database: Database, statements: list[str]) -> None:
    core.place(database, BATCH)
    statements.clear()

    claim = Claim(database, BATCH)
    claim.settle(Outcomes(sent=[row.id for row in claim.rows]))

    # PostgreSQL deletes what it claims; SQLite reads first.
    assert len(statements) <= (2 if database.is_sqlite else 1), statements
    assert core.count(database, outbox) == 0


@core.POSTGRESQL_ONLY
def test_no_statement_scans_a_new_table_that_is_not_analyzed(database: Database) -> None:
    # given
    sent: list[tuple[str, Any]] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *given: sent.append((given[2], given[3])))

    # when
    [order_id] = core.place(database)
    for reply in (core.reserved(order_id), core.completed(order_id)):
        process(database, reply)
    claim = Claim(database, BATCH)
    claim.settle(Outcomes(failed=[row.id for row in claim.rows]))

    # then
    hot = [each for each in sent if each[0].startswith(("SELECT", "WITH", "DELETE"))]
    assert {statement.split()[0] for statement, _ in hot} == {"SELECT", "WITH", "DELETE"}, sent
    with database.reading() as connection:
        for statement, values in hot:
            plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", values).scalars())
            assert "Seq Scan" not in plan, plan
