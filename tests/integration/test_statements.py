"""What a batch and a POST may cost, in statements and round trips: no busy machine can fail this."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from api import create_app
from consumers.batch import process_batch
from order_service import handlers
from order_service.config import Settings
from order_service.contract.envelope import Delivery, Reply
from order_service.contract.topology import QUEUES
from order_service.process import utc_now
from order_service.storage.database import Database
from order_service.storage.outbox import Claim
from tests.integration import core

BATCH = 200


@pytest.fixture
def statements(database: Database) -> list[str]:
    """Every statement sent from now on, however many rows it is for; SQLite's own settings apart."""
    return sent_by(database)


def sent_by(database: Database) -> list[str]:
    sent: list[str] = []

    @sa.event.listens_for(database.engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(("PRAGMA", "BEGIN")):
            sent.append(statement)

    return sent


@pytest.fixture
def round_trips(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """How often PostgreSQL was asked something and waited for since the last call, on connections opened from now on.

    BEGIN and COMMIT count, and what the pool asks to see whether a connection is alive.
    """
    trace = tmp_path / "trace"
    file = os.open(trace, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    @sa.event.listens_for(sa.pool.Pool, "connect")
    def begin(connection: Any, _: Any) -> None:
        connection.pgconn.trace(file)

    def count() -> int:
        """By the server's ReadyForQuery, which ends its answer to each message or group of messages."""
        lines = trace.read_text().splitlines()
        os.truncate(trace, 0)
        return sum("ReadyForQuery" in line for line in lines)

    yield count
    sa.event.remove(sa.pool.Pool, "connect", begin)
    os.close(file)


def deliveries(*replies: Reply) -> list[Delivery]:
    found = []
    for reply in replies:
        [queue] = [queue for queue in QUEUES if reply.type in queue.accepts]
        key = core.ROUTING_KEYS[reply.type]
        found.append(Delivery(queue.name, key, core.event(reply)))
    return found


def test_batch_of_replies_costs_three_statements_whatever_its_size(
    database: Database, database_url: str, statements: list[str]
) -> None:
    ids = core.place_sent(database, BATCH)
    for batch in ([core.reserved(id) for id in ids], [core.completed(id) for id in ids]):
        statements.clear()

        process_batch(database, core.policy(), deliveries(*batch))

        assert len(statements) <= (5 if database.is_sqlite else 3), statements
    assert core.states(database, ids) == {"paid"}


def test_batch_that_gives_everything_back_costs_no_round_trip_more(
    database: Database, database_url: str, statements: list[str]
) -> None:
    ids = core.place_sent(database, BATCH)
    core.apply(database, *[core.reserved(id) for id in ids])
    statements.clear()

    process_batch(database, core.policy(), deliveries(*[core.rejected(id) for id in ids]))

    assert len(statements) <= (6 if database.is_sqlite else 3), statements
    assert len(core.given_back(database)) == BATCH


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_batch_of_replies_costs_five_round_trips(
    database: Database, database_url: str, round_trips: Callable[[], int]
) -> None:
    ids = core.place_sent(database, BATCH)
    consumers = Database(database_url, pre_ping=False)
    with consumers.reading():
        round_trips()

    # BEGIN, lock, write, COMMIT with NOTIFY; an order that a message has touched has its inbox looked at as well.
    process_batch(consumers, core.policy(), deliveries(*[core.reserved(id) for id in ids]))
    assert round_trips() == 4
    process_batch(consumers, core.policy(), deliveries(*[core.completed(id) for id in ids]))
    assert round_trips() == 5
    consumers.dispose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_post_over_http_costs_five_round_trips(database_url: str, round_trips: Callable[[], int]) -> None:
    app = create_app(Settings(database_url=database_url, wait_seconds=0))
    client = app.test_client()
    for _ in range(2):  # The first one opens the connection.
        round_trips()
        assert client.post("/orders", json={"user_id": 1, "menu_ids": [1, 2]}).status_code == 202

    # Is the connection alive, BEGIN, the order, its event, COMMIT with NOTIFY.
    assert round_trips() == 5
    app.extensions["api"].close()


def test_deadlines_look_for_unsent_events_once(database: Database, statements: list[str]) -> None:
    core.place(database, 50)
    statements.clear()

    with core.unit_of_work(database, now=core.LATER) as work:
        assert handlers.pass_deadlines(work, limit=100) == 50

    # There is no index for it, so it reads all of the outbox, which is long after an outage of the broker.
    assert sum("FROM outbox" in each and "message_id" in each.partition("WHERE")[2] for each in statements) == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_post_costs_two_statements_and_so_do_a_hundred_that_come_together(
    database: Database, statements: list[str]
) -> None:
    placement = handlers.Placement(user_id=7, menu_ids=(1, 2))
    for count in (1, 100):
        statements.clear()

        with core.unit_of_work(database) as work:
            handlers.place_orders(work, [placement] * count)

        assert len(statements) == 2, statements


def test_post_over_http_costs_three_statements_at_most(database_url: str) -> None:
    app = create_app(Settings(database_url=database_url, wait_seconds=0))
    sent = sent_by(app.extensions["api"].database)

    assert app.test_client().post("/orders", json={"user_id": 1, "menu_ids": [1, 2]}).status_code == 202

    app.extensions["api"].close()
    assert len(sent) <= 3, sent


def test_relay_costs_at_most_two_statements_for_whatever_it_sends(database: Database, statements: list[str]) -> None:
    core.place(database, BATCH)
    statements.clear()

    claim = Claim(database, BATCH, utc_now())
    claim.settle(sent=[row.id for row in claim.rows], failed=[], now=utc_now())

    assert len(statements) == (2 if database.is_sqlite else 1), statements
    assert core.count(database, core.outbox) == 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_no_table_is_read_whole_while_it_is_new_and_not_yet_analyzed(database: Database, database_url: str) -> None:
    # given
    sent: list[tuple[str, Any]] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *given: sent.append((given[2], given[3])))

    # when
    ids = core.place(database, 1)
    for reply in (core.reserved(ids[0]), core.completed(ids[0])):
        process_batch(database, core.policy(), deliveries(reply))
    claim = Claim(database, BATCH, utc_now())
    claim.settle(sent=[], failed=[row.id for row in claim.rows], now=utc_now())

    # then
    hot = [each for each in sent if each[0].startswith(("SELECT", "WITH", "DELETE"))]
    assert len(hot) == 7, sent
    with database.reading() as connection:
        for statement, values in hot:
            plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", values).scalars())
            assert "Seq Scan" not in plan, plan
