"""The decision table, cell by cell and rule by rule; what is expected is written out from the design."""

import copy
import itertools
from datetime import timedelta
from decimal import Decimal
from typing import get_args

import pytest

from order_service.domain.messages import MenuReserved, Message, PaymentRefunded, StockReleased
from order_service.domain.order import FINAL, REFUND, RELEASE, InvalidMessage, Order, Payment, State
from order_service.domain.saga import DECISIONS, decide, rule_for
from tests.unit.given import (
    CANCEL,
    DECLINED,
    DISH_1,
    DISH_2,
    DISH_3,
    MENU_DEADLINE,
    NOW,
    OUT_OF_STOCK,
    PAYMENT_DEADLINE,
    POLICY,
    PUT_FAILED,
    PUT_PAID,
    PUT_PENDING,
    TOTAL,
    after,
    apply,
    compensations,
    completed,
    new_order,
    reserved,
    told,
)

#: How real messages bring an order into each column. Failed and cancelled come twice: with the menu's answer in, and
#: "armed", that is with the menu's deadline still running.
ROADS = {
    "awaiting_menu": (),
    "awaiting_menu_prepaid": (completed("P1"),),
    "awaiting_payment": (reserved("R1"),),
    "paid": (reserved("R1"), completed("P1")),
    "failed": (reserved("R1"), DECLINED),
    "failed armed": (PUT_FAILED,),
    "cancelled": (reserved("R1"), CANCEL),
    "cancelled armed": (CANCEL,),
}
MESSAGES = {
    "MenuReserved": reserved("R2"),
    "MenuRejected": OUT_OF_STOCK,
    "PaymentCompleted": completed("P2"),
    "PaymentFailed": DECLINED,
    "ReportPaid": PUT_PAID,
    "ReportFailed": PUT_FAILED,
    "ReportPending": PUT_PENDING,
    "Cancel": CANCEL,
    "MenuDeadline": MENU_DEADLINE,
    "PaymentDeadline": PAYMENT_DEADLINE,
    "StockReleased": StockReleased("unheard of"),
    "PaymentRefunded": PaymentRefunded("unheard of"),
}
#: What each message does in each column of ROADS: `state: effects -> outcome`.
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
EVERY_CELL = [(name, road) for name in CELLS for road in ROADS]


def outcome(order: Order, message: Message) -> str:
    try:
        return told(decide(order, message, policy=POLICY, now=NOW))
    except InvalidMessage:
        return "invalid"


# The table is total.


def test_every_message_has_a_rule_in_every_state():
    pairs = list(itertools.product(get_args(Message), State))

    rules = [rule_for(message, state) for message, state in pairs]

    assert len(rules) == 12 * 6
    assert all(rule.text for rule in rules)
    assert set(DECISIONS) == set(get_args(Message))
    assert all(len(rules) == len(State) for rules in DECISIONS.values())


def test_the_expectations_of_this_file_cover_every_message_and_every_state():
    assert {type(message) for message in MESSAGES.values()} == set(get_args(Message))
    assert {road.split()[0] for road in ROADS} == set(State)
    assert {after(*road).state for road in ROADS.values()} == set(State)
    assert CELLS.keys() == MESSAGES.keys()


@pytest.mark.parametrize(("name", "road"), EVERY_CELL, ids=[f"{name} in {road}" for name, road in EVERY_CELL])
def test_a_cell_does_what_the_design_says(name: str, road: str):
    order = after(*ROADS[road])
    assert order.state == road.split()[0]

    happened = outcome(order, MESSAGES[name])

    assert happened == CELLS[name][list(ROADS).index(road)]


@pytest.mark.parametrize(("name", "road"), EVERY_CELL, ids=[f"{name} in {road}" for name, road in EVERY_CELL])
def test_a_cell_leads_nowhere_but_where_its_rule_says(name: str, road: str):
    order = after(*ROADS[road])
    before = order.state
    rule = rule_for(type(MESSAGES[name]), before)

    happened = outcome(order, MESSAGES[name])

    assert order.state in {before, *rule.to}
    if happened != "invalid":
        assert happened.partition(" -> ")[2] == str(rule.outcome or "")


def test_every_way_a_rule_declares_is_taken_and_no_other():
    declared = {
        (message, before, after)
        for message, rules in DECISIONS.items()
        for before, rule in zip(State, rules, strict=True)
        for after in rule.to
        if after is not before
    }
    orders = [after(*road) for road in [*ROADS.values(), (completed("P9", 1),)]]
    orders += [after(*road, expected_total=Decimal(1)) for road in [(), (completed("P9"),)]]
    messages = [*MESSAGES.values(), completed("P8", 1)]

    taken = set()
    for given, message in itertools.product(orders, messages):
        order = copy.deepcopy(given)
        outcome(order, message)
        if order.state is not given.state:
            taken.add((type(message), given.state, order.state))

    assert taken == declared


@pytest.mark.parametrize(("name", "road"), EVERY_CELL, ids=[f"{name} in {road}" for name, road in EVERY_CELL])
def test_the_same_message_again_has_no_further_effect(name: str, road: str):
    order = after(*ROADS[road])
    first = outcome(order, MESSAGES[name])
    once = copy.deepcopy(order)

    again = outcome(order, MESSAGES[name])

    assert order == once
    if first != "invalid":
        assert again.partition(": ")[2].partition(" -> ")[0] == "nothing"


@pytest.mark.parametrize(
    ("road", "status"),
    [
        ("awaiting_menu", "pending"),
        ("awaiting_menu_prepaid", "pending"),
        ("awaiting_payment", "pending"),
        ("paid", "paid"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
    ],
)
def test_the_public_status_is_the_clients_vocabulary(road: str, status: str):
    assert after(*ROADS[road]).state.status == status


# Prices and reservations.


def test_a_reservation_prices_the_order_by_quantity():
    order = new_order()

    apply(order, reserved("R1"))

    assert order.total_price == Decimal(56000)
    assert order.items == (DISH_1, DISH_2)


def test_items_may_come_in_any_order():
    order = new_order()

    apply(order, reserved("R1", DISH_2, DISH_1))

    assert (order.state, order.total_price) == (State.AWAITING_PAYMENT, TOTAL)


def test_a_reservation_arms_the_payment_deadline_in_place_of_the_menus():
    order = new_order()

    apply(order, reserved("R1"))

    assert order.due_at == NOW + timedelta(seconds=900)


BAD_ITEMS = {
    "none": MenuReserved((), "R1"),
    "one missing": reserved("R1", DISH_1),
    "one too many": reserved("R1", DISH_1, DISH_2, DISH_3),
    "one exchanged": reserved("R1", DISH_1, DISH_3),
    "one twice": reserved("R1", DISH_1, DISH_2, DISH_1),
    "one per portion": reserved("R1", DISH_1, DISH_1, DISH_2),
}


@pytest.mark.parametrize("road", [(), (completed("P1"),)], ids=["awaiting_menu", "awaiting_menu_prepaid"])
@pytest.mark.parametrize("message", BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_items_that_do_not_cover_the_order_are_invalid_and_leave_it_unchanged(message, road):
    order = after(*road)
    untouched = copy.deepcopy(order)

    with pytest.raises(InvalidMessage) as refusal:
        decide(order, message, policy=POLICY, now=NOW)

    assert order == untouched
    assert (refusal.value.order_id, refusal.value.field_name) == (7, "data.items")
    assert "1, 2" in str(refusal.value)


def test_a_usable_reservation_is_taken_after_an_unusable_one_under_the_same_id():
    order = new_order()
    with pytest.raises(InvalidMessage):
        decide(order, reserved("R1", DISH_1), policy=POLICY, now=NOW)

    decision = decide(order, reserved("R1"), policy=POLICY, now=NOW)

    assert told(decision) == "awaiting_payment: PaymentRequested"


@pytest.mark.parametrize("road", [name for name in ROADS if not name.startswith("awaiting_menu")])
def test_second_and_late_reservations_are_released_unread(road: str):
    order = after(*ROADS[road])

    decision = decide(order, reserved("R2", DISH_3), policy=POLICY, now=NOW)

    assert told(decision) == f"{order.state}: release R2"
    assert order.items in ((), (DISH_1, DISH_2))


@pytest.mark.parametrize("repeat", ["R1", None], ids=["same id", "no id"])
@pytest.mark.parametrize("road", ["awaiting_payment", "paid", "failed", "cancelled"])
def test_the_same_or_no_reservation_id_again_is_a_repeat(road: str, repeat: str | None):
    order = after(*ROADS[road])

    decision = decide(order, reserved(repeat), policy=POLICY, now=NOW)

    assert decision.effects == ()
    assert not decision.changed


def test_the_first_price_of_a_reservation_stands():
    order = after(reserved("R1"))
    dearer = (DISH_1, DISH_2.__class__(2, "Kwetiau Goreng", Decimal(99000), 6))

    apply(order, reserved("R1", *dearer))

    assert order.total_price == TOTAL


@pytest.mark.parametrize("road", [(), (completed("P1"),)], ids=["awaiting_payment", "paid"])
def test_the_first_id_after_a_nameless_reservation_names_it(road):
    order = after(*road, reserved(None))

    naming, another, repeat = apply(order, reserved("R1"), reserved("R2"), reserved("R1"))

    assert naming.effects == ()
    assert [wanted.subject for wanted in compensations(another)] == ["R2"]
    assert repeat.effects == ()


def test_a_reservation_named_later_is_released_under_its_name():
    order = after(reserved(None), reserved("R1"))

    decision = decide(order, CANCEL, policy=POLICY, now=NOW)

    assert told(decision) == "cancelled: OrderCancelled, release R1 -> done"


def test_a_nameless_reservation_is_released_as_whatever_is_held():
    order = after(reserved(None))

    ended, named_late = apply(order, CANCEL, reserved("R1"))

    assert told(ended) == "cancelled: OrderCancelled, release None -> done"
    assert named_late.effects == ()


def test_a_second_reservation_stays_released_and_the_first_is_released_at_the_end():
    order = after(reserved("R1"), reserved("R2"))

    decision = decide(order, DECLINED, policy=POLICY, now=NOW)

    assert told(decision) == "failed: OrderFailed, release R1"


@pytest.mark.parametrize("end", [CANCEL, PUT_FAILED, DECLINED], ids=["cancel", "PUT failed", "PaymentFailed"])
def test_a_late_reservation_is_released_and_disarms_the_menu_deadline(end):
    order = after(end)
    assert order.due_at is not None

    late, deadline = apply(order, reserved("R1"), MENU_DEADLINE)

    assert [wanted.subject for wanted in compensations(late)] == ["R1"]
    assert order.due_at is None
    assert deadline.effects == ()


# The total the client expects.


def test_price_changed_when_the_total_is_not_the_expected_one():
    order = new_order(expected_total=Decimal(55000))

    decision = decide(order, reserved("R1"), policy=POLICY, now=NOW)

    assert told(decision) == "failed: OrderFailed, release R1"
    assert order.reason == "price_changed"


@pytest.mark.parametrize("expected", [Decimal(56000), Decimal("56000.00"), None])
def test_the_expected_total_is_compared_as_a_number(expected):
    order = after(reserved("R1"), expected_total=expected)

    assert order.state is State.AWAITING_PAYMENT


def test_price_changed_comes_before_the_remembered_payments():
    order = after(completed("P1", 55000), completed("P2"), expected_total=Decimal(55000))

    decision = decide(order, reserved("R1"), policy=POLICY, now=NOW)

    assert told(decision) == "failed: OrderFailed, release R1, refund P1 55000, refund P2 56000"
    assert order.reason == "price_changed"


# Payments.


def test_a_wrong_amount_fails_the_order_and_gives_all_back():
    order = after(reserved("R1"))

    decision = decide(order, completed("P1", Decimal("55999.99")), policy=POLICY, now=NOW)

    assert told(decision) == "failed: OrderFailed, release R1, refund P1 55999.99"
    assert order.reason == "amount_mismatch"


@pytest.mark.parametrize("amount", [56001, Decimal("56000.0001"), 0, 55999])
def test_no_other_amount_than_the_total_pays(amount):
    order = after(reserved("R1"), completed("P1", amount))

    assert (order.state, order.reason) == (State.FAILED, "amount_mismatch")


def test_an_amount_is_right_however_its_zeros_are_written():
    order = after(reserved("R1"), completed("P1", Decimal("56000.00")))

    assert order.state is State.PAID


def test_remembered_payments_are_judged_in_the_order_of_their_arrival():
    right_first = after(completed("P1"), completed("P2", 1))
    wrong_first = after(completed("P2", 1), completed("P1"))

    paid = decide(right_first, reserved("R1"), policy=POLICY, now=NOW)
    failed = decide(wrong_first, reserved("R1"), policy=POLICY, now=NOW)

    assert told(paid) == "paid: OrderPaid, refund P2 1"
    assert told(failed) == "failed: OrderFailed, release R1, refund P2 1, refund P1 56000"
    assert wrong_first.reason == "amount_mismatch"


def test_no_remembered_payment_is_refunded_before_the_reservation_or_the_end():
    order = new_order()

    decisions = apply(order, completed("P1", 1), completed("P2", 2), PUT_PAID, completed("P3"))

    assert [decision.effects for decision in decisions] == [()] * 4


def test_an_end_refunds_every_remembered_payment():
    order = after(completed("P1", 1), PUT_PAID, completed("P2", 2))

    decision = decide(order, CANCEL, policy=POLICY, now=NOW)

    assert told(decision) == "cancelled: OrderCancelled, refund P1 1, refund None None, refund P2 2 -> done"


def test_the_first_amount_of_a_remembered_payment_stands():
    order = after(completed("P1", 1), completed("P1"))

    decision = decide(order, reserved("R1"), policy=POLICY, now=NOW)

    assert told(decision) == "failed: OrderFailed, release R1, refund P1 1"


def test_the_first_amount_of_a_late_payment_stands():
    order = after(reserved("R1"), PUT_PAID, completed("P1", 1))

    decision = decide(order, completed("P1"), policy=POLICY, now=NOW)

    assert decision.effects == ()
    assert order.payments[0].id is None


@pytest.mark.parametrize(
    "message", [reserved(), OUT_OF_STOCK, completed(), DECLINED, StockReleased("x"), PaymentRefunded("x")]
)
def test_no_message_leaves_an_order_untouched_unless_it_is_refused(message):
    order = new_order()
    assert order.is_new

    try:
        decide(order, message, policy=POLICY, now=NOW)
    except InvalidMessage:
        assert isinstance(message, StockReleased | PaymentRefunded)
    else:
        assert not order.is_new


def test_duplicate_payment_leaves_order_paid():
    order = after(reserved("R1"), completed("P1"))

    decision = decide(order, completed("P1"), policy=POLICY, now=NOW)

    assert told(decision) == "paid: nothing"
    assert not decision.changed


def test_the_same_payment_with_another_amount_is_still_the_same_payment():
    order = after(reserved("R1"), completed("P1"))

    decision = decide(order, completed("P1", 1), policy=POLICY, now=NOW)

    assert told(decision) == "paid: nothing"


def test_a_second_payment_is_refunded_also_when_the_amount_is_right():
    order = after(reserved("R1"), completed("P1"))

    decision = decide(order, completed("P2"), policy=POLICY, now=NOW)

    assert told(decision) == "paid: refund P2 56000"
    assert order.payments[0].id == "P1"


@pytest.mark.parametrize("road", ["failed", "failed armed", "cancelled", "cancelled armed"])
def test_a_late_payment_is_refunded_once(road: str):
    order = after(*ROADS[road])

    late, repeat = apply(order, completed("P9", 5), completed("P9", 5))

    assert told(late) == f"{order.state}: refund P9 5"
    assert repeat.effects == ()


def test_the_moment_of_payment_is_the_moment_both_are_in():
    order = after(completed("P1"))
    assert order.paid_at is None

    apply(order, reserved("R1"))

    assert order.paid_at == NOW


@pytest.mark.parametrize("road", [(completed("P1"), reserved("R1")), (reserved("R1"), completed("P1"))])
def test_a_paid_order_waits_for_nothing(road):
    order = after(*road)

    assert (order.state, order.due_at) == (State.PAID, None)


# PUT paid names no payment.


def test_put_paid_counts_as_the_full_total():
    after_reservation = after(reserved("R1"))
    before_reservation = after(PUT_PAID)

    put = decide(after_reservation, PUT_PAID, policy=POLICY, now=NOW)
    priced = decide(before_reservation, reserved("R1"), policy=POLICY, now=NOW)

    assert told(put) == "paid: OrderPaid -> done"
    assert told(priced) == "paid: OrderPaid"


ANONYMOUSLY_PAID = {
    "after the reservation": (reserved("R1"), PUT_PAID),
    "before the reservation": (PUT_PAID, reserved("R1")),
}


@pytest.mark.parametrize("road", ANONYMOUSLY_PAID.values(), ids=ANONYMOUSLY_PAID)
def test_the_first_payment_of_the_total_names_an_anonymous_one(road):
    order = after(*road)

    naming, repeat, second = apply(order, completed("P1"), completed("P1"), completed("P2"))

    assert told(naming) == "paid: nothing"
    assert order.payments[0] == Payment("P1", TOTAL)
    assert repeat.effects == ()
    assert told(second) == "paid: refund P2 56000"


@pytest.mark.parametrize("road", ANONYMOUSLY_PAID.values(), ids=ANONYMOUSLY_PAID)
def test_a_payment_of_another_amount_does_not_name_an_anonymous_one(road):
    order = after(*road)

    other, naming = apply(order, completed("P1", 55000), completed("P2"))

    assert told(other) == "paid: refund P1 55000"
    assert told(naming) == "paid: nothing"
    assert order.payments[0] == Payment("P2", TOTAL)


def test_an_anonymous_payment_is_named_by_one_remembered_after_it():
    order = after(PUT_PAID, completed("P1", 1), completed("P2"), completed("P3"))

    decision = decide(order, reserved("R1"), policy=POLICY, now=NOW)

    assert told(decision) == "paid: OrderPaid, refund P1 1, refund P3 56000"
    assert order.payments[0] == Payment("P2", TOTAL)


def test_put_paid_after_a_payment_of_the_total_is_no_second_payment():
    order = after(completed("P1"), PUT_PAID)

    decision = decide(order, reserved("R1"), policy=POLICY, now=NOW)

    assert told(decision) == "paid: OrderPaid"
    assert order.payments[0] == Payment("P1", TOTAL)


def test_an_anonymous_payment_is_refunded_without_id_or_amount():
    order = after(PUT_PAID)

    decision = decide(order, OUT_OF_STOCK, policy=POLICY, now=NOW)

    [refund] = compensations(decision)
    assert (refund.type, refund.subject, refund.amount) == (REFUND, None, None)


def test_put_paid_answered_202_is_given_back_when_a_wrong_payment_came_first():
    order = after(completed("P1", 1), PUT_PAID)

    decision = decide(order, reserved("R1"), policy=POLICY, now=NOW)

    assert told(decision) == "failed: OrderFailed, release R1, refund P1 1, refund None None"


def test_put_paid_answered_409_was_not_taken_and_is_not_refunded():
    order = after(reserved("R1"), CANCEL)

    decision = decide(order, PUT_PAID, policy=POLICY, now=NOW)

    assert (decision.outcome, decision.effects, decision.changed) == ("refused", (), False)
    assert order.payments == ()


ASKED_STATUS = {"ReportPaid": "paid", "ReportFailed": "failed", "ReportPending": "pending", "Cancel": "cancelled"}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", ASKED_STATUS)
def test_200_if_and_only_if_the_order_then_has_the_status_asked_for(name: str, road: str):
    order = after(*ROADS[road])

    decision = decide(order, MESSAGES[name], policy=POLICY, now=NOW)

    assert (decision.outcome == "done") == (decision.after.status == ASKED_STATUS[name])


# Ends.

ENDS = {
    "MenuRejected": (OUT_OF_STOCK, "failed", "out_of_stock"),
    "PaymentFailed": (DECLINED, "failed", "payment_failed"),
    "ReportFailed": (PUT_FAILED, "failed", "payment_failed"),
    "Cancel": (CANCEL, "cancelled", None),
    "PaymentDeadline": (PAYMENT_DEADLINE, "failed", "expired"),
}


@pytest.mark.parametrize(("end", "state", "reason"), ENDS.values(), ids=ENDS)
def test_an_end_gives_the_reservation_back(end, state, reason):
    order = after(reserved("R1"))

    decision = decide(order, end, policy=POLICY, now=NOW)

    assert (order.state, order.reason) == (state, reason)
    assert [(wanted.type, wanted.subject) for wanted in compensations(decision)] == [(RELEASE, "R1")]
    assert order.due_at is None


@pytest.mark.parametrize(("end", "state", "reason"), list(ENDS.values())[:4], ids=list(ENDS)[:4])
def test_an_end_before_the_reservation_gives_the_payments_back(end, state, reason):
    order = after(completed("P1", 1), completed("P2", 2))

    decision = decide(order, end, policy=POLICY, now=NOW)

    assert (order.state, order.reason) == (state, reason)
    given_back = [(wanted.type, wanted.subject, wanted.amount) for wanted in compensations(decision)]
    assert given_back == [(REFUND, "P1", 1), (REFUND, "P2", 2)]


@pytest.mark.parametrize("reason", ["menu_not_found", "out_of_stock"])
def test_a_rejection_keeps_its_reason_and_the_dish(reason: str):
    order = after(type(OUT_OF_STOCK)(reason, 2))

    assert (order.reason, order.rejected_menu_id) == (reason, 2)
    assert order.detail.startswith("menu item 2 ")


def test_the_words_of_a_declined_payment_are_kept():
    assert after(DECLINED).detail == "card declined"


def test_an_end_is_not_ended_again():
    ends = [OUT_OF_STOCK, DECLINED, PUT_FAILED, CANCEL, MENU_DEADLINE, PAYMENT_DEADLINE]

    for first, second in itertools.permutations(ends, 2):
        order = after(reserved("R1"), first) if first is not MENU_DEADLINE else after(first)
        ended = (order.state, order.reason, order.detail)
        apply(order, second)
        assert (order.state, order.reason, order.detail) == ended


def test_each_subject_is_given_back_once_under_a_stable_id():
    script = [completed("P1", 1), PUT_PAID, reserved("R1"), reserved("R2"), completed("P2"), reserved("R2"), CANCEL]
    script += [completed("P2"), reserved("R3"), OUT_OF_STOCK, reserved("R3"), MENU_DEADLINE]

    first = compensations(*apply(new_order(), *script))
    second = compensations(*apply(new_order(), *script))

    subjects = [(wanted.type, wanted.subject) for wanted in first]
    assert sorted(subjects, key=str) == [
        (REFUND, "P1"), (REFUND, "P2"), (REFUND, None), (RELEASE, "R1"), (RELEASE, "R2"), (RELEASE, "R3"),
    ]  # fmt: skip
    assert len({wanted.id for wanted in first}) == 6
    assert [wanted.id for wanted in first] == [wanted.id for wanted in second]


def test_the_ids_of_two_orders_compensations_differ():
    one, other = after(reserved("R1")), after(reserved("R1"))
    other.key = type(other.key)(int=1)

    [ours], [theirs] = compensations(*apply(one, CANCEL)), compensations(*apply(other, CANCEL))

    assert ours.id != theirs.id


def test_a_compensation_says_why():
    late = compensations(*apply(after(CANCEL), reserved("R1"), completed("P1")))
    ended = compensations(*apply(after(completed("P1")), OUT_OF_STOCK))
    second = compensations(*apply(after(reserved("R1"), completed("P1")), reserved("R2"), completed("P2")))

    assert [wanted.reason for wanted in late] == ["cancelled", "cancelled"]
    assert [wanted.reason for wanted in ended] == ["out_of_stock"]
    assert [wanted.reason for wanted in second] == ["second_reservation", "second_payment"]


# Deadlines.


def test_the_menu_deadline_ends_with_a_null_release():
    order = new_order()

    decision = decide(order, MENU_DEADLINE, policy=POLICY, now=NOW)

    assert told(decision) == "failed: OrderFailed, release None"
    assert (order.reason, order.due_at) == ("expired", None)


@pytest.mark.parametrize("end", [CANCEL, PUT_FAILED, DECLINED], ids=["cancel", "PUT failed", "PaymentFailed"])
@pytest.mark.parametrize("road", [(), (completed("P1"),)], ids=["awaiting_menu", "awaiting_menu_prepaid"])
def test_the_menu_deadline_stays_armed_after_an_end_and_then_releases_once(road, end):
    order = after(*road, end)
    ended = order.state

    passed, again = apply(order, MENU_DEADLINE, MENU_DEADLINE)

    assert told(passed) == f"{ended}: release None"
    assert again.effects == ()


def test_a_nameless_reservation_after_the_null_release_is_given_back_by_it():
    order = after(MENU_DEADLINE)

    nameless, named = apply(order, reserved(None), reserved("R1"))

    assert nameless.effects == ()
    assert named.effects == ()


def test_a_named_reservation_after_the_null_release_is_released_under_its_name_too():
    order = after(MENU_DEADLINE)

    late, repeat = apply(order, reserved("R1"), reserved("R1"))

    assert told(late) == "failed: release R1"
    assert repeat.effects == ()


def test_a_rejection_after_the_end_disarms_the_menu_deadline():
    order = after(CANCEL)

    rejected, deadline = apply(order, OUT_OF_STOCK, MENU_DEADLINE)

    assert rejected.changed
    assert order.due_at is None
    assert deadline.effects == ()


def test_a_rejection_itself_leaves_nothing_armed():
    order = after(OUT_OF_STOCK)

    decision = decide(order, MENU_DEADLINE, policy=POLICY, now=NOW)

    assert decision.effects == ()


def test_a_payment_does_not_stop_the_menu_deadline():
    order = new_order()
    armed = order.due_at

    apply(order, completed("P1"), PUT_PAID)

    assert order.due_at == armed


def test_a_price_change_leaves_nothing_armed():
    order = after(reserved("R1"), expected_total=Decimal(1))

    assert order.due_at is None


# Confirmations.

GIVEN_BACK = {
    "awaiting_payment": (reserved("R1"), reserved("R2")),
    "paid": (reserved("R1"), completed("P1"), reserved("R2"), completed("P2")),
    "failed": (completed("P2"), MENU_DEADLINE),
    "cancelled": (reserved("R1"), CANCEL, completed("P2")),
}


@pytest.mark.parametrize("road", GIVEN_BACK)
def test_a_confirmation_of_a_known_request_counts_in_every_state_and_as_often_as_it_comes(road: str):
    order = new_order()
    asked = compensations(*apply(order, *GIVEN_BACK[road]))
    before = copy.deepcopy(order)
    assert order.state == road

    for wanted in asked:
        confirmation = StockReleased(wanted.id) if wanted.type == RELEASE else PaymentRefunded(wanted.id)
        decisions = apply(order, confirmation, confirmation)
        assert [told(decision) for decision in decisions] == [f"{road}: nothing"] * 2

    assert asked
    assert order == before


@pytest.mark.parametrize("road", GIVEN_BACK)
def test_a_confirmation_does_not_count_for_a_request_of_the_other_kind(road: str):
    order = new_order()
    asked = compensations(*apply(order, *GIVEN_BACK[road]))

    for wanted in asked:
        crossed = PaymentRefunded(wanted.id) if wanted.type == RELEASE else StockReleased(wanted.id)
        with pytest.raises(InvalidMessage):
            decide(order, crossed, policy=POLICY, now=NOW)


@pytest.mark.parametrize(
    ("message", "field_name"),
    [(StockReleased("X"), "data.release_id"), (PaymentRefunded("X"), "data.refund_id")],
    ids=["StockReleased", "PaymentRefunded"],
)
@pytest.mark.parametrize("road", ROADS)
def test_an_unknown_confirmation_is_invalid_and_leaves_the_order_unchanged(road: str, message, field_name: str):
    order = after(*ROADS[road])
    before = copy.deepcopy(order)

    with pytest.raises(InvalidMessage) as refusal:
        decide(order, message, policy=POLICY, now=NOW)

    assert order == before
    assert (refusal.value.order_id, refusal.value.field_name) == (7, field_name)


# Versions.


def test_a_new_order_has_version_one():
    assert new_order().version == 1


@pytest.mark.parametrize(("name", "road"), EVERY_CELL, ids=[f"{name} in {road}" for name, road in EVERY_CELL])
def test_the_version_grows_by_one_exactly_with_a_change(name: str, road: str):
    order = after(*ROADS[road])
    before = copy.deepcopy(order)

    happened = outcome(order, MESSAGES[name])

    changed = order != before
    assert order.version == before.version + changed
    assert changed or "nothing" in happened or happened == "invalid"


def test_naming_a_reservation_or_a_payment_is_a_change():
    order = after(reserved(None), PUT_PAID)

    decisions = apply(order, reserved("R1"), completed("P1"))

    assert [decision.changed for decision in decisions] == [True, True]
    assert order.version == 5


def test_effects_are_handed_out_once():
    order = new_order()

    first, second = apply(order, reserved("R1"), PUT_PENDING)

    assert first.effects
    assert second.effects == ()
    assert order.effects == []


def test_a_final_status_is_never_left():
    for road, name in itertools.product(ROADS, MESSAGES):
        order = after(*ROADS[road])
        before = order.state
        outcome(order, MESSAGES[name])
        assert before not in FINAL or order.state is before
