"""The decision table, cell by cell and rule by rule; what is expected is written out from the design."""

import copy
import itertools
from dataclasses import fields
from decimal import Decimal
from typing import Any, get_args

import pytest

from order_service.domain import saga
from order_service.domain.messages import (
    Cancel,
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
from order_service.domain.order import Announcement, InvalidMessage, Order, Payment, State, TooMany
from order_service.domain.saga import DECISIONS, Policy, Rule, decide
from tests.builders import (
    ES_TEH,
    FREE,
    KWETIAU,
    NASI_AYAM,
    NOW,
    TOTAL,
    apply,
    compensations,
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
P1, P2 = payment_completed("P1"), payment_completed("P2")
R1_FREE = menu_reserved("R1", *FREE)
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
        "awaiting_menu_prepaid: nothing",
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
        "awaiting_menu_prepaid: nothing -> refused",
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
    for original, message in itertools.product(orders, [*MESSAGES.values(), P2_SHORT, R1_FREE]):
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


#: Sequences whose effects neither the oracle nor the ledgers of `saga_oracle` fix. All messages but the last are applied
#: first; the text is what the last one does.
SEQUENCES: dict[str, tuple[tuple[Message, ...], str]] = {
    "a free order is paid at once": ((R1_FREE,), "paid: OrderPaid"),
    "a failed payment of a free order decides nothing": ((R1_FREE, payment_failed()), "paid: nothing"),
    "a payment of a free order is refunded": ((R1_FREE, P1), "paid: refund P1 56000"),
    "a payment of nothing names that of a free order": ((R1_FREE, payment_completed("P1", 0)), "paid: nothing"),
    "a second payment of nothing is refunded": (
        (R1_FREE, payment_completed("P1", 0), payment_completed("P2", 0)),
        "paid: refund P2 0",
    ),
    "a payment before the total of 0 is judged": ((P1, R1_FREE), "failed: OrderFailed, release R1, refund P1 56000"),
    "a reported payment before the total of 0 is judged": ((ReportPaid(), R1_FREE), "paid: OrderPaid"),
    "items come in any order": ((menu_reserved("R1", KWETIAU, NASI_AYAM),), "awaiting_payment: PaymentRequested"),
    "a reservation named later is released by its id": (
        (NAMELESS, R1, Cancel()),
        "cancelled: OrderCancelled, release R1 -> done",
    ),
    "an id for a nameless reservation that was released has no effect": (
        (NAMELESS, Cancel(), R1),
        "cancelled: nothing",
    ),
    "an id for a nameless reservation after the null release has no effect": (
        (MenuDeadline(), NAMELESS, R1),
        "failed: nothing",
    ),
    "a named reservation after the null release is released by its id": ((MenuDeadline(), R1), "failed: release R1"),
    "payments are refunded in the order of their arrival": (
        (P2_SHORT, P1, R1),
        "failed: OrderFailed, release R1, refund P2 2, refund P1 56000",
    ),
}


@pytest.mark.parametrize(("messages", "expected"), SEQUENCES.values(), ids=SEQUENCES)
def test_the_last_message_of_a_sequence_has_the_effect_that_the_design_gives_it(
    messages: tuple[Message, ...], expected: str
) -> None:
    order = order_after(*messages[:-1])

    happened = result(order, messages[-1])

    assert happened == expected


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


def test_a_free_order_keeps_a_payment_without_an_id() -> None:
    order = order_after(R1_FREE)

    assert (order.payments, order.paid_at, order.due_at) == ((Payment(None, Decimal(0)),), NOW, None)


PAYMENTS = [payment_completed(f"P{number}", 1) for number in range(1, 101)]
RESERVATIONS = [menu_reserved(f"R{number}") for number in range(1, 101)]
#: A message beyond the bound of 100, after messages that bring the order there.
BEYOND: dict[str, tuple[list[Message], Message]] = {
    "remembered payment": (PAYMENTS, payment_completed("P101")),
    "second payment": ([R1, P1, *PAYMENTS], payment_completed("P101")),
    "second payment of a reported one": ([R1, ReportPaid(), *PAYMENTS], payment_completed("P101", 1)),
    "late payment": ([Cancel(), *PAYMENTS], payment_completed("P101")),
    "second reservation": (RESERVATIONS, menu_reserved("R101")),
    "late reservation": ([Cancel(), *RESERVATIONS], menu_reserved("R101")),
}


@pytest.mark.parametrize(("messages", "beyond"), BEYOND.values(), ids=BEYOND)
def test_one_more_than_a_hundred_reservations_or_payments_is_too_many_and_changes_nothing(
    messages: list[Message], beyond: Message
) -> None:
    order = order_after(*messages)
    before = copy.deepcopy(order)

    with pytest.raises(TooMany) as raised:
        apply(order, beyond)

    assert order == before
    assert (raised.value.code, raised.value.order_id) == ("too_many", 7)
    assert raised.value.field_name in ("data.payment_id", "data.reservation_id")
    # The first hundred were all recorded, and each is still known.
    assert {decision.changed for decision in apply(order, *messages[-99:])} == {False}


def test_reported_payment_and_the_payment_that_names_it_are_accepted_beyond_a_hundred_payments() -> None:
    remembered, paid = order_after(*PAYMENTS), order_after(R1, ReportPaid(), *PAYMENTS)

    happened = [result(remembered, ReportPaid()), result(paid, payment_completed("P101"))]

    assert happened == ["awaiting_menu_prepaid: nothing -> remembered", "paid: nothing"]
    assert (len(remembered.payments), remembered.payments[-1]) == (101, Payment())
    assert (len(paid.payments), paid.payments[0]) == (101, Payment("P101", TOTAL))


@pytest.mark.parametrize("repeat", [R1, NAMELESS], ids=["same id", "no id"])
@pytest.mark.parametrize("column", ["awaiting_payment", "paid", "failed", "cancelled"])
def test_the_same_or_no_reservation_id_again_is_a_repeat(column: str, repeat: MenuReserved) -> None:
    order = order_after(*COLUMNS[column])

    [decision] = apply(order, repeat)

    assert (decision.effects, decision.changed) == ((), False)


def test_the_detail_of_a_failed_order_names_the_dish_or_the_cause_of_the_message() -> None:
    rejected, unpaid = order_after(menu_rejected("menu_not_found", 2)), order_after(payment_failed("card declined"))

    assert (rejected.rejected_menu_id, rejected.detail) == (2, "menu item 2 was not found")
    assert unpaid.detail == "card declined"


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


@pytest.mark.parametrize(
    ("message", "field_name"),
    [(StockReleased("X"), "data.release_id"), (PaymentRefunded("X"), "data.refund_id")],
    ids=["StockReleased", "PaymentRefunded"],
)
def test_an_unknown_confirmation_names_its_order_and_its_field(message: Message, field_name: str) -> None:
    with pytest.raises(InvalidMessage) as raised:
        apply(order_after(R1), message)

    assert (raised.value.order_id, raised.value.field_name) == (7, field_name)


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
SET_ONCE = {"id", "key", "user_id", "menu_ids", "created_at", "expected_total", "traceparent", "tracestate"}
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


def test_payment_is_always_requested_first_at_the_same_version() -> None:
    versions = set()

    for steps in itertools.product(MESSAGES.values(), repeat=3):
        order = new_order()
        versions |= {order.version for step in steps if "PaymentRequested" in result(order, step)}

    assert versions == {saga.FIRST_SEQUENCE[Announcement.PAYMENT_REQUESTED]}


def test_every_field_of_an_order_is_classified() -> None:
    assert {each.name for each in fields(Order)} == CHANGED_BY_RULES.keys() | SET_ONCE | SET_BY_DECIDE
