"""The decision table, cell by cell and rule by rule; what is expected is written out from the design."""

import copy
import itertools
from dataclasses import fields
from datetime import timedelta
from decimal import Decimal
from typing import Any, get_args

import pytest

from order_service.domain import saga
from order_service.domain.messages import (
    Cancel,
    Item,
    MenuDeadline,
    MenuReserved,
    Message,
    PaymentDeadline,
    PaymentRefunded,
    ReportFailed,
    ReportPaid,
    ReportPending,
    StockReleased,
)
from order_service.domain.order import FINAL, REFUND, RELEASE, InvalidMessage, Order, Payment, State
from order_service.domain.saga import DECISIONS, Policy, Rule, decide, rule_for
from tests.builders import (
    ES_TEH,
    KWETIAU,
    NASI_AYAM,
    NOW,
    TOTAL,
    apply,
    compensations,
    confirmation,
    menu_rejected,
    menu_reserved,
    new_order,
    order_after,
    payment_completed,
    payment_failed,
    policy,
    summary,
)

R1, R2, NAMELESS = menu_reserved("R1"), menu_reserved("R2"), menu_reserved(None)
P1, P2, P3 = payment_completed("P1"), payment_completed("P2"), payment_completed("P3")
P1_SHORT, P2_SHORT = payment_completed("P1", 1), payment_completed("P2", 2)

#: How real messages bring an order into each column. Failed and cancelled come twice: with the menu's answer in, and
#: "armed", that is with the menu's deadline still armed.
COLUMNS: dict[str, tuple[Message, ...]] = {
    "awaiting_menu": (),
    "awaiting_menu_prepaid": (P1,),
    "awaiting_payment": (R1,),
    "paid": (R1, P1),
    "failed": (R1, payment_failed()),
    "failed armed": (ReportFailed(),),
    "cancelled": (R1, Cancel()),
    "cancelled armed": (Cancel(),),
}
MESSAGES: dict[str, Message] = {
    "MenuReserved": R2,
    "MenuRejected": menu_rejected(),
    "PaymentCompleted": P2,
    "PaymentFailed": payment_failed(),
    "ReportPaid": ReportPaid(),
    "ReportFailed": ReportFailed(),
    "ReportPending": ReportPending(),
    "Cancel": Cancel(),
    "MenuDeadline": MenuDeadline(),
    "PaymentDeadline": PaymentDeadline(),
    "StockReleased": StockReleased("unknown"),
    "PaymentRefunded": PaymentRefunded("unknown"),
}
#: What each message does in each column of COLUMNS: `state: effects -> outcome`.
CELLS = {
    "MenuReserved": (
        "awaiting_payment: PaymentRequested",
        "paid: OrderPaid",
        "awaiting_payment: release R2",
        "paid: release R2",
        "failed: release R2",
        "failed: release R2",
        "cancelled: release R2",
        "cancelled: release R2",
    ),
    "MenuRejected": (
        "failed: OrderFailed",
        "failed: OrderFailed, refund P1 56000",
        "failed: OrderFailed, release R1",
        "paid: nothing",
        "failed: nothing",
        "failed: nothing",
        "cancelled: nothing",
        "cancelled: nothing",
    ),
    "PaymentCompleted": (
        "awaiting_menu_prepaid: nothing",
        "awaiting_menu_prepaid: nothing",
        "paid: OrderPaid",
        "paid: refund P2 56000",
        "failed: refund P2 56000",
        "failed: refund P2 56000",
        "cancelled: refund P2 56000",
        "cancelled: refund P2 56000",
    ),
    "PaymentFailed": (
        "failed: OrderFailed",
        "failed: OrderFailed, refund P1 56000",
        "failed: OrderFailed, release R1",
        "paid: nothing",
        "failed: nothing",
        "failed: nothing",
        "cancelled: nothing",
        "cancelled: nothing",
    ),
    "ReportPaid": (
        "awaiting_menu_prepaid: nothing -> remembered",
        "awaiting_menu_prepaid: nothing -> remembered",
        "paid: OrderPaid -> done",
        "paid: nothing -> done",
        "failed: nothing -> refused",
        "failed: nothing -> refused",
        "cancelled: nothing -> refused",
        "cancelled: nothing -> refused",
    ),
    "ReportFailed": (
        "failed: OrderFailed -> done",
        "failed: OrderFailed, refund P1 56000 -> done",
        "failed: OrderFailed, release R1 -> done",
        "paid: nothing -> refused",
        "failed: nothing -> done",
        "failed: nothing -> done",
        "cancelled: nothing -> refused",
        "cancelled: nothing -> refused",
    ),
    "ReportPending": (
        "awaiting_menu: nothing -> done",
        "awaiting_menu_prepaid: nothing -> done",
        "awaiting_payment: nothing -> done",
        "paid: nothing -> refused",
        "failed: nothing -> refused",
        "failed: nothing -> refused",
        "cancelled: nothing -> refused",
        "cancelled: nothing -> refused",
    ),
    "Cancel": (
        "cancelled: OrderCancelled -> done",
        "cancelled: OrderCancelled, refund P1 56000 -> done",
        "cancelled: OrderCancelled, release R1 -> done",
        "paid: nothing -> refused",
        "failed: nothing -> refused",
        "failed: nothing -> refused",
        "cancelled: nothing -> done",
        "cancelled: nothing -> done",
    ),
    "MenuDeadline": (
        "failed: OrderFailed, release None",
        "failed: OrderFailed, refund P1 56000, release None",
        "awaiting_payment: nothing",
        "paid: nothing",
        "failed: nothing",
        "failed: release None",
        "cancelled: nothing",
        "cancelled: release None",
    ),
    "PaymentDeadline": (
        "awaiting_menu: nothing",
        "awaiting_menu_prepaid: nothing",
        "failed: OrderFailed, release R1",
        "paid: nothing",
        "failed: nothing",
        "failed: nothing",
        "cancelled: nothing",
        "cancelled: nothing",
    ),
    "StockReleased": ("invalid",) * 8,
    "PaymentRefunded": ("invalid",) * 8,
}
in_every_cell = pytest.mark.parametrize(
    ("name", "column"),
    [(name, column) for name in CELLS for column in COLUMNS],
    ids=[f"{name} in {column}" for name in CELLS for column in COLUMNS],
)


def result(order: Order, message: Message) -> str:
    """What one message does, as a cell of CELLS has it."""
    try:
        return summary(decide(order, message, policy=policy(), now=NOW))
    except InvalidMessage:
        return "invalid"


# The table is total.


def test_every_message_has_a_rule_in_every_state() -> None:
    rules = [rule_for(message, state) for message, state in itertools.product(get_args(Message), State)]

    assert len(rules) == 12 * 6
    assert all(rule.text for rule in rules)
    assert set(DECISIONS) == set(get_args(Message))
    assert all(len(rules) == len(State) for rules in DECISIONS.values())


def test_the_expected_cells_cover_every_message_and_every_state() -> None:
    assert {type(message) for message in MESSAGES.values()} == set(get_args(Message))
    assert {order_after(*messages).state for messages in COLUMNS.values()} == set(State)
    assert CELLS.keys() == MESSAGES.keys()


@in_every_cell
def test_a_cell_does_what_the_design_says(name: str, column: str) -> None:
    order = order_after(*COLUMNS[column])
    assert order.state == column.split()[0]

    happened = result(order, MESSAGES[name])

    assert happened == CELLS[name][list(COLUMNS).index(column)]


@in_every_cell
def test_a_cell_leads_only_to_the_states_that_its_rule_declares(name: str, column: str) -> None:
    order = order_after(*COLUMNS[column])
    before, end = order.state, (order.reason, order.detail)
    rule = rule_for(type(MESSAGES[name]), before)

    happened = result(order, MESSAGES[name])

    assert order.state in {before, *rule.to}
    assert before not in FINAL or (order.reason, order.detail) == end
    if happened != "invalid":
        assert happened.partition(" -> ")[2] == str(rule.outcome or "")


def test_the_transitions_that_the_rules_declare_are_those_that_happen() -> None:
    declared = {
        (message, before, after)
        for message, rules in DECISIONS.items()
        for before, rule in zip(State, rules, strict=True)
        for after in rule.to
        if after is not before
    }
    orders = [order_after(*messages) for messages in [*COLUMNS.values(), (P1_SHORT,)]]
    orders += [order_after(expected_total=Decimal(1)), order_after(P1, expected_total=Decimal(1))]

    happened = set()
    for original, message in itertools.product(orders, [*MESSAGES.values(), P2_SHORT]):
        order = copy.deepcopy(original)
        result(order, message)
        if order.state is not original.state:
            happened.add((type(message), original.state, order.state))

    assert happened == declared


@in_every_cell
def test_a_repeated_message_has_no_further_effect(name: str, column: str) -> None:
    order = order_after(*COLUMNS[column])
    first = result(order, MESSAGES[name])
    once = copy.deepcopy(order)

    again = result(order, MESSAGES[name])

    assert order == once
    if first != "invalid":
        assert again.partition(": ")[2].partition(" -> ")[0] == "nothing"


# Sequences of messages.

#: All messages but the last are applied first; the text is what the last one does.
SEQUENCES: dict[str, tuple[tuple[Message, ...], str]] = {
    "items come in any order": ((menu_reserved("R1", KWETIAU, NASI_AYAM),), "awaiting_payment: PaymentRequested"),
    "the first id names a nameless reservation": ((NAMELESS, R1), "awaiting_payment: nothing"),
    "a reservation with another id than the named one is released": (
        (NAMELESS, R1, R2),
        "awaiting_payment: release R2",
    ),
    "a repeat of the id that named a reservation has no effect": ((NAMELESS, R1, R2, R1), "awaiting_payment: nothing"),
    "the first id names the nameless reservation of a paid order": ((P1, NAMELESS, R1), "paid: nothing"),
    "a second reservation of a paid order is released after the first one was named": (
        (P1, NAMELESS, R1, R2),
        "paid: release R2",
    ),
    "a reservation named later is released by its id": (
        (NAMELESS, R1, Cancel()),
        "cancelled: OrderCancelled, release R1 -> done",
    ),
    "a nameless reservation is released without an id": (
        (NAMELESS, Cancel()),
        "cancelled: OrderCancelled, release None -> done",
    ),
    "an id for a nameless reservation that was released has no effect": (
        (NAMELESS, Cancel(), R1),
        "cancelled: nothing",
    ),
    "the first reservation is released at the end, the second is not released again": (
        (R1, R2, payment_failed()),
        "failed: OrderFailed, release R1",
    ),
    "a nameless reservation after the null release has no effect": ((MenuDeadline(), NAMELESS), "failed: nothing"),
    "an id for a nameless reservation after the null release has no effect": (
        (MenuDeadline(), NAMELESS, R1),
        "failed: nothing",
    ),
    "a named reservation after the null release is released by its id": ((MenuDeadline(), R1), "failed: release R1"),
    "a wrong amount fails the order": (
        (R1, payment_completed("P1", Decimal("55999.99"))),
        "failed: OrderFailed, release R1, refund P1 55999.99",
    ),
    "the first of the remembered payments pays the order": ((P1, P2_SHORT, R1), "paid: OrderPaid, refund P2 2"),
    "the first of the remembered payments fails the order": (
        (P2_SHORT, P1, R1),
        "failed: OrderFailed, release R1, refund P2 2, refund P1 56000",
    ),
    "an end refunds every remembered payment": (
        (P1_SHORT, ReportPaid(), P2_SHORT, Cancel()),
        "cancelled: OrderCancelled, refund P1 1, refund None None, refund P2 2 -> done",
    ),
    "the first amount of a remembered payment counts": (
        (P1_SHORT, P1, R1),
        "failed: OrderFailed, release R1, refund P1 1",
    ),
    "the first amount of a late payment counts": ((R1, ReportPaid(), P1_SHORT, P1), "paid: nothing"),
    "a duplicate payment has no effect": ((R1, P1, P1), "paid: nothing"),
    "a payment with a known id and another amount has no effect": ((R1, P1, P1_SHORT), "paid: nothing"),
    "a reported payment counts as the total": ((ReportPaid(), R1), "paid: OrderPaid"),
    "a report after a payment of the total is not a second payment": ((P1, ReportPaid(), R1), "paid: OrderPaid"),
    "a remembered report is refunded if a wrong payment came first": (
        (P1_SHORT, ReportPaid(), R1),
        "failed: OrderFailed, release R1, refund P1 1, refund None None",
    ),
    "a reported payment is refunded without id and amount": (
        (ReportPaid(), menu_rejected()),
        "failed: OrderFailed, refund None None",
    ),
    "the first remembered payment of the total names a report before it": (
        (ReportPaid(), P1_SHORT, P2, P3, R1),
        "paid: OrderPaid, refund P1 1, refund P3 56000",
    ),
}


@pytest.mark.parametrize(("messages", "expected"), SEQUENCES.values(), ids=SEQUENCES)
def test_the_last_message_of_a_sequence_has_the_effect_that_the_design_gives_it(
    messages: tuple[Message, ...], expected: str
) -> None:
    order = order_after(*messages[:-1])

    happened = result(order, messages[-1])

    assert happened == expected


# Prices and reservations.


def test_a_reservation_prices_the_order_by_quantity_and_arms_the_payment_deadline() -> None:
    order = new_order()

    apply(order, R1)

    assert (order.items, order.total_price) == ((NASI_AYAM, KWETIAU), Decimal(56000))
    assert order.due_at == NOW + timedelta(seconds=900)


INVALID_ITEMS = {
    "none": MenuReserved((), "R1"),
    "one missing": menu_reserved("R1", NASI_AYAM),
    "one too many": menu_reserved("R1", NASI_AYAM, KWETIAU, ES_TEH),
    "one exchanged": menu_reserved("R1", NASI_AYAM, ES_TEH),
    "one twice": menu_reserved("R1", NASI_AYAM, KWETIAU, NASI_AYAM),
    "one per portion": menu_reserved("R1", NASI_AYAM, NASI_AYAM, KWETIAU),
}


@pytest.mark.parametrize("column", ["awaiting_menu", "awaiting_menu_prepaid"])
@pytest.mark.parametrize("message", INVALID_ITEMS.values(), ids=INVALID_ITEMS)
def test_items_that_do_not_cover_the_order_are_invalid_and_leave_it_unchanged(
    message: MenuReserved, column: str
) -> None:
    order = order_after(*COLUMNS[column])
    before = copy.deepcopy(order)

    with pytest.raises(InvalidMessage) as raised:
        apply(order, message)

    assert order == before
    assert (raised.value.order_id, raised.value.field_name) == (7, "data.items")
    assert "1, 2" in str(raised.value)


@pytest.mark.parametrize("column", [name for name in COLUMNS if not name.startswith("awaiting_menu")])
def test_the_items_of_second_and_late_reservations_are_not_read(column: str) -> None:
    order = order_after(*COLUMNS[column])
    items = order.items

    [decision] = apply(order, menu_reserved("R2", ES_TEH))

    assert summary(decision) == f"{order.state}: release R2"
    assert order.items == items


@pytest.mark.parametrize("repeat", [R1, NAMELESS], ids=["same id", "no id"])
@pytest.mark.parametrize("column", ["awaiting_payment", "paid", "failed", "cancelled"])
def test_the_same_or_no_reservation_id_again_is_a_repeat(column: str, repeat: MenuReserved) -> None:
    order = order_after(*COLUMNS[column])

    [decision] = apply(order, repeat)

    assert (decision.effects, decision.changed) == ((), False)


def test_the_first_price_of_a_reservation_counts() -> None:
    order = order_after(R1)

    apply(order, menu_reserved("R1", NASI_AYAM, Item(2, "Kwetiau Goreng", Decimal(99000), 6)))

    assert order.total_price == TOTAL


@pytest.mark.parametrize(
    ("prepaid", "expected"),
    [
        ((), "failed: OrderFailed, release R1"),
        ((payment_completed("P1", 55000), P2), "failed: OrderFailed, release R1, refund P1 55000, refund P2 56000"),
    ],
    ids=["not paid", "the expected total paid"],
)
def test_another_total_than_the_expected_one_fails_the_order(prepaid: tuple[Message, ...], expected: str) -> None:
    order = order_after(*prepaid, expected_total=Decimal(55000))

    happened = result(order, R1)

    assert happened == expected
    assert order.reason == "price_changed"


@pytest.mark.parametrize("expected", [Decimal(56000), Decimal("56000.00"), None])
def test_the_expected_total_is_compared_as_a_number(expected: Decimal | None) -> None:
    order = order_after(R1, expected_total=expected)

    assert order.state is State.AWAITING_PAYMENT


# Payments.


@pytest.mark.parametrize(
    ("amount", "state"),
    [
        (Decimal("56000.00"), State.PAID),
        (Decimal("56000.0001"), State.FAILED),
        (56001, State.FAILED),
        (55999, State.FAILED),
        (0, State.FAILED),
    ],
)
def test_only_the_total_pays_an_order_however_its_zeros_are_written(amount: Decimal | int, state: State) -> None:
    order = order_after(R1, payment_completed("P1", amount))

    assert order.state is state
    assert order.reason == (None if state is State.PAID else "amount_mismatch")


def test_an_order_is_paid_at_the_moment_that_reservation_and_payment_are_in() -> None:
    order = order_after(P1)
    assert order.paid_at is None

    apply(order, R1)

    assert order.paid_at == NOW


REPORTED_AS_PAID: dict[str, tuple[Message, ...]] = {
    "after the reservation": (R1, ReportPaid()),
    "before the reservation": (ReportPaid(), R1),
}


@pytest.mark.parametrize("messages", REPORTED_AS_PAID.values(), ids=REPORTED_AS_PAID)
def test_the_first_payment_of_the_total_names_a_reported_one(messages: tuple[Message, ...]) -> None:
    order = order_after(*messages)

    decisions = apply(order, P1_SHORT, P2, P2, P3)

    assert [summary(decision) for decision in decisions] == [
        "paid: refund P1 1",
        "paid: nothing",
        "paid: nothing",
        "paid: refund P3 56000",
    ]
    assert order.payments[0] == Payment("P2", TOTAL)


# Ends.


@pytest.mark.parametrize("reason", ["menu_not_found", "out_of_stock"])
def test_a_rejection_keeps_its_reason_and_the_dish(reason: str) -> None:
    order = order_after(menu_rejected(reason, 2))

    assert (order.reason, order.rejected_menu_id) == (reason, 2)
    assert order.detail is not None
    assert order.detail.startswith("menu item 2 ")


def test_the_detail_of_a_failed_payment_is_the_text_of_its_message() -> None:
    assert order_after(payment_failed("card declined")).detail == "card declined"


def test_each_subject_is_compensated_once_under_a_stable_id() -> None:
    messages: list[Message] = [P1_SHORT, ReportPaid(), R1, R2, P2, R2, Cancel()]
    messages += [P2, menu_reserved("R3"), menu_rejected(), menu_reserved("R3"), MenuDeadline()]

    first = compensations(*apply(new_order(), *messages))
    second = compensations(*apply(new_order(), *messages))

    assert sorted(((request.type, request.subject) for request in first), key=str) == [
        (REFUND, "P1"), (REFUND, "P2"), (REFUND, None), (RELEASE, "R1"), (RELEASE, "R2"), (RELEASE, "R3"),
    ]  # fmt: skip
    assert len({request.id for request in first}) == 6
    assert [request.id for request in first] == [request.id for request in second]


def test_the_ids_of_the_compensations_of_two_orders_differ() -> None:
    one, other = order_after(R1), order_after(R1)
    other.key = type(other.key)(int=1)

    [first], [second] = compensations(*apply(one, Cancel())), compensations(*apply(other, Cancel()))

    assert first.id != second.id


@pytest.mark.parametrize(
    ("before", "messages", "reasons"),
    [
        ((Cancel(),), (R1, P1), ["cancelled", "cancelled"]),
        ((P1,), (menu_rejected(),), ["out_of_stock"]),
        ((R1, P1), (R2, P2), ["second_reservation", "second_payment"]),
    ],
    ids=["late", "at the end", "second"],
)
def test_a_compensation_has_a_reason(
    before: tuple[Message, ...], messages: tuple[Message, ...], reasons: list[str]
) -> None:
    order = order_after(*before)

    requested = compensations(*apply(order, *messages))

    assert [request.reason for request in requested] == reasons


def test_a_payment_does_not_move_the_menu_deadline() -> None:
    order = new_order()
    armed = order.due_at

    apply(order, P1, ReportPaid())

    assert order.due_at == armed


# Confirmations.

COMPENSATED: dict[str, tuple[Message, ...]] = {
    "awaiting_payment": (R1, R2),
    "paid": (R1, P1, R2, P2),
    "failed": (P2, MenuDeadline()),
    "cancelled": (R1, Cancel(), P2),
}


@pytest.mark.parametrize("state", COMPENSATED)
def test_a_confirmation_of_a_known_request_is_valid_in_every_state_and_may_be_repeated(state: str) -> None:
    order = new_order()
    requested = compensations(*apply(order, *COMPENSATED[state]))
    before = copy.deepcopy(order)

    decisions = [decision for each in requested for decision in apply(order, confirmation(each), confirmation(each))]

    assert requested
    assert [summary(decision) for decision in decisions] == [f"{state}: nothing"] * 2 * len(requested)
    assert order == before


@pytest.mark.parametrize("state", COMPENSATED)
def test_a_confirmation_of_the_other_kind_is_invalid(state: str) -> None:
    order = new_order()
    requested = compensations(*apply(order, *COMPENSATED[state]))

    crossed = [PaymentRefunded(each.id) if each.type == RELEASE else StockReleased(each.id) for each in requested]

    assert [result(order, message) for message in crossed] == ["invalid"] * len(requested)


@pytest.mark.parametrize(
    ("message", "field_name"),
    [(StockReleased("X"), "data.release_id"), (PaymentRefunded("X"), "data.refund_id")],
    ids=["StockReleased", "PaymentRefunded"],
)
def test_an_unknown_confirmation_names_its_order_and_its_field(message: Message, field_name: str) -> None:
    with pytest.raises(InvalidMessage) as raised:
        apply(order_after(R1), message)

    assert (raised.value.order_id, raised.value.field_name) == (7, field_name)


# Changes and versions.

#: A value for each field of an order that a rule may change.
CHANGED_BY_RULES: dict[str, Any] = {
    "state": State.PAID,
    "items": (NASI_AYAM,),
    "total_price": TOTAL,
    "reservations": ("R1",),
    "payments": (Payment("P1", TOTAL),),
    "released": ("R1",),
    "refunded": ("P1",),
    "reason": "expired",
    "detail": "no payment came in time",
    "rejected_menu_id": 2,
    "paid_at": NOW,
    "due_at": None,
    "reminders_left": 0,
}
SET_ONCE = {"id", "key", "user_id", "menu_ids", "created_at", "expected_total", "traceparent"}
SET_BY_DECIDE = {"version", "effects"}


@pytest.mark.parametrize(("name", "value"), CHANGED_BY_RULES.items(), ids=CHANGED_BY_RULES)
def test_a_rule_that_changes_only_one_field_is_a_change(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(order: Order, message: Message, policy: Policy, now: object) -> None:
        setattr(order, name, value)

    monkeypatch.setattr(saga, "DECISIONS", {Cancel: (Rule("change one field", change),) * len(State)})
    order = new_order()
    assert getattr(order, name) != value

    first, repeat = apply(order, Cancel(), Cancel())

    assert (first.changed, repeat.changed) == (True, False)
    assert order.version == 2


def test_every_field_of_an_order_is_classified() -> None:
    assert {each.name for each in fields(Order)} == CHANGED_BY_RULES.keys() | SET_ONCE | SET_BY_DECIDE


@pytest.mark.parametrize("column", COLUMNS)
def test_a_field_that_rules_change_holds_an_immutable_value(column: str) -> None:
    order = order_after(*COLUMNS[column])

    # A change of a mutable value in place would not be recognised as a change. Only immutable values have a hash.
    assert all(isinstance(hash(getattr(order, name)), int) for name in CHANGED_BY_RULES)


def test_a_new_order_has_version_one() -> None:
    assert (new_order().version, new_order().is_new) == (1, True)


@in_every_cell
def test_the_version_grows_by_one_exactly_with_a_change(name: str, column: str) -> None:
    order = order_after(*COLUMNS[column])
    before = copy.deepcopy(order)

    happened = result(order, MESSAGES[name])

    changed = order != before
    assert order.version == before.version + changed
    assert changed or "nothing" in happened or happened == "invalid"
