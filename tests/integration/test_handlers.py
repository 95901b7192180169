"""The use cases on both databases: what one transaction writes, what counts once, what is rejected, concurrency."""

import contextlib
import random
import threading
from collections import Counter
from datetime import timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa

from order_service import handlers
from order_service.domain.messages import Item, MenuReserved
from order_service.domain.order import RELEASE, State
from order_service.storage import orders as order_rows
from order_service.storage.database import Database
from order_service.storage.history import MAX_ENTRIES
from order_service.storage.orders import UnreadableOrder
from order_service.storage.tables import order_history, orders, outbox
from tests import builders
from tests.builders import NOW
from tests.integration import core
from tests.integration.core import completed, refunded, released, reserved


def test_placed_order_and_its_event_are_written_together(database: Database) -> None:
    [order_id] = core.place(database, reminders=3, tracestate="vendor=1")

    placed = core.get(database, order_id)
    assert (placed.state, placed.version, placed.menu_ids) == (State.AWAITING_MENU, 1, (1, 2))
    assert (placed.created_at, placed.due_at) == (NOW, NOW + timedelta(seconds=30))
    assert core.history_of(database, order_id) == []
    [event] = core.unsent_events(database)
    assert (event["type"], event["id"]) == ("OrderCreated", placed.event_id("OrderCreated"))
    assert event["sequence"] == "0000000001"
    assert event["data"]["lines"] == [{"menu_id": 1, "quantity": 1}, {"menu_id": 2, "quantity": 1}]
    assert event["data"]["reply_by"] == "2025-03-01T12:02:00Z"
    assert (event["traceparent"], event["tracestate"]) == (builders.TRACE, "vendor=1")
    [row] = core.rows(database, outbox)
    assert (row.traceparent, row.tracestate) == (builders.TRACE, "vendor=1")


class Failure(Exception):
    """An error before the commit."""


def test_rollback_undoes_all_that_a_transaction_has_written(database: Database) -> None:
    [order_id] = core.place_sent(database)

    with contextlib.suppress(Failure), core.unit_of_work(database) as work:
        handlers.place_orders(work, [builders.placement()])
        handlers.apply_replies(work, [reserved(order_id)])
        work.write()
        raise Failure

    assert core.get(database, order_id).state is State.AWAITING_MENU
    assert [core.count(database, table) for table in (orders, order_history, outbox)] == [1, 0, 0]


def test_order_that_cannot_be_read_blocks_no_later_transaction(database: Database) -> None:
    # given
    first, unreadable, last = core.place_sent(database, 3)
    with database.writing() as connection:
        connection.execute(sa.update(orders).where(orders.c.id == unreadable).values(ledger="{"))

    # when
    with pytest.raises(UnreadableOrder, match="EOF") as failed:
        core.apply(database, *map(reserved, (first, unreadable, last)))
    with core.opened(database.url) as other:
        core.place(other)

    # then: although the exception keeps the frames of the failed transaction alive
    assert core.apply(database, reserved(first), reserved(last)) == []
    assert failed.value.__traceback__


def test_order_is_read_from_the_database_as_it_was_written(database: Database) -> None:
    [order_id] = core.place(database)
    sate = Item(2, "Saté ayam \N{CUSTARD}", Decimal("0.0001"), 0)
    message = MenuReserved((Item(1, "x" * 500, Decimal("999999999.9999"), 3), sate), "réservation")

    core.apply(database, builders.reply(order_id, message))

    found = core.get(database, order_id)
    assert (found.state, found.items, found.total_price) == (State.AWAITING_PAYMENT, message.items, Decimal(10**9))
    # The reminder is halfway to `pay_by`.
    assert (found.reservations, found.due_at) == (("réservation",), NOW + timedelta(seconds=450))

    core.apply(database, completed(order_id, amount=Decimal(10**9)), now=core.LATER)

    paid = core.get(database, order_id)
    assert (paid.state, paid.paid_at, paid.due_at, paid.version) == (State.PAID, core.LATER, None, 3)


def test_repeated_message_is_applied_once_within_a_batch_and_across_batches(database: Database) -> None:
    [order_id] = core.place_sent(database)
    batch = [reserved(order_id), reserved(order_id), completed(order_id), completed(order_id)]

    assert core.apply(database, *batch) == []
    assert core.apply(database, *batch[::-1]) == []

    assert core.get(database, order_id).state is State.PAID
    assert core.compensation_rows(database) == []
    history = [("MenuReserved", "menu-1"), ("PaymentCompleted", "pay-1")]
    assert core.history_of(database, order_id) == history
    # A new message that changes nothing is recorded too.
    core.apply(database, reserved(order_id, id="menu-2"))
    assert core.history_of(database, order_id) == [*history, ("MenuReserved", "menu-2")]


@pytest.mark.parametrize("batches", [1, 2])
def test_message_with_the_id_of_another_one_is_rejected_and_not_taken_for_a_repeat(
    database: Database, batches: int
) -> None:
    # given
    [order_id] = core.place_sent(database)
    order = core.get(database, order_id)
    first, second = (order.compensation_id(RELEASE, id) for id in ("R2", "R3"))
    core.apply(database, *(reserved(order_id, id, id=id) for id in ("R1", "R2", "R3")))
    pairs = [
        (completed(order_id, "P1", id="SAME"), completed(order_id, "P2", id="SAME")),
        (completed(order_id, "P3", id="3"), completed(order_id, "P3", Decimal(5), id="3")),
        (reserved(order_id, "R4", id="SAME"), reserved(order_id, "R5", id="SAME")),
        (released(order_id, first, id="SAME"), released(order_id, second, id="SAME")),
    ]

    # when
    if batches == 1:
        found = core.apply(database, *(reply for pair in pairs for reply in pair))
    else:
        found = [each for batch in zip(*pairs, strict=True) for each in core.apply(database, *batch)]

    # then
    assert [(each.message_id, each.type, each.code, each.order_id) for each in found] == [
        (reply.message_id, reply.type, "conflicting_id", order_id) for _, reply in pairs
    ]
    assert all("send this message again under a new id" in str(each) for each in found)
    changed = core.get(database, order_id)
    assert [payment.id for payment in changed.payments] == ["P1", "P3"]
    assert changed.reservations == ("R1", "R2", "R3", "R4")
    assert [row.id for row in core.compensation_rows(database) if row.confirmed_at] == [first]

    # and: once its sender has given it an id of its own, it is applied
    assert core.apply(database, completed(order_id, "P2", id="new")) == []
    assert [payment.id for payment in core.get(database, order_id).payments] == ["P1", "P3", "P2"]


def test_message_recorded_without_a_digest_makes_every_later_one_with_its_id_a_repeat(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id), completed(order_id))
    with database.writing() as connection:
        connection.execute(sa.update(order_history).values(digest=None))

    assert core.apply(database, completed(order_id), completed(order_id, "P2"), reserved(order_id, "R2")) == []

    assert core.get(database, order_id).version == 3


def test_message_id_is_no_repeat_with_another_type_or_for_another_order(database: Database) -> None:
    [first, second] = core.place_sent(database, 2)

    core.apply(database, *[reply for id in (first, second) for reply in (reserved(id, id="1"), completed(id, id="1"))])

    assert core.states(database, [first, second]) == {"paid"}


def test_rejected_messages_are_returned_and_the_rest_of_the_batch_is_applied(database: Database) -> None:
    [first, second] = core.place_sent(database, 2)
    incomplete = builders.reply(first, MenuReserved((builders.NASI_AYAM,), "r"), id="incomplete")
    unknown, unrequested = reserved(999, id="unknown"), released(first, "not requested", id="unrequested")

    found = core.apply(database, incomplete, reserved(second), unknown, unrequested, reserved(first, id="good"))

    assert [(each.message_id, each.code) for each in found] == [
        ("incomplete", "invalid"), ("unknown", "unknown_order"), ("unrequested", "invalid"),
    ]  # fmt: skip
    assert "1, 2" in str(found[0])
    assert core.states(database, [first, second]) == {"awaiting_payment"}
    assert core.history_of(database, first) == [("MenuReserved", "good")]


def test_payments_and_reservations_beyond_a_hundred_are_rejected_and_the_order_stops_growing(
    database: Database,
) -> None:
    [order_id] = core.place_sent(database)
    core.cancel(database, order_id)
    payments = [completed(order_id, f"P{number}", id=f"pay-{number}") for number in range(150)]
    reservations = [reserved(order_id, f"R{number}", id=f"menu-{number}") for number in range(150)]

    found = core.apply(database, *payments, *reservations)

    assert [each.message_id for each in found] == [reply.message_id for reply in payments[100:] + reservations[100:]]
    assert {(each.code, each.order_id) for each in found} == {("too_many", order_id)}
    order = core.get(database, order_id)
    assert (order.state, len(order.payments), len(order.reservations)) == (State.CANCELLED, 100, 100)
    assert len(core.compensation_rows(database)) == len(core.history_of(database, order_id)) - 1 == 200
    # Rejected ones are not recorded; those that were applied stay repeats.
    assert core.apply(database, payments[0], reservations[0]) == []


def test_history_of_an_order_stops_growing_by_messages_that_change_nothing(database: Database) -> None:
    # given
    order_id, other = core.place_sent(database, 2)
    core.cancel(database, order_id)
    failed = [builders.reply(order_id, builders.payment_failed(), id=f"failed-{number}") for number in range(1200)]

    # when
    for start in range(0, len(failed), 400):
        assert core.apply(database, *failed[start : start + 400], reserved(other, id=f"menu-{start}")) == []

    # then
    assert len(core.history_of(database, order_id)) == MAX_ENTRIES
    assert len(core.history_of(database, other)) == 3
    # What changes the order is recorded, and a repeat stays a repeat whether its message is recorded or not.
    changing = [completed(order_id), reserved(order_id)]
    for _ in range(2):
        assert core.apply(database, *changing, failed[0], failed[-1]) == []
    assert core.history_of(database, order_id)[MAX_ENTRIES:] == [
        ("PaymentCompleted", "pay-1"),
        ("MenuReserved", "menu-1"),
    ]
    assert len(core.compensation_rows(database)) == 2
    # A confirmation that is not recorded counts.
    [release] = [row for row in core.compensation_rows(database) if row.type == RELEASE]
    core.apply(database, released(order_id, release.id))
    assert len(core.history_of(database, order_id)) == MAX_ENTRIES + 2
    assert [row.id for row in core.compensation_rows(database) if row.confirmed_at] == [release.id]


def test_compensations_are_rows_until_the_sibling_confirms_them(database: Database) -> None:
    # given
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id), completed(order_id, amount=Decimal(1)))

    # Both databases show an amount in the same form.
    assert core.get(database, order_id).detail == "paid 1, the total is 38000"
    requested = {row.type: row for row in core.compensation_rows(database)}
    release, refund = requested["StockReleaseRequested"], requested["RefundRequested"]
    assert (release.subject, release.amount, refund.subject, refund.amount) == ("R1", None, "P1", Decimal(1))
    for row in (release, refund):
        assert (row.order_id, row.reason, row.sequence, row.attempts) == (order_id, "amount_mismatch", 3, 1)
        assert row.due_at == NOW + timedelta(seconds=30)
    by_id = {event["id"]: event["data"] for event in core.unsent_events(database)}
    assert by_id[release.id]["release_id"] == release.id
    assert by_id[refund.id]["refund_id"] == refund.id

    # when
    later = NOW + timedelta(minutes=1)
    core.apply(database, released(order_id, release.id), now=later)
    core.apply(database, released(order_id, release.id, id="again"), now=later + timedelta(minutes=1))

    # then
    confirmed = {row.type: (row.confirmed_at, row.due_at) for row in core.compensation_rows(database)}
    assert confirmed["StockReleaseRequested"] == (later, None)
    assert confirmed["RefundRequested"] == (None, NOW + timedelta(seconds=30))
    core.apply(database, refunded(order_id, refund.id), now=later)
    assert all(row.confirmed_at == later for row in core.compensation_rows(database))


def test_compensation_and_its_confirmation_may_be_in_one_batch(database: Database) -> None:
    [order_id] = core.place_sent(database)
    release_id = core.get(database, order_id).compensation_id(RELEASE, "R2")
    second = reserved(order_id, "R2", id="menu-2")

    assert core.apply(database, reserved(order_id), second, released(order_id, release_id)) == []

    [release] = core.compensation_rows(database)
    assert (release.id, release.confirmed_at, release.due_at) == (release_id, NOW, None)


def test_concurrent_batches_over_the_same_orders_lose_and_repeat_nothing(database: Database) -> None:
    # given
    ids = core.place_sent(database, 12)
    replies = [
        reply
        for id in ids
        for reply in (
            reserved(id), reserved(id, "R2", id="menu-2"), completed(id), completed(id, "P2", id="pay-2"),
            completed(id, "P3", id="pay-3"),
        )
    ]  # fmt: skip
    ready = threading.Barrier(4)

    def apply_all_shuffled(seed: int) -> None:
        shuffled = random.Random(seed).sample(replies, len(replies))
        ready.wait()
        for start in range(0, len(shuffled), 10):
            assert core.apply(database, *shuffled[start : start + 10]) == []

    # when
    core.run_in_threads(*(lambda seed=seed: apply_all_shuffled(seed) for seed in range(4)))

    # then
    for id in ids:
        found = core.get(database, id)
        assert (found.state, sorted(map(str, found.reservations))) == (State.PAID, ["R1", "R2"])
        assert (len(found.released), len(found.refunded), len(found.payments)) == (1, 2, 3)
        counts = Counter(type for type, _ in core.history_of(database, id))
        assert counts == {"MenuReserved": 2, "PaymentCompleted": 3}
    assert len(core.compensation_rows(database)) == 3 * len(ids)
    assert len(core.unsent_events(database, "OrderPaid")) == len(ids)


def test_transactions_that_lock_the_same_orders_in_opposite_order_do_not_deadlock(database: Database) -> None:
    ids = core.place_sent(database, 30)

    def lock_repeatedly(wanted: list[int]) -> None:
        for _ in range(40):
            with database.writing() as connection:
                assert len(order_rows.lock_orders(connection, wanted)) == len(ids)

    core.run_in_threads(lambda: lock_repeatedly(ids), lambda: lock_repeatedly(ids[::-1]))
