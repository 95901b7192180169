"""What time alone decides, on both databases: reminders, expiry, moved deadlines, repeated compensations."""

from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import CapturingLogger

from order_service import handlers, unit_of_work
from order_service.contract.envelope import Delivery, rejection
from order_service.contract.outgoing import dead_letter
from order_service.domain import order
from order_service.domain.messages import Cancel
from order_service.domain.order import State
from order_service.storage import history
from order_service.storage import orders as order_rows
from order_service.storage.database import Database
from order_service.storage.tables import orders, outbox
from publishers import deadlines
from publishers.deadlines import Deadlines
from tests.integration import core
from tests.integration.core import LATER, NOW, Eventually, completed, rejected, reserved

REPLY, PAY = timedelta(seconds=30), timedelta(seconds=900)


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    """What the deadlines' loop says."""
    return core.recorded("publishers.deadlines", monkeypatch)


def pass_at(database: Database, now: datetime) -> list[dict[str, Any]]:
    """What leaves when the deadlines are passed at this moment; it is gone from the outbox afterwards."""
    with core.unit_of_work(database, now=now) as work:
        handlers.pass_deadlines(work, limit=100)
    sent = core.leaving(database)
    core.clear_outbox(database)
    return sent


def repeat_at(database: Database, now: datetime) -> list[str]:
    """The ids that are asked for again at this moment; they have left afterwards."""
    with core.unit_of_work(database, now=now) as work:
        handlers.repeat_compensations(work, limit=100)
    sent = [event["id"] for event in core.leaving(database)]
    core.clear_outbox(database)
    return sent


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def story(database: Database, order_id: int) -> list[str]:
    with database.reading() as connection:
        return [
            entry.type
            for entry in history.read_history(connection, order_rows.read_orders(connection, [order_id])[order_id])
        ]


def cancel(database: Database, order_id: int, now: datetime = NOW) -> None:
    with core.unit_of_work(database, now=now) as work:
        handlers.change_order(work, order_id, Cancel())
    core.clear_outbox(database)


def test_menu_is_reminded_under_the_same_id_until_the_order_expires_with_a_null_release(database: Database) -> None:
    [order_id] = core.place(database, reminders=2)
    [created] = core.leaving(database)
    core.clear_outbox(database)

    assert pass_at(database, NOW + REPLY - timedelta(microseconds=1)) == []
    for turn in (1, 2):
        [reminder] = pass_at(database, NOW + turn * REPLY)
        assert (reminder["id"], reminder["type"], reminder["sequence"]) == (created["id"], "OrderCreated", 1)
        assert reminder["data"] == created["data"]
        assert pass_at(database, NOW + turn * REPLY) == []
    failed, release = pass_at(database, NOW + 3 * REPLY)

    assert (failed["type"], failed["data"]["reason"], failed["sequence"]) == ("OrderFailed", "expired", 2)
    assert (release["type"], release["data"]["reservation_id"]) == ("StockReleaseRequested", None)
    assert release["sequence"] == 2
    assert core.get(database, order_id).due_at is None
    assert pass_at(database, LATER) == []
    assert story(database, order_id) == ["OrderPlaced", "MenuReminder", "MenuReminder", "MenuDeadline"]


def test_prepaid_order_that_expires_gives_the_payment_back(database: Database) -> None:
    [order_id] = core.place_sent(database, reminders=0)
    core.apply(database, completed(order_id))

    sent = pass_at(database, LATER)

    assert types(sent) == ["OrderFailed", "RefundRequested", "StockReleaseRequested"]
    assert {(row.type, row.subject) for row in core.given_back(database)} == {
        ("StockReleaseRequested", None),
        ("RefundRequested", "p1"),
    }


def test_after_an_end_reminders_stop_but_the_null_release_goes_out_in_time(database: Database) -> None:
    [order_id] = core.place_sent(database, reminders=2)
    cancel(database, order_id)

    assert pass_at(database, NOW + REPLY) == []
    assert pass_at(database, NOW + 2 * REPLY) == []
    [release] = pass_at(database, NOW + 3 * REPLY)

    assert (release["type"], release["data"]["reservation_id"]) == ("StockReleaseRequested", None)
    assert release["data"]["reason"] == "cancelled"
    assert core.get(database, order_id).state is State.CANCELLED
    assert pass_at(database, LATER) == []


@pytest.mark.parametrize("answer", [reserved, rejected])
def test_answer_after_an_end_disarms_the_null_release(answer: Any, database: Database) -> None:
    [order_id] = core.place_sent(database, reminders=0)
    cancel(database, order_id)
    core.apply(database, answer(order_id))
    core.clear_outbox(database)

    assert pass_at(database, LATER) == []


def test_order_that_was_not_paid_in_time_expires_and_releases_its_reservation(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id))
    core.clear_outbox(database)

    assert pass_at(database, NOW + PAY - timedelta(microseconds=1)) == []
    failed, release = pass_at(database, NOW + PAY)

    assert (failed["type"], failed["data"]["reason"]) == ("OrderFailed", "expired")
    assert (release["type"], release["data"]["reservation_id"]) == ("StockReleaseRequested", "r1")
    assert story(database, order_id)[-1] == "PaymentDeadline"
    assert pass_at(database, LATER + PAY) == []


def test_menu_deadline_moves_and_renews_its_event_while_that_has_not_left(database: Database) -> None:
    [order_id] = core.place(database, reminders=3)

    with core.unit_of_work(database, now=LATER) as work:
        handlers.pass_deadlines(work, limit=100)

    [waiting] = core.leaving(database)
    assert (waiting["type"], waiting["sequence"]) == ("OrderCreated", 1)
    assert datetime.fromisoformat(waiting["data"]["reply_by"]) == LATER + 4 * REPLY
    moved = core.get(database, order_id)
    assert (moved.due_at, moved.reminders_left, moved.state) == (LATER + REPLY, 3, State.AWAITING_MENU)
    assert story(database, order_id) == ["OrderPlaced"]


def test_payment_deadline_moves_and_renews_its_event_while_that_has_not_left(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id))
    [requested] = core.leaving(database)

    with core.unit_of_work(database, now=LATER) as work:
        handlers.pass_deadlines(work, limit=100)

    [waiting] = core.leaving(database)
    assert (waiting["id"], waiting["sequence"]) == (requested["id"], 2)
    assert datetime.fromisoformat(waiting["data"]["pay_by"]) == LATER + PAY == core.get(database, order_id).due_at
    core.clear_outbox(database)
    assert types(pass_at(database, LATER + PAY)) == ["OrderFailed", "StockReleaseRequested"]


def test_renewed_event_keeps_its_sequence_when_the_order_has_changed_since(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id), reserved(order_id, "r2", id="menu-2"))

    with core.unit_of_work(database, now=LATER) as work:
        handlers.pass_deadlines(work, limit=100)

    sequences = {event["type"]: event["sequence"] for event in core.leaving(database)}
    assert sequences == {"PaymentRequested": 2, "StockReleaseRequested": 3}


def test_renewing_an_event_leaves_a_dead_letter_of_the_same_message_id_as_it_came(database: Database) -> None:
    [order_id] = core.place(database)
    same = {"message_id": core.get(database, order_id).event_id("OrderCreated")}
    delivery = Delivery("order-service.menu", "menu.reserved", b"{", same)
    core.add_to_outbox(database, [dead_letter(rejection(delivery, "malformed", "body", "is not JSON"))])

    with core.unit_of_work(database, now=LATER) as work:
        handlers.pass_deadlines(work, limit=100)

    [letter] = core.rows(database, outbox, outbox.c.exchange == "")
    assert letter.body == b"{"


def test_more_orders_are_due_than_one_transaction_takes(database: Database) -> None:
    core.place_sent(database, 250, reminders=0)

    passed = []
    with core.unit_of_work(database, now=LATER) as work:
        passed.append(handlers.pass_deadlines(work, limit=100))
    while passed[-1] == 100:
        with core.unit_of_work(database, now=LATER) as work:
            passed.append(handlers.pass_deadlines(work, limit=100))

    assert passed == [100, 100, 50]
    assert len(core.leaving(database, "OrderFailed")) == 250


def failed_with_refund(database: Database, count: int = 1) -> list[int]:
    """Orders that failed with one payment to give back, asked for at NOW."""
    ids = core.place_sent(database, count)
    core.apply(database, *[reply for id in ids for reply in (completed(id), rejected(id))])
    core.clear_outbox(database)
    return ids


def test_compensation_is_repeated_under_its_id_with_growing_pauses_until_confirmed(database: Database) -> None:
    [order_id] = failed_with_refund(database)
    [refund] = core.given_back(database)
    assert repeat_at(database, refund.due_at - timedelta(microseconds=1)) == []

    pauses, before = [], NOW
    for attempt in range(2, 10):
        [row] = core.given_back(database)
        pauses.append((row.due_at - before).total_seconds())
        before = row.due_at
        assert repeat_at(database, before) == [refund.id]
        assert repeat_at(database, before) == []
        assert core.given_back(database)[0].attempts == attempt

    # Each pause counts from the attempt before it.
    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600]
    core.apply(database, core.refunded(order_id, refund.id))
    assert repeat_at(database, before + timedelta(days=1)) == []


def test_repeated_compensation_says_what_it_said_first(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id), completed(order_id, amount=Decimal("1.5")))
    first = {event["id"]: event for event in core.leaving(database, "RefundRequested", "StockReleaseRequested")}
    # The order goes on: its version rises.
    core.apply(database, completed(order_id, "p2", id="pay-2"))
    core.clear_outbox(database)

    with core.unit_of_work(database, now=LATER) as work:
        handlers.repeat_compensations(work, limit=100)

    again = {event["id"]: event for event in core.leaving(database)}
    assert len(again) == 3
    for id, event in first.items():
        assert (again[id]["data"], again[id]["sequence"]) == (event["data"], event["sequence"])


def test_compensation_that_has_not_left_is_not_asked_for_again(database: Database) -> None:
    failed_with_refund(database)
    [refund] = core.given_back(database)
    with core.unit_of_work(database, now=LATER) as work:
        handlers.repeat_compensations(work, limit=100)
    assert [event["id"] for event in core.leaving(database)] == [refund.id]

    with core.unit_of_work(database, now=LATER + timedelta(days=1)) as work:
        handlers.repeat_compensations(work, limit=100)

    assert [event["id"] for event in core.leaving(database)] == [refund.id]
    assert core.given_back(database)[0].attempts == 2


def test_compensation_of_an_order_that_an_operator_deleted_does_not_stop_the_others(database: Database) -> None:
    deleted, kept = failed_with_refund(database, 2)
    refund_id = core.get(database, kept).compensation_id(order.REFUND, "p1")
    with database.writing() as connection:
        connection.execute(sa.delete(orders).where(orders.c.id == deleted))

    assert refund_id in repeat_at(database, LATER)


class Clock:
    """The time as the processes see it."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(NOW)
    monkeypatch.setattr(deadlines, "utc_now", clock)
    monkeypatch.setattr(unit_of_work, "utc_now", clock)
    monkeypatch.setattr(deadlines, "TICK_SECONDS", 0.02)
    return clock


NOWHERE = "amqp://guest:guest@127.0.0.1:1/"


def test_compensation_unconfirmed_for_too_long_is_reported(
    database: Database, time: Clock, log: CapturingLogger, eventually: Eventually
) -> None:
    [order_id] = failed_with_refund(database)
    settings = core.settings(NOWHERE, database.url, compensation_attempts=3)

    def reports() -> list[dict[str, Any]]:
        return [call.kwargs for call in log.calls if call.method_name == "error"]

    with core.running(lambda stop: Deadlines(settings, database, stop)):
        for attempts in (2, 3, 4):
            assert len(reports()) == max(0, attempts - 3)
            time.now += timedelta(hours=2)
            eventually(lambda n=attempts: core.given_back(database)[0].attempts == n, f"attempt {attempts}")
            core.clear_outbox(database)
        eventually(lambda: len(reports()) == 2, "it to be reported from the third on")

    assert [(report["order_id"], report["attempts"]) for report in reports()] == [(order_id, 3), (order_id, 4)]


def test_what_never_left_is_not_reported_as_unconfirmed(
    database: Database, time: Clock, log: CapturingLogger, eventually: Eventually
) -> None:
    failed_with_refund(database)
    settings = core.settings(NOWHERE, database.url, compensation_attempts=3)
    with core.running(lambda stop: Deadlines(settings, database, stop)):
        for _ in range(4):
            time.now += timedelta(hours=2)
            eventually(lambda: core.given_back(database)[0].due_at > time.now, "it to be put off")

    # It was asked for once and once more, and that second request still waits for the broker.
    assert core.given_back(database)[0].attempts == 2
    assert [call for call in log.calls if call.method_name == "error"] == []


def test_two_instances_at_once_do_each_thing_once(
    database_url: str, time: Clock, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "LIMIT", 7)
    with core.opened(database_url) as one, core.opened(database_url) as two:
        failed_with_refund(one, 60)
        expiring = core.place_sent(one, 60, reminders=0)
        reminded = core.place_sent(one, 60, reminders=1)
        unpaid = core.place_sent(one, 60)
        core.apply(one, *[reserved(id) for id in unpaid])
        core.clear_outbox(one)
        time.now = LATER

        settings = core.settings(NOWHERE, database_url)
        with (
            core.running(lambda stop: Deadlines(settings, one, stop)),
            core.running(lambda stop: Deadlines(settings, two, stop)),
        ):
            eventually(lambda: core.states(one, expiring + unpaid) == {"failed"}, "orders to expire")
            eventually(
                lambda: {row.attempts for row in core.given_back(one) if row.type == "RefundRequested"} == {2},
                "refunds to be asked for again",
            )
            eventually(lambda: len(core.leaving(one, "OrderCreated")) >= 60, "reminders")

        sent = core.leaving(one)
        assert Counter(types(sent)) == {
            "OrderFailed": 120,
            "StockReleaseRequested": 120,
            "OrderCreated": 60,
            "RefundRequested": 60,
        }
        assert max(Counter(event["id"] for event in sent).values()) == 1
        assert {tuple(story(one, id)) for id in reminded} == {("OrderPlaced", "MenuReminder")}


def test_deadlines_go_on_after_the_database_was_away(
    database_url: str, time: Clock, log: CapturingLogger, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.be_impatient(monkeypatch)
    with core.opened(database_url) as database:
        ids = core.place_sent(database, 3, reminders=0)
        settings = core.settings(NOWHERE, database_url)
        with core.running(lambda stop: Deadlines(settings, database, stop)):
            with core.database_away(database_url):
                time.now = LATER
                eventually(
                    lambda: core.said(log, "deadlines could not be passed, retrying"), "the trouble to be noticed"
                )
            eventually(lambda: core.states(database, ids) == {"failed"}, "the orders to expire")
