"""The use cases on both databases: what is written together, what counts once, what is refused, what runs at once."""

import contextlib
import random
import threading
from collections import Counter
from datetime import timedelta
from decimal import Decimal

import pytest

from order_service import handlers
from order_service.domain import order
from order_service.domain.messages import Cancel, Item, MenuReserved
from order_service.domain.order import State, UnknownOrder
from order_service.domain.saga import Outcome
from order_service.storage import history
from order_service.storage import orders as order_rows
from order_service.storage.database import Database
from order_service.storage.tables import order_history, orders, outbox
from tests import builders
from tests.integration import core
from tests.integration.core import NOW, TOTAL, completed, refunded, rejected, released, reserved


def story(database: Database, order_id: int) -> list[tuple[str, str | None]]:
    """Type and message id of everything that happened to an order."""
    with database.reading() as connection:
        return [
            (entry.type, entry.message_id)
            for entry in history.read_history(connection, order_rows.read_orders(connection, [order_id])[order_id])
        ]


def test_placed_order_its_history_and_its_event_are_written_together(database: Database) -> None:
    [order_id] = core.place(database, reminders=3)

    placed = core.get(database, order_id)
    assert (placed.state, placed.version, placed.menu_ids) == (State.AWAITING_MENU, 1, (1, 2))
    assert (placed.created_at, placed.due_at) == (NOW, NOW + timedelta(seconds=30))
    assert story(database, order_id) == [("OrderPlaced", None)]
    [event] = core.leaving(database)
    assert (event["type"], event["id"], event["sequence"]) == ("OrderCreated", placed.event_id("OrderCreated"), 1)
    assert event["data"]["lines"] == [{"menu_id": 1, "quantity": 1}, {"menu_id": 2, "quantity": 1}]
    assert event["data"]["reply_by"] == "2025-01-02T03:06:05.678900Z"
    assert event["traceparent"] == core.TRACE


class Undecided(Exception):
    """Something goes wrong before the commit."""


def test_nothing_of_a_placed_order_is_there_after_a_rollback(database: Database) -> None:
    placement = handlers.Placement(user_id=7, menu_ids=(1,))

    with contextlib.suppress(Undecided), core.unit_of_work(database) as work:
        handlers.place_orders(work, [placement])
        raise Undecided

    assert [core.count(database, table) for table in (orders, order_history, outbox)] == [0, 0, 0]


def test_nothing_of_a_batch_is_there_after_a_rollback(database: Database) -> None:
    [order_id] = core.place_sent(database)

    with contextlib.suppress(Undecided), core.unit_of_work(database) as work:
        handlers.apply_replies(work, [reserved(order_id)])
        raise Undecided

    assert core.get(database, order_id).state is State.AWAITING_MENU
    assert story(database, order_id) == [("OrderPlaced", None)]
    assert core.leaving(database) == []


def test_order_comes_back_from_the_database_as_it_went_in(database: Database) -> None:
    [order_id] = core.place(database)
    sate = Item(2, "Saté ayam \N{CUSTARD}", Decimal("0.0001"), 0)
    message = MenuReserved((Item(1, "x" * 500, Decimal("999999999.9999"), 3), sate), "réservation")

    core.apply(database, builders.reply(order_id, message, id="m"))

    found = core.get(database, order_id)
    assert found.items == message.items
    assert found.total_price == Decimal(10**9)
    assert found.reservations == ("réservation",)
    assert found.due_at == NOW + timedelta(seconds=900)


def test_price_and_payment_make_a_paid_order(database: Database) -> None:
    [order_id] = core.place_sent(database)

    assert core.apply(database, reserved(order_id)) == []
    [requested] = core.leaving(database)
    assert core.apply(database, completed(order_id), now=NOW + timedelta(seconds=9)) == []

    paid = core.get(database, order_id)
    assert (paid.state, paid.total_price, paid.version) == (State.PAID, TOTAL, 3)
    assert (paid.paid_at, paid.due_at) == (NOW + timedelta(seconds=9), None)
    assert (requested["type"], requested["sequence"]) == ("PaymentRequested", 2)
    assert requested["data"]["amount"] == 38000.5
    [_, announced] = core.leaving(database)
    assert (announced["type"], announced["sequence"]) == ("OrderPaid", 3)
    assert announced["data"]["payment_id"] == "p1"
    assert story(database, order_id) == [
        ("OrderPlaced", None),
        ("MenuReserved", "menu-1"),
        ("PaymentCompleted", "pay-1"),
    ]


def test_repeated_message_is_applied_once_within_a_batch_and_across_batches(database: Database) -> None:
    [order_id] = core.place_sent(database)
    # Other content under the same id: only the inbox can tell that it is a repeat.
    second = completed(order_id, "p2", Decimal(5))

    core.apply(database, reserved(order_id), reserved(order_id, "r2"), completed(order_id), second)
    core.apply(database, second, completed(order_id), reserved(order_id, "r3"))

    assert core.get(database, order_id).state is State.PAID
    assert core.given_back(database) == []
    assert Counter(type for type, _ in story(database, order_id)) == {
        "OrderPlaced": 1,
        "MenuReserved": 1,
        "PaymentCompleted": 1,
    }


def test_same_message_id_from_another_type_or_of_another_order_is_no_repeat(database: Database) -> None:
    [first, second] = core.place_sent(database, 2)
    batch = [reserved(first, id="1"), completed(first, id="1"), reserved(second, id="1"), completed(second, id="1")]

    core.apply(database, *batch)

    assert core.states(database, [first, second]) == {"paid"}


def test_message_that_changes_nothing_is_remembered_as_well(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id, id="menu-1"))

    core.apply(database, reserved(order_id, id="menu-2"))

    assert story(database, order_id)[-1] == ("MenuReserved", "menu-2")
    assert core.get(database, order_id).version == 2


def test_refused_messages_come_back_while_the_rest_of_the_batch_is_applied(database: Database) -> None:
    [first, second] = core.place_sent(database, 2)
    too_few = builders.reply(first, MenuReserved((core.SOTO,), "r"), id="few")
    nobodys, unasked = reserved(999, id="unknown"), released(first, "never asked for")

    refused = core.apply(database, too_few, reserved(second), nobodys, unasked, reserved(first, id="good"))

    assert [(each.message_id, each.code) for each in refused] == [
        (too_few.message_id, "invalid"),
        (nobodys.message_id, "unknown_order"),
        (unasked.message_id, "invalid"),
    ]
    assert "1, 2" in str(refused[0])
    assert core.states(database, [first, second]) == {"awaiting_payment"}
    assert [message_id for _, message_id in story(database, first)] == [None, "good"]


def test_events_of_one_transition_share_its_sequence(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id), completed(order_id, amount=Decimal(1)))

    sent = [(event["type"], event["sequence"]) for event in core.leaving(database)]

    assert sent == [("PaymentRequested", 2), ("OrderFailed", 3), ("StockReleaseRequested", 3), ("RefundRequested", 3)]


def test_amount_reads_alike_on_both_databases(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id))

    core.apply(database, completed(order_id, amount=Decimal(1)))

    assert core.get(database, order_id).detail == "paid 1, the total is 38000.5"


def test_compensations_are_rows_until_the_sibling_confirms_them(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id), completed(order_id, amount=Decimal(1)))

    requested = {row.type: row for row in core.given_back(database)}
    release, refund = requested["StockReleaseRequested"], requested["RefundRequested"]
    assert (release.subject, release.amount, refund.subject, refund.amount) == ("r1", None, "p1", Decimal(1))
    assert {(row.order_id, row.reason, row.sequence, row.attempts) for row in (release, refund)} == {
        (order_id, "amount_mismatch", 3, 1)
    }
    assert {row.due_at for row in (release, refund)} == {NOW + timedelta(seconds=30)}
    by_id = {event["id"]: event["data"] for event in core.leaving(database)}
    assert by_id[release.id]["release_id"] == release.id
    assert by_id[refund.id]["refund_id"] == refund.id

    later = NOW + timedelta(minutes=1)
    core.apply(database, released(order_id, release.id), now=later)
    core.apply(database, released(order_id, release.id, id="again"), now=later + timedelta(minutes=1))

    confirmed = {row.type: (row.confirmed_at, row.due_at) for row in core.given_back(database)}
    assert confirmed["StockReleaseRequested"] == (later, None)
    assert confirmed["RefundRequested"] == (None, NOW + timedelta(seconds=30))

    core.apply(database, refunded(order_id, refund.id), now=later)

    assert all(row.confirmed_at == later for row in core.given_back(database))


def test_request_and_its_confirmation_may_meet_in_one_batch(database: Database) -> None:
    [order_id] = core.place_sent(database)
    release_id = core.get(database, order_id).compensation_id(order.RELEASE, "r2")
    second = reserved(order_id, "r2", id="menu-2")

    refused = core.apply(database, reserved(order_id), second, released(order_id, release_id))

    assert refused == []
    [release] = core.given_back(database)
    assert (release.id, release.confirmed_at, release.due_at) == (release_id, NOW, None)


def test_cancelled_order_gives_back_what_comes_late(database: Database) -> None:
    [order_id] = core.place_sent(database)
    with core.unit_of_work(database) as work:
        _, decision = handlers.change_order(work, order_id, Cancel())
    assert decision.outcome is Outcome.DONE

    core.apply(database, reserved(order_id), completed(order_id), rejected(order_id, id="menu-2"))

    assert core.states(database, [order_id]) == {"cancelled"}
    assert {(row.type, row.subject) for row in core.given_back(database)} == {
        ("StockReleaseRequested", "r1"),
        ("RefundRequested", "p1"),
    }


def test_request_for_an_unknown_order_is_refused(database: Database) -> None:
    with pytest.raises(UnknownOrder), core.unit_of_work(database) as work:
        handlers.change_order(work, 999, Cancel())


def test_large_batch_is_applied_whole(database: Database) -> None:
    ids = core.place_sent(database, 400)

    batch = [reply for id in ids for reply in (reserved(id), completed(id), completed(id, "p2", id="pay-2"))]
    assert core.apply(database, *batch) == []

    assert core.states(database, ids) == {"paid"}
    assert len(core.given_back(database)) == 400


def test_concurrent_batches_over_the_same_orders_lose_and_repeat_nothing(database: Database) -> None:
    ids = core.place_sent(database, 12)
    replies = [
        reply
        for id in ids
        for reply in (
            reserved(id),
            reserved(id, "r2", id="menu-2"),
            completed(id),
            completed(id, "p2", id="pay-2"),
            completed(id, "p3", id="pay-3"),
        )
    ]
    errors: list[BaseException] = []
    ready = threading.Barrier(4)

    def apply_all_shuffled(seed: int) -> None:
        mine = random.Random(seed).sample(replies, len(replies))
        ready.wait()
        try:
            for start in range(0, len(mine), 10):
                assert core.apply(database, *mine[start : start + 10]) == []
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=apply_all_shuffled, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert errors == []
    for id in ids:
        found = core.get(database, id)
        assert (found.state, sorted(map(str, found.reservations))) == (State.PAID, ["r1", "r2"])
        assert (len(found.released), len(found.refunded), len(found.payments)) == (1, 2, 3)
        assert Counter(type for type, _ in story(database, id)) == {
            "OrderPlaced": 1,
            "MenuReserved": 2,
            "PaymentCompleted": 3,
        }
    assert len(core.given_back(database)) == 3 * len(ids)
    assert len(core.leaving(database, "OrderPaid")) == len(ids)


def test_transactions_that_name_orders_in_opposite_order_do_not_wait_for_each_other_for_ever(
    database: Database,
) -> None:
    ids = core.place_sent(database, 30)
    errors: list[BaseException] = []

    def lock_and_leave(wanted: list[int]) -> None:
        try:
            for _ in range(40):
                with database.writing() as connection:
                    assert len(order_rows.lock_orders(connection, wanted)) == len(ids)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=lock_and_leave, args=[wanted]) for wanted in (ids, ids[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert errors == []
    assert not any(thread.is_alive() for thread in threads)
