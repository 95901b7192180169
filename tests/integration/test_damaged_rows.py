"""One row that cannot be decoded or processed, on both databases: it delays only itself, and is logged.

test_worker.py has the same for messages.
"""

import json
import secrets
from datetime import timedelta
from typing import Any

import pika
import psycopg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from order_service.backoff import Backoff
from order_service.cli.main import main
from order_service.contract.topology import DEAD_LETTER_EXCHANGE, PAYMENT
from order_service.domain.order import REFUND, State
from order_service.process import utc_now
from order_service.storage.database import Database
from order_service.storage.errors import is_transient
from order_service.storage.tables import compensations, orders, outbox
from publishers import deadlines
from publishers.gauges import of_database
from tests import builders
from tests.http_service import Service, body_of
from tests.integration import core
from tests.integration.core import Eventually, Log, completed, rejected, reserved

#: What a fault or a newer version may leave in a row.
DAMAGES: list[dict[str, Any]] = [
    {"ledger": "{"}, {"ledger": "[]"}, {"state": "awaiting_courier"}, {"items": '[["x"]]'}, {"menu_ids": "7"},
]  # fmt: skip
damaged = pytest.mark.parametrize("damage", DAMAGES, ids=str)
PROBLEM = "a due row cannot be processed, retrying later"


def change(database: Database, table: sa.Table, id: Any, **values: Any) -> None:
    with database.writing() as connection:
        connection.execute(sa.update(table).where(table.c.id == id).values(**values))


# Deadlines and compensations.


@damaged
def test_deadlines_of_other_orders_pass(
    damage: dict[str, Any], database: Database, passing: core.Start, log: Log, eventually: Eventually
) -> None:
    bad, *others = core.place_sent(database, 5, reminders=0)
    change(database, orders, bad, **damage)

    with passing(database):
        eventually(lambda: core.states(database, others) == {"failed"}, "the other orders to expire")

    [error, *_] = log.errors()
    assert (error["event"], error["table"], error["id"], error["order_id"]) == (PROBLEM, "orders", bad, bad)


def test_orders_behind_more_damaged_ones_than_a_batch_holds_pass_and_a_repaired_one_follows(
    database: Database, passing: core.Start, log: Log, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "LIMIT", 2)
    monkeypatch.setattr(deadlines, "FAILED_BACKOFF", Backoff(first=1, longest=1))
    *bad, last = core.place_sent(database, 6, reminders=0)
    with database.writing() as connection:
        connection.execute(sa.update(orders).where(orders.c.id != last).values(ledger="{"))
        connection.execute(sa.update(orders).where(orders.c.id == last).values(due_at=utc_now()))

    with passing(database):
        eventually(lambda: core.states(database, [last]) == {"failed"}, "the last order to expire")
        change(database, orders, bad[0], ledger='{"payments": [], "reservations": [], "released": [], "refunded": []}')
        eventually(lambda: core.states(database, bad[:1]) == {"failed"}, "the repaired order to expire", seconds=10)


def test_damaged_order_is_logged_once_per_delay(
    database: Database, passing: core.Start, log: Log, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "FAILED_BACKOFF", Backoff(first=60, longest=60))
    [bad] = core.place_sent(database, reminders=0)
    change(database, orders, bad, ledger="{")

    with passing(database):
        for _ in range(5):
            [order_id] = core.place_sent(database, reminders=0)
            eventually(lambda id=order_id: core.states(database, [id]) == {"failed"}, "another order to expire")

    assert log.count(PROBLEM) == 1


def test_unsent_event_that_is_no_json_delays_only_its_order(
    database: Database, passing: core.Start, log: Log, eventually: Eventually
) -> None:
    bad, other = core.place(database, 2, now=utc_now() - timedelta(minutes=1))
    with database.writing() as connection:
        connection.execute(sa.update(outbox).where(outbox.c.order_id == bad).values(body=b"{"))

    with passing(database):
        eventually(lambda: core.get(database, other).due_at > utc_now(), "the other order to be postponed")

    assert {error["id"] for error in log.errors()} == {bad}


@pytest.mark.parametrize("fault", ["deleted", "damaged"])
def test_compensations_of_other_orders_are_repeated(
    fault: str, database: Database, passing: core.Start, log: Log, eventually: Eventually
) -> None:
    # given
    ids = core.place_sent(database, 3)
    core.apply(database, *[reply for id in ids for reply in (completed(id), rejected(id))])
    core.clear_outbox(database)
    refunds = [core.get(database, id).compensation_id(REFUND, "P1") for id in ids]
    if fault == "deleted":
        with database.writing() as connection:
            connection.execute(sa.delete(orders).where(orders.c.id == ids[0]))
    else:
        change(database, orders, ids[0], ledger="{")

    # when
    with passing(database):
        eventually(lambda: len(core.unsent_events(database, "RefundRequested")) == 2, "the others to be repeated")

    # then
    assert {event["id"] for event in core.unsent_events(database)} == set(refunds[1:])
    [error, *_] = log.errors()
    assert (error["table"], error["id"], error["order_id"]) == ("compensations", refunds[0], ids[0])
    assert core.rows(database, compensations, compensations.c.id == refunds[0])[0].attempts == 1


def test_row_that_postgresql_cannot_read_is_no_transient_failure() -> None:
    damaged = sa.exc.DBAPIError.instance("", None, psycopg.errors.DataCorrupted(), psycopg.Error)

    assert not is_transient(damaged)


# The commands and the figures.

DAMAGED_TIMES = ["orders SET created_at", "order_history SET at", "outbox SET created_at", "outbox SET due_at"]


@damaged
@pytest.mark.usefixtures("own_logging")
def test_commands_show_the_other_orders_and_name_a_damaged_one(
    damage: dict[str, Any], database: Database, wire: core.Wire, amqp_url: str
) -> None:
    # given: two stuck orders, and a dead letter for each
    ids = core.place(database, 2, now=utc_now() - timedelta(minutes=1))
    change(database, orders, ids[0], **damage)
    with wire.channel() as channel:
        for order_id in ids:
            body = builders.event(completed(order_id))
            properties = pika.BasicProperties(type="PaymentCompleted", headers={"x-error": "invalid"})
            channel.basic_publish(DEAD_LETTER_EXCHANGE, PAYMENT.dead_letters, body, properties)

    def run(*command: str, status: int = 1) -> Any:
        env = {"DATABASE_URL": database.url, "RABBITMQ_URL": amqp_url}
        done = CliRunner(env=env).invoke(main, command)
        assert (done.exit_code, type(done.exception)) == (status, SystemExit), done.output
        return done

    # when
    stuck, doctor, listed = run("stuck"), run("doctor"), run("dlq", "list", "--json")
    replay = run("dlq", "replay", "--all", "--dry-run")
    own = [run(command, str(ids[0]), status=2).stderr for command in ("explain", "timeline")]

    # then
    assert f"Order {ids[1]} waits" in stuck.stdout
    assert all(f"cannot be read: order {ids[0]}: " in text for text in (stuck.stdout, *own))
    assert f"one cannot be read, and waits: order {ids[0]}: " in doctor.stdout
    assert json.loads(listed.stdout)["groups"][0]["pending"] == 1
    assert f"order {ids[0]}: dead-lettered again: internal_error" in replay.stdout
    assert f"order {ids[1]}: awaiting_menu -> awaiting_menu_prepaid" in replay.stdout


@pytest.mark.parametrize("column", DAMAGED_TIMES)
@pytest.mark.usefixtures("own_logging")
def test_a_time_that_cannot_be_decoded_hides_no_other_figure(column: str, database: Database, amqp_url: str) -> None:
    core.apply(database, *map(reserved, core.place(database, 3, now=utc_now() - timedelta(minutes=1))))
    table, value = column.split()[0], "'garbage'" if database.is_sqlite else "'infinity'"
    with database.writing() as connection:
        connection.exec_driver_sql(f"UPDATE {column} = {value} WHERE id = (SELECT min(id) FROM {table})")

    samples = [sample for family in of_database(database, 1).collect() for sample in family.samples]
    env = {"DATABASE_URL": database.url, "RABBITMQ_URL": amqp_url}
    commands = [CliRunner(env=env).invoke(main, command) for command in (["stuck"], ["outbox", "list", "--json"])]

    found = {sample.name: sample.value for sample in samples}
    assert found["order_service_outbox_rows"] == 6
    assert found["order_service_outbox_oldest_seconds"] > 50
    assert [each.exit_code for each in commands] == [1, 1], [each.output for each in commands]


# The API.


@damaged
def test_list_leaves_out_a_damaged_order_on_any_page_and_logs_it_once(
    damage: dict[str, Any], service: Service, log: Log
) -> None:
    ids = [service.order_in(State.AWAITING_MENU) for _ in range(5)]
    change(service.database, orders, ids[2], **damage)

    for limit in (1, 2, 3, 5):
        found, cursor = [], ""
        while cursor is not None:
            page = body_of(service.get(f"/orders?limit={limit}{cursor and '&cursor=' + cursor}"))
            found += [order["id"] for order in page["orders"]]
            cursor = page["next_cursor"]
        assert found == [ids[4], ids[3], ids[1], ids[0]]

    assert service.get(f"/orders/{ids[2]}").status_code == 500
    assert [error["order_id"] for error in log.errors()] == [ids[2]]


@core.POSTGRESQL_ONLY
def test_order_that_postgresql_cannot_read_delays_only_itself(
    service: Service, passing: core.Start, log: Log, eventually: Eventually
) -> None:
    # given
    bad, waiting = (service.post_waiting(headers={"Prefer": "wait=10"}) for _ in range(2))
    ids = [bad[0], waiting[0]]
    damage_on_disk(service.database, ids[0])

    # then: the list leaves it out on any page and names it
    for limit in (1, 2):
        page = body_of(service.get(f"/orders?limit={limit}"))
        assert [order["id"] for order in page["orders"]] == ids[1:]
    page = body_of(service.get(f"/orders?limit=1&cursor={body_of(service.get('/orders?limit=1'))['next_cursor']}"))
    assert (page["orders"], page["next_cursor"]) == ([], None)
    assert [(error["order_id"], error["event"]) for error in log.errors()] == [
        (ids[0], "an order cannot be read and is left out")
    ]

    # and: a waiting request is answered beside it, and a request for it is not told to retry
    with service.database.writing() as connection:
        connection.execute(sa.update(orders).where(orders.c.id == ids[0]).values(version=2))
    service.receive(ids[1], reserved(ids[1]).message)
    assert waiting[1].result(5).status_code == 201
    for path in (f"/orders/{ids[0]}", f"/orders/{ids[0]}/history"):
        assert service.get(path).status_code == 500

    # and: its deadline delays no other
    with service.database.writing() as connection:
        connection.execute(sa.update(orders).values(due_at=utc_now()))
    with passing(service.database):
        eventually(lambda: core.get(service.database, ids[1]).due_at > utc_now(), "the other order to be postponed")
        eventually(lambda: log.count(PROBLEM) > 0, "the damaged order to be named")


def damage_on_disk(database: Database, order_id: int) -> None:
    """Have PostgreSQL lose the part of a row that it keeps elsewhere, because it is long."""
    ledger = json.dumps({"payments": [], "reservations": [], "refunded": [], "released": [secrets.token_hex(9000)]})
    change(database, orders, order_id, ledger=ledger)
    toast = "(SELECT reltoastrelid::regclass FROM pg_class WHERE oid = 'orders'::regclass)"
    with database.writing() as connection:
        connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_surgery")
        [table] = connection.exec_driver_sql(f"SELECT {toast}::text").scalars()
        connection.exec_driver_sql(f"SELECT heap_force_kill('{table}'::regclass, ARRAY(SELECT ctid FROM {table}))")


def test_waiting_request_is_answered_beside_one_whose_order_is_damaged(service: Service, log: Log) -> None:
    bad, _ = service.post_waiting(headers={"Prefer": "wait=2"})
    order_id, answer = service.post_waiting()

    change(service.database, orders, bad, ledger="{", version=2)
    service.receive(order_id, reserved(order_id).message)

    assert answer.result(5).status_code == 201
    assert [error["order_id"] for error in log.errors()] == [bad]
