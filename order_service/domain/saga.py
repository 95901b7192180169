"""The decision table: what every message does to an order in every state. Pure, and total.

Read `DECISIONS` first; the rules above it are its vocabulary. docs/saga.md is printed from it, and a test walks
every cell. The invariant behind it: a pending order ends at its first deciding moment, and every end gives back
what was taken, once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from order_service.domain.order import (
    REFUND,
    RELEASE,
    Announcement,
    Cancel,
    Effect,
    InvalidMessage,
    MenuDeadline,
    MenuRejected,
    MenuReserved,
    Message,
    Order,
    Payment,
    PaymentCompleted,
    PaymentDeadline,
    PaymentFailed,
    PaymentRefunded,
    PutFailed,
    PutPaid,
    PutPending,
    State,
    StockReleased,
    plain,
)


@dataclass(frozen=True, slots=True)
class Clock:
    """The moment of a decision, and how long an order then waits for each answer."""

    now: datetime
    reply_within: timedelta
    pay_within: timedelta


@dataclass(frozen=True, slots=True)
class Decision:
    """What one message did: the transition, the effects in order, and the HTTP status for a REST caller."""

    before: State
    after: State
    changed: bool
    effects: tuple[Effect, ...]
    answer: int | None


def _price(order: Order, message: MenuReserved, clock: Clock) -> None:
    prices = {item.id: item for item in message.items}
    if len(prices) != len(message.items) or prices.keys() != order.lines.keys():
        wanted = ", ".join(map(str, sorted(order.lines)))
        problem = f"must hold one entry for each ordered menu_id: {wanted}"
        raise InvalidMessage(problem, order_id=order.id, field_name="data.items")
    order.due_at = None
    order.is_new_reservation(message.reservation_id)
    order.items = message.items
    order.total_price = sum((prices[id].price * n for id, n in order.lines.items()), Decimal())
    if order.expected_total not in (None, order.total_price):
        change = f"expected {plain(order.expected_total)}, the total is {plain(order.total_price)}"
        order.fail("price_changed", change)
    elif order.payments:
        order.judge(clock.now)
    else:
        order.state = State.AWAITING_PAYMENT
        order.due_at = clock.now + clock.pay_within
        order.effects.append(Announcement.PAYMENT_REQUESTED)


def _release_second(order: Order, message: MenuReserved, clock: Clock) -> None:
    if order.is_new_reservation(message.reservation_id):
        order.release(message.reservation_id, "second_reservation")


def _release_late(order: Order, message: MenuReserved, clock: Clock) -> None:
    order.due_at = None
    if order.is_new_reservation(message.reservation_id):
        order.release(message.reservation_id, order.reason or order.state.value)


def _reject(order: Order, message: MenuRejected, clock: Clock) -> None:
    order.due_at = None
    order.rejected_menu_id = message.menu_id
    what = "was not found" if message.reason == "menu_not_found" else "is out of stock"
    order.fail(message.reason, f"menu item {message.menu_id} {what}")


def _disarm(order: Order, message: MenuRejected, clock: Clock) -> None:
    order.due_at = None


def _remember(order: Order, message: PaymentCompleted | PutPaid, clock: Clock) -> None:
    order.is_new_payment(_payment(message))
    order.state = State.AWAITING_MENU_PREPAID


def _judge(order: Order, message: PaymentCompleted | PutPaid, clock: Clock) -> None:
    order.is_new_payment(_payment(message))
    order.judge(clock.now)


def _refund_second(order: Order, message: PaymentCompleted, clock: Clock) -> None:
    order.take_second_payment(_payment(message))


def _refund_late(order: Order, message: PaymentCompleted, clock: Clock) -> None:
    payment = _payment(message)
    if order.is_new_payment(payment):
        order.refund(payment, order.reason or order.state.value)


def _payment(message: PaymentCompleted | PutPaid) -> Payment:
    if isinstance(message, PutPaid):
        return Payment()
    return Payment(message.payment_id, message.amount)


def _payment_failed(order: Order, message: PaymentFailed | PutFailed, clock: Clock) -> None:
    order.fail("payment_failed", message.reason if isinstance(message, PaymentFailed) else "reported over HTTP")


def _cancel(order: Order, message: Cancel, clock: Clock) -> None:
    order.end(State.CANCELLED, Announcement.ORDER_CANCELLED)


def _expire_menu(order: Order, message: MenuDeadline, clock: Clock) -> None:
    order.fail("expired", "the menu did not answer in time")
    _null_release(order, message, clock)


def _null_release(order: Order, message: MenuDeadline, clock: Clock) -> None:
    if order.due_at is not None:
        order.due_at = None
        order.release(None, order.reason or order.state.value)


def _expire_payment(order: Order, message: PaymentDeadline, clock: Clock) -> None:
    order.fail("expired", "no payment came in time")


def _confirm(order: Order, message: StockReleased | PaymentRefunded, clock: Clock) -> None:
    if isinstance(message, StockReleased):
        name, id, event_type, subjects = "release_id", message.release_id, RELEASE, order.released
    else:
        name, id, event_type, subjects = "refund_id", message.refund_id, REFUND, order.refunded
    if id not in {order.compensation_id(event_type, subject) for subject in subjects}:
        problem = f"must name a request of this order; {id} is unknown"
        raise InvalidMessage(problem, order_id=order.id, field_name=f"data.{name}")


@dataclass(frozen=True, slots=True)
class Rule:
    """One cell: what it says on the page, what it does, where it may lead, and a REST caller's status."""

    text: str
    #: A rule is only ever given the message of its own row, so its parameter is narrower than the table's.
    act: Callable[[Order, Message, Clock], None] | Callable[..., None] | None = None
    to: tuple[State, ...] = ()
    answer: int | None = None


_PAID, _FAILED, _CANCELLED = (State.PAID,), (State.FAILED,), (State.CANCELLED,)
_PREPAID = (State.AWAITING_MENU_PREPAID,)

IGNORE = Rule("ignore")
PRICE = Rule("price, then awaiting_payment + PaymentRequested", _price, (State.AWAITING_PAYMENT, State.FAILED))
PRICE_PREPAID = Rule("price, then judge the remembered payments", _price, (State.PAID, State.FAILED))
RELEASE_SECOND = Rule("another id: release it", _release_second)
RELEASE_LATE = Rule("release it, disarm", _release_late)
REJECT = Rule("failed", _reject, _FAILED)
DISARM = Rule("ignore, disarm", _disarm)
REMEMBER = Rule("remember, then prepaid", _remember, _PREPAID)
JUDGE = Rule("judge", _judge, (State.PAID, State.FAILED))
REFUND_SECOND = Rule("another id: refund it", _refund_second)
REFUND_LATE = Rule("refund it", _refund_late)
PAYMENT_FAILED = Rule("failed", _payment_failed, _FAILED)
PUT_REMEMBER = Rule("remember, 202", _remember, _PREPAID, answer=202)
PUT_PAY = Rule("paid, 200", _judge, _PAID, answer=200)
PUT_FAIL = Rule("failed, 200", _payment_failed, _FAILED, answer=200)
CANCEL = Rule("cancelled, 200", _cancel, _CANCELLED, answer=200)
ALREADY = Rule("200", answer=200)
CONFLICT = Rule("409", answer=409)
EXPIRE_MENU = Rule("failed (expired) + null release", _expire_menu, _FAILED)
NULL_RELEASE = Rule("null release if armed", _null_release)
EXPIRE_PAYMENT = Rule("failed (expired)", _expire_payment, _FAILED)
CONFIRM = Rule("confirm the row it names", _confirm)

#: Message x state -> rule; the columns are the states in the order of `State`.
# fmt: off
DECISIONS: Mapping[type[Message], tuple[Rule, Rule, Rule, Rule, Rule, Rule]] = {
    #                  awaiting_menu   ... _prepaid    awaiting_payment  paid            failed         cancelled
    MenuReserved:     (PRICE,          PRICE_PREPAID,  RELEASE_SECOND,   RELEASE_SECOND, RELEASE_LATE,  RELEASE_LATE),
    MenuRejected:     (REJECT,         REJECT,         REJECT,           IGNORE,         DISARM,        DISARM),
    PaymentCompleted: (REMEMBER,       REMEMBER,       JUDGE,            REFUND_SECOND,  REFUND_LATE,   REFUND_LATE),
    PaymentFailed:    (PAYMENT_FAILED, PAYMENT_FAILED, PAYMENT_FAILED,   IGNORE,         IGNORE,        IGNORE),
    PutPaid:          (PUT_REMEMBER,   PUT_REMEMBER,   PUT_PAY,          ALREADY,        CONFLICT,      CONFLICT),
    PutFailed:        (PUT_FAIL,       PUT_FAIL,       PUT_FAIL,         CONFLICT,       ALREADY,       CONFLICT),
    PutPending:       (ALREADY,        ALREADY,        ALREADY,          CONFLICT,       CONFLICT,      CONFLICT),
    Cancel:           (CANCEL,         CANCEL,         CANCEL,           CONFLICT,       CONFLICT,      ALREADY),
    MenuDeadline:     (EXPIRE_MENU,    EXPIRE_MENU,    IGNORE,           IGNORE,         NULL_RELEASE,  NULL_RELEASE),
    PaymentDeadline:  (IGNORE,         IGNORE,         EXPIRE_PAYMENT,   IGNORE,         IGNORE,        IGNORE),
    StockReleased:    (CONFIRM,        CONFIRM,        CONFIRM,          CONFIRM,        CONFIRM,       CONFIRM),
    PaymentRefunded:  (CONFIRM,        CONFIRM,        CONFIRM,          CONFIRM,        CONFIRM,       CONFIRM),
}
# fmt: on
_COLUMN = {state: column for column, state in enumerate(State)}


def rule_for(message: type[Message], state: State) -> Rule:
    """The one rule for a message in a state; every pair has one."""
    return DECISIONS[message][_COLUMN[state]]


def decide(order: Order, message: Message, clock: Clock) -> Decision:
    """Apply one message to an order and say what came of it.

    Raises InvalidMessage, the order then being unchanged. A change raises `order.version` by one; everything
    announced by it carries that version as its sequence.
    """
    before, mark = order.state, _mark(order)
    rule = rule_for(type(message), before)
    if rule.act is not None:
        rule.act(order, message, clock)
    changed = _mark(order) != mark
    if changed:
        order.version += 1
    effects, order.effects = tuple(order.effects), []
    return Decision(before, order.state, changed, effects, rule.answer)


def _mark(order: Order) -> tuple[object, ...]:
    """Everything a rule can change, small enough to compare."""
    payments, reservations = tuple(order.payments), tuple(order.reservations)
    given_back = len(order.released), len(order.refunded)
    return order.state, order.due_at, payments, reservations, given_back
