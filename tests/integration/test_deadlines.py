"""What time decides, on both databases: reminders, expiry, postponed deadlines, repeated compensations."""

import contextlib
import json
from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from order_service import handlers
from order_service.contract.envelope import Delivery, rejection
from order_service.contract.outgoing import dead_letter
from order_service.contract.topology import DEAD_LETTER_EXCHANGE, MENU
from order_service.domain.order import State
from order_service.process import utc_now
from order_service.storage.bulk import Take
from order_service.storage.database import Database
from order_service.storage.tables import compensations, orders, outbox
from order_service.unit_of_work import unit_of_work
from publishers import deadlines
from tests import builders
from tests.builders import NOW
from tests.http_service import ServiceWith
from tests.integration import core
from tests.integration.core import LATER, Eventually, Log, completed, rejected, reserved

REPLY, PAY = timedelta(seconds=30), timedelta(seconds=900)
MOMENT = timedelta(microseconds=1)
LIFETIME = builders.policy().lifetime


def pass_at(database: Database, now: datetime) -> list[dict[str, Any]]:
    """The events of the deadlines passed at this moment; they are removed from the outbox."""
    core.pass_deadlines(database, now)
    sent = core.unsent_events(database)
    core.clear_outbox(database)
    return sent


def repeat_at(database: Database, now: datetime) -> list[dict[str, Any]]:
    """The events of the compensations repeated at this moment; they are removed from the outbox."""
    with core.unit_of_work(database, now=now) as work:
        handlers.repeat_compensations(work, Take(100))
    sent = core.unsent_events(database)
    core.clear_outbox(database)
    return sent


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


# Reminders and expiry.


def test_menu_is_reminded_under_the_same_id_until_the_order_expires_with_a_null_release(database: Database) -> None:
    # given
    [order_id] = core.place(database, reminders=2)
    [created] = core.unsent_events(database)
    core.clear_outbox(database)
    assert pass_at(database, NOW + REPLY - MOMENT) == []

    # when
    for turn in (1, 2):
        [reminder] = pass_at(database, NOW + turn * REPLY)
        assert (reminder["id"], reminder["type"], reminder["sequence"]) == (created["id"], "OrderCreated", "0000000001")
        assert reminder["data"] == created["data"]
        assert pass_at(database, NOW + turn * REPLY) == []
    failed, release = pass_at(database, NOW + 3 * REPLY)

    # then
    assert (failed["type"], failed["data"]["reason"], failed["sequence"]) == ("OrderFailed", "expired", "0000000002")
    assert (release["type"], release["data"]["reservation_id"]) == ("StockReleaseRequested", None)
    assert release["sequence"] == "0000000002"
    assert core.get(database, order_id).due_at is None
    assert pass_at(database, LATER) == []
    history = [("MenuReminder", None), ("MenuReminder", None), ("MenuDeadline", None)]
    assert core.history_of(database, order_id) == history


def test_cancelled_order_sends_no_reminders_but_its_null_release_in_time(database: Database) -> None:
    [order_id] = core.place(database, reminders=2)
    core.cancel(database, order_id)
    core.clear_outbox(database)

    assert pass_at(database, NOW + REPLY) == []
    assert pass_at(database, NOW + 2 * REPLY) == []
    [release] = pass_at(database, NOW + 3 * REPLY)

    assert (release["type"], release["data"]["reservation_id"]) == ("StockReleaseRequested", None)
    assert release["data"]["reason"] == "cancelled"
    assert core.get(database, order_id).state is State.CANCELLED
    assert pass_at(database, LATER) == []


def test_payment_is_requested_again_under_the_same_id_halfway_to_its_deadline(database: Database) -> None:
    # given
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id))
    [requested] = core.unsent_events(database)
    # The second reservation changes the order: its version is not the event's sequence any more.
    core.apply(database, reserved(order_id, "R2", id="menu-2"))
    core.clear_outbox(database)
    assert pass_at(database, NOW + PAY / 2 - MOMENT) == []

    # when
    [reminder] = pass_at(database, NOW + PAY / 2)

    # then
    assert (reminder["id"], reminder["sequence"]) == (requested["id"], requested["sequence"])
    assert reminder["data"] == requested["data"]
    assert datetime.fromisoformat(reminder["data"]["pay_by"]) == NOW + PAY
    assert pass_at(database, NOW + PAY - MOMENT) == []
    assert types(pass_at(database, NOW + PAY)) == ["OrderFailed", "StockReleaseRequested"]
    assert [type for type, _ in core.history_of(database, order_id)][-2:] == ["PaymentReminder", "PaymentDeadline"]


def test_paid_order_is_not_requested_again(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id), completed(order_id))
    core.clear_outbox(database)

    assert pass_at(database, NOW + PAY / 2) == pass_at(database, LATER) == []


def test_one_transaction_passes_at_most_the_limit(database: Database) -> None:
    core.place_sent(database, 250, reminders=0)

    assert [core.pass_deadlines(database, limit=100) for _ in range(3)] == [100, 100, 50]

    assert len(core.unsent_events(database, "OrderFailed")) == 250


# Deadlines whose own event is still in the outbox.


def test_menu_deadline_is_postponed_with_its_event_while_that_is_unsent(database: Database) -> None:
    [order_id] = core.place(database, reminders=3)

    core.pass_deadlines(database, LATER)

    [unsent] = core.unsent_events(database)
    assert (unsent["type"], unsent["sequence"]) == ("OrderCreated", "0000000001")
    assert datetime.fromisoformat(unsent["data"]["reply_by"]) == LATER + 4 * REPLY
    postponed = core.get(database, order_id)
    assert (postponed.due_at, postponed.reminders_left) == (LATER + REPLY, 3)
    assert postponed.state is State.AWAITING_MENU
    assert core.history_of(database, order_id) == []


def test_unsent_event_of_a_former_version_whose_sequence_is_a_number_is_postponed(database: Database) -> None:
    core.place(database)
    [row] = core.rows(database, outbox)
    with database.writing() as connection:
        former = json.dumps(json.loads(row.body) | {"sequence": 1}).encode()
        connection.execute(sa.update(outbox).values(body=former))

    core.pass_deadlines(database, LATER)

    [unsent] = core.unsent_events(database)
    assert unsent["sequence"] == "0000000001"
    assert datetime.fromisoformat(unsent["data"]["reply_by"]) == LATER + 4 * REPLY


def test_payment_deadline_is_postponed_with_its_event_while_that_is_unsent(database: Database) -> None:
    [order_id] = core.place_sent(database)
    # The second reservation changes the order: its version is not the event's sequence any more.
    core.apply(database, reserved(order_id), reserved(order_id, "R2", id="menu-2"))
    requested, _ = core.unsent_events(database)

    core.pass_deadlines(database, LATER)

    unsent, _ = core.unsent_events(database)
    assert (unsent["id"], unsent["sequence"]) == (requested["id"], "0000000002")
    assert datetime.fromisoformat(unsent["data"]["pay_by"]) == LATER + PAY
    assert core.get(database, order_id).due_at == LATER + PAY / 2
    core.clear_outbox(database)
    assert types(pass_at(database, LATER + PAY / 2)) == ["PaymentRequested"]
    assert pass_at(database, LATER + PAY - MOMENT) == []
    assert types(pass_at(database, LATER + PAY)) == ["OrderFailed", "StockReleaseRequested"]
    assert core.history_of(database, order_id)[-1][0] == "PaymentDeadline"


def test_postponing_leaves_a_dead_letter_with_the_event_id_unchanged(database: Database) -> None:
    [order_id] = core.place(database)
    event_id = core.get(database, order_id).event_id("OrderCreated")
    delivery = Delivery(MENU.name, "menu.reserved", b"{", {"message_id": event_id})
    core.add_to_outbox(database, [dead_letter(rejection(delivery, "malformed", "body", "is not JSON"), NOW)])

    core.pass_deadlines(database, LATER)

    [letter] = core.rows(database, outbox, outbox.c.exchange == DEAD_LETTER_EXCHANGE)
    assert letter.body == b"{"


# Events that the broker returned, and the end of an order's lifetime.


def test_returned_order_created_holds_no_deadline(database: Database) -> None:
    [order_id] = core.place(database, reminders=1)
    core.note_returned(database)

    core.pass_deadlines(database, NOW + REPLY + MOMENT)
    [unsent] = core.unsent_events(database)
    core.pass_deadlines(database, NOW + 2 * REPLY + MOMENT)

    # The reminder is the row that waits for a queue; its reply_by stays true.
    assert datetime.fromisoformat(unsent["data"]["reply_by"]) == NOW + 2 * REPLY + MOMENT
    assert core.get(database, order_id).reason == "expired"
    assert types(core.unsent_events(database)) == ["OrderCreated", "OrderFailed", "StockReleaseRequested"]


def test_returned_payment_requested_holds_no_deadline(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id))
    core.note_returned(database)

    core.pass_deadlines(database, NOW + PAY / 2)
    [unsent] = core.unsent_events(database)
    core.pass_deadlines(database, NOW + PAY)

    # The reminder is the row that waits for a queue.
    assert (unsent["type"], datetime.fromisoformat(unsent["data"]["pay_by"])) == ("PaymentRequested", NOW + PAY)
    assert core.get(database, order_id).reason == "expired"


@pytest.mark.parametrize("replies", [[], [completed], [reserved]], ids=["unanswered", "prepaid", "priced"])
def test_unsent_order_is_postponed_until_its_lifetime_ends_and_then_expires_with_its_events_dropped(
    replies: list[Any], database: Database
) -> None:
    # given
    [order_id] = core.place(database)
    core.apply(database, *[reply(order_id) for reply in replies])
    for hours in range(1, 24):
        core.pass_deadlines(database, NOW + timedelta(hours=hours))
    core.pass_deadlines(database, NOW + LIFETIME - REPLY)
    due_at = core.get(database, order_id).due_at
    assert due_at
    assert NOW + LIFETIME - REPLY < due_at <= NOW + LIFETIME
    *_, unsent = core.unsent_events(database)
    assert datetime.fromisoformat(unsent["data"].get("reply_by") or unsent["data"]["pay_by"]) == NOW + LIFETIME

    # when
    core.pass_deadlines(database, NOW + LIFETIME - MOMENT)
    assert core.get(database, order_id).state.status == "pending"
    core.pass_deadlines(database, NOW + LIFETIME)

    # then
    assert core.get(database, order_id).reason == "expired"
    refund = ["RefundRequested"] if completed in replies else []
    assert types(core.unsent_events(database)) == ["OrderFailed", *refund, "StockReleaseRequested"]


def test_order_with_reminders_left_expires_at_the_end_of_its_lifetime(database: Database) -> None:
    [order_id] = core.place_sent(database)

    core.pass_deadlines(database, NOW + LIFETIME)

    assert core.get(database, order_id).reason == "expired"


def test_payment_deadline_of_a_late_reservation_is_the_end_of_the_lifetime(database: Database) -> None:
    [order_id] = core.place_sent(database)

    core.apply(database, reserved(order_id), now=NOW + LIFETIME - REPLY)

    [requested] = core.unsent_events(database)
    assert datetime.fromisoformat(requested["data"]["pay_by"]) == NOW + LIFETIME
    assert core.get(database, order_id).due_at == NOW + LIFETIME - REPLY / 2
    core.clear_outbox(database)
    [reminder] = pass_at(database, NOW + LIFETIME - REPLY / 2)
    assert reminder["data"] == requested["data"]
    assert types(pass_at(database, NOW + LIFETIME)) == ["OrderFailed", "StockReleaseRequested"]


# Compensations.


def failed_with_refund(database: Database, count: int = 1) -> list[int]:
    """Failed orders, each with a refund requested at NOW."""
    ids = core.place_sent(database, count)
    core.apply(database, *[reply for id in ids for reply in (completed(id), rejected(id))])
    core.clear_outbox(database)
    return ids


def test_compensation_is_repeated_under_its_id_with_growing_pauses_until_confirmed(database: Database) -> None:
    # given
    [order_id] = failed_with_refund(database)
    [refund] = core.compensation_rows(database)
    assert repeat_at(database, refund.due_at - MOMENT) == []

    # when
    pauses, before = [], NOW
    for attempt in range(2, 10):
        [row] = core.compensation_rows(database)
        pauses.append((row.due_at - before).total_seconds())
        before = row.due_at
        assert [event["id"] for event in repeat_at(database, before)] == [refund.id]
        assert repeat_at(database, before) == []
        assert core.compensation_rows(database)[0].attempts == attempt

    # then: each pause counts from the attempt before it
    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600]
    core.apply(database, core.refunded(order_id, refund.id))
    assert repeat_at(database, before + timedelta(days=1)) == []


def test_repeated_compensation_has_the_same_data_and_sequence(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id), completed(order_id, amount=Decimal("1.5")))
    first = {event["id"]: event for event in core.unsent_events(database, "RefundRequested", "StockReleaseRequested")}
    # The version of the order rises.
    core.apply(database, completed(order_id, "P2", id="pay-2"))
    core.clear_outbox(database)

    repeated = {event["id"]: event for event in repeat_at(database, LATER)}

    assert len(repeated) == 3
    for id, event in first.items():
        assert (repeated[id]["data"], repeated[id]["sequence"]) == (event["data"], event["sequence"])


# The thread.


def make_due(database: Database) -> None:
    """Make every unconfirmed compensation due now."""
    with database.writing() as connection:
        connection.execute(sa.update(compensations).values(due_at=NOW))


def test_compensation_without_a_confirmation_is_reported_from_the_third_request_on(
    database: Database, passing: Any, log: Log, eventually: Eventually
) -> None:
    [order_id] = failed_with_refund(database)

    with passing(database, compensation_attempts=3):
        for attempts in (2, 3, 4):
            eventually(lambda n=attempts: core.compensation_rows(database)[0].attempts == n, f"request {attempts}")
            core.clear_outbox(database)
            make_due(database)
            eventually(lambda n=attempts: len(log.errors()) >= n - 2, "the reports so far")

    reports = [(report["order_id"], report["attempts"]) for report in log.errors()]
    assert reports[:2] == [(order_id, 3), (order_id, 4)]


def test_unsent_compensation_is_neither_repeated_nor_reported_as_unconfirmed(
    database: Database, passing: Any, log: Log, eventually: Eventually
) -> None:
    failed_with_refund(database)

    with passing(database, compensation_attempts=3):
        for _ in range(4):
            make_due(database)
            eventually(lambda: core.compensation_rows(database)[0].due_at > NOW, "it to be put off")

    # The second request is still in the outbox, once.
    [row] = core.compensation_rows(database)
    assert row.attempts == 2
    assert [event["id"] for event in core.unsent_events(database, "RefundRequested")].count(row.id) == 1
    assert log.errors() == []


def test_two_instances_at_once_do_everything_once(
    database_url: str, passing: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setattr(deadlines, "LIMIT", 7)
    with core.opened(database_url) as one, core.opened(database_url) as two:
        failed_with_refund(one, 60)
        expiring = core.place_sent(one, 60, reminders=0)
        reminded = core.place_sent(one, 60, reminders=1, now=utc_now() - 2 * REPLY)
        unpaid = core.place_sent(one, 60)
        core.apply(one, *[reserved(id) for id in unpaid])
        core.clear_outbox(one)

        # when
        with passing(one, menu_reply_seconds=600), passing(two, menu_reply_seconds=600):
            eventually(lambda: core.states(one, expiring + unpaid) == {"failed"}, "orders to expire")
            eventually(lambda: len(core.unsent_events(one, "RefundRequested")) >= 60, "refunds to be repeated")
            eventually(lambda: len(core.unsent_events(one, "OrderCreated")) >= 60, "reminders")

        # then
        sent = core.unsent_events(one)
        assert Counter(types(sent)) == {
            "OrderFailed": 120, "StockReleaseRequested": 120, "OrderCreated": 60, "RefundRequested": 60,
        }  # fmt: skip
        assert max(Counter(event["id"] for event in sent).values()) == 1
        assert all(core.history_of(one, id) == [("MenuReminder", None)] for id in reminded)


def test_deadlines_are_passed_after_an_outage_of_the_database(
    database_url: str, passing: Any, log: Log, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.shorten_lock_wait(monkeypatch)
    with core.opened(database_url) as database, contextlib.ExitStack() as outage:
        ids = core.place_sent(database, 3, reminders=0)
        outage.enter_context(core.database_unreachable(database_url))

        attempts: list[object] = []
        # On PostgreSQL no connection succeeds; on SQLite only the transaction fails.
        sa.event.listen(database.engine, "handle_error", attempts.append)
        sa.event.listen(database.engine, "checkout", lambda connection, *_: attempts.append(connection))

        with passing(database):
            warning = "due deadlines and compensations could not be processed, retrying"
            eventually(lambda: log.count(warning), "the outage to be logged")
            eventually(lambda: len(attempts) > 5, "more attempts")
            outage.close()
            eventually(lambda: core.states(database, ids) == {"failed"}, "the orders to expire")
        assert log.count(warning) == 1


def test_order_that_is_too_old_expires_regardless_of_its_deadline(
    database: Database, passing: Any, eventually: Eventually
) -> None:
    """An order of an older version, or of a longer ORDER_LIFETIME_SECONDS."""
    old, young = core.place_sent(database), core.place_sent(database, now=utc_now())
    with database.writing() as connection:
        connection.execute(sa.update(orders).values(due_at=utc_now() + timedelta(days=1)))

    with passing(database):
        eventually(lambda: core.states(database, old) == {"failed"}, "the old order to expire")

    assert core.states(database, young) == {"awaiting_menu"}


@pytest.mark.parametrize("replies", [[], [reserved]], ids=["order.created", "payment.requested"])
def test_order_whose_event_no_queue_receives_expires_by_its_deadlines(
    replies: list[Any], wire: core.Wire, service_with: ServiceWith, relaying: core.Start, database: Database,
    passing: Any, eventually: Eventually,
) -> None:  # fmt: skip
    service = service_with(menu_reply_seconds=0.3, menu_reminders=1, payment_seconds=0.3, wait_seconds=0)
    if replies:
        wire.listen("order.created")

    with relaying(), passing(database, menu_reply_seconds=0.3, menu_reminders=1, payment_seconds=0.3):
        order_id = service.order_in(State.AWAITING_MENU)
        for reply in replies:
            with unit_of_work(database, builders.policy(pay_seconds=0.3)) as work:
                handlers.apply_replies(work, [reply(order_id)])
        eventually(lambda: core.get(database, order_id).reason == "expired", "the order to expire", seconds=20)
