"""The saga: what each message does to an order in each state, and what a passed deadline means. Pure and total.

Read `DECISIONS` first; the rules that it uses are defined above it. docs/saga.md is generated from it, and a test
covers every cell. The invariant: the first deciding event ends a pending order, and every end compensates what was
reserved and paid, once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from operator import attrgetter

from order_service.domain.messages import (
    Cancel,
    MenuDeadline,
    MenuRejected,
    MenuReserved,
    Message,
    PaymentCompleted,
    PaymentDeadline,
    PaymentFailed,
    PaymentRefunded,
    ReportFailed,
    ReportPaid,
    ReportPending,
    StockReleased,
)
from order_service.domain.order import (
    AWAITING_MENU,
    FINAL,
    REFUND,
    RELEASE,
    Announcement,
    Compensation,
    Effect,
    InvalidMessage,
    Order,
    Payment,
    State,
    amount_text,
)


@dataclass(frozen=True, slots=True)
class Policy:
    """The durations and limits of an order's life; docs/settings.md describes the setting of each."""

    menu_reply: timedelta
    menu_reminders: int
    payment: timedelta
    lifetime: timedelta
    compensation_pause: timedelta
    compensation_attempts: int
    #: Whether the Payment Service receives events; otherwise an operator makes the refunds.
    payment_events: bool = True


class Outcome(StrEnum):
    """The outcome of a client's request."""

    DONE = "done"
    #: Accepted; takes effect when the menu has answered.
    REMEMBERED = "remembered"
    #: The order has already ended with another status, or was paid before the menu answered.
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of one message: the transition, the effects in order, and the outcome if it was a client's request."""

    before: State
    after: State
    changed: bool
    effects: tuple[Effect, ...]
    outcome: Outcome | None


def _price(order: Order, message: MenuReserved, policy: Policy, now: datetime) -> None:
    prices = {item.id: item for item in message.items}
    if len(prices) != len(message.items) or prices.keys() != order.lines.keys():
        wanted = ", ".join(map(str, sorted(order.lines)))
        problem = f"must hold one entry for each ordered menu_id: {wanted}"
        raise InvalidMessage(problem, order_id=order.id, field_name="data.items")
    order.due_at = None
    order.record_reservation(message.reservation_id)
    order.items = message.items
    order.total_price = sum((prices[id].price * n for id, n in order.lines.items()), Decimal())
    if order.expected_total not in (None, order.total_price):
        change = f"expected {amount_text(order.expected_total)}, the total is {amount_text(order.total_price)}"
        order.fail("price_changed", change)
    elif order.payments or not order.total_price:
        # A free order keeps a payment without an id, so that later ones are second payments.
        order.payments = order.payments or (Payment(amount=Decimal()),)
        order.judge(now)
    else:
        order.state, order.reminders_left = State.AWAITING_PAYMENT, 1
        order.due_at = deadline(order, policy=policy, now=now)
        order.effects.append(Announcement.PAYMENT_REQUESTED)


def _release_second(order: Order, message: MenuReserved, policy: Policy, now: datetime) -> None:
    if order.record_reservation(message.reservation_id):
        order.release(message.reservation_id, "second_reservation")


def _release_late(order: Order, message: MenuReserved, policy: Policy, now: datetime) -> None:
    if order.record_reservation(message.reservation_id):
        order.release(message.reservation_id, order.end_reason)
    order.due_at = None


def _reject(order: Order, message: MenuRejected, policy: Policy, now: datetime) -> None:
    order.due_at = None
    order.rejected_menu_id = message.menu_id
    what = "was not found" if message.reason == "menu_not_found" else "is out of stock"
    order.fail(message.reason, f"menu item {message.menu_id} {what}")


def _disarm(order: Order, message: MenuRejected, policy: Policy, now: datetime) -> None:
    order.due_at = None


def _remember(order: Order, message: PaymentCompleted | ReportPaid, policy: Policy, now: datetime) -> None:
    order.record_payment(_payment(message))
    order.state = State.AWAITING_MENU_PREPAID


def _judge(order: Order, message: PaymentCompleted | ReportPaid, policy: Policy, now: datetime) -> None:
    order.record_payment(_payment(message))
    order.judge(now)


def _refund_second(order: Order, message: PaymentCompleted, policy: Policy, now: datetime) -> None:
    order.settle_second_payment(_payment(message))


def _refund_late(order: Order, message: PaymentCompleted, policy: Policy, now: datetime) -> None:
    payment = _payment(message)
    if order.record_payment(payment):
        order.refund(payment, order.end_reason)


def _payment(message: PaymentCompleted | ReportPaid) -> Payment:
    if isinstance(message, ReportPaid):
        return Payment()
    return Payment(message.payment_id, message.amount)


def _payment_failed(order: Order, message: PaymentFailed | ReportFailed, policy: Policy, now: datetime) -> None:
    order.fail("payment_failed", message.reason if isinstance(message, PaymentFailed) else "reported over HTTP")


def _cancel(order: Order, message: Cancel, policy: Policy, now: datetime) -> None:
    order.end(State.CANCELLED, Announcement.ORDER_CANCELLED)


def _expire_menu(order: Order, message: MenuDeadline, policy: Policy, now: datetime) -> None:
    order.fail("expired", "the menu did not answer in time")
    _null_release(order, message, policy, now)


def _null_release(order: Order, message: MenuDeadline, policy: Policy, now: datetime) -> None:
    if order.due_at is not None:
        order.due_at = None
        order.release(None, order.end_reason)


def _expire_payment(order: Order, message: PaymentDeadline, policy: Policy, now: datetime) -> None:
    order.fail("expired", "no payment came in time")


def _confirm(order: Order, message: StockReleased | PaymentRefunded, policy: Policy, now: datetime) -> None:
    if isinstance(message, StockReleased):
        name, id, event_type, subjects = "release_id", message.release_id, RELEASE, order.released
    else:
        name, id, event_type, subjects = "refund_id", message.refund_id, REFUND, order.refunded
    if id not in {order.compensation_id(event_type, subject) for subject in subjects}:
        problem = f"must name a request of this order; {id} is unknown"
        raise InvalidMessage(problem, order_id=order.id, field_name=f"data.{name}")


@dataclass(frozen=True, slots=True)
class Rule:
    """One cell: its text in docs/saga.md, its action, the states it may lead to, and the outcome for a client."""

    text: str
    #: A rule receives only messages of its own row, so its parameter type is narrower than the table's.
    act: Callable[[Order, Message, Policy, datetime], None] | Callable[..., None] | None = None
    to: tuple[State, ...] = ()
    outcome: Outcome | None = None


_DONE, _REMEMBERED, _REFUSED = Outcome
_PAID, _FAILED, _CANCELLED = (State.PAID,), (State.FAILED,), (State.CANCELLED,)
_PREPAID = (State.AWAITING_MENU_PREPAID,)

IGNORE = Rule("ignore")
PRICE = Rule(
    "price, then awaiting_payment + PaymentRequested; paid if the total is 0",
    _price,
    (State.AWAITING_PAYMENT, State.PAID, State.FAILED),
)
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
REPORT_REMEMBER = Rule("remember, then prepaid", _remember, _PREPAID, _REMEMBERED)
REPORT_PAID = Rule("paid", _judge, _PAID, _DONE)
REPORT_FAILED = Rule("failed", _payment_failed, _FAILED, _DONE)
CANCEL = Rule("cancelled", _cancel, _CANCELLED, _DONE)
ALREADY = Rule("ignore", outcome=_DONE)
CONFLICT = Rule("ignore", outcome=_REFUSED)
EXPIRE_MENU = Rule("failed (expired) + null release", _expire_menu, _FAILED)
NULL_RELEASE = Rule("null release if armed", _null_release)
EXPIRE_PAYMENT = Rule("failed (expired)", _expire_payment, _FAILED)
CONFIRM = Rule("confirm the row it names", _confirm)

#: Message x state -> rule; the columns are the states in the order of `State`.
# fmt: off
DECISIONS: Mapping[type[Message], tuple[Rule, Rule, Rule, Rule, Rule, Rule]] = {
    #                  awaiting_menu    ... _prepaid     awaiting_payment  paid            failed         cancelled
    MenuReserved:     (PRICE,           PRICE_PREPAID,   RELEASE_SECOND,   RELEASE_SECOND, RELEASE_LATE,  RELEASE_LATE),
    MenuRejected:     (REJECT,          REJECT,          REJECT,           IGNORE,         DISARM,        DISARM),
    PaymentCompleted: (REMEMBER,        REMEMBER,        JUDGE,            REFUND_SECOND,  REFUND_LATE,   REFUND_LATE),
    PaymentFailed:    (PAYMENT_FAILED,  IGNORE,          PAYMENT_FAILED,   IGNORE,         IGNORE,        IGNORE),
    ReportPaid:       (REPORT_REMEMBER, REPORT_REMEMBER, REPORT_PAID,      ALREADY,        CONFLICT,      CONFLICT),
    ReportFailed:     (REPORT_FAILED,   CONFLICT,        REPORT_FAILED,    CONFLICT,       ALREADY,       CONFLICT),
    ReportPending:    (ALREADY,         ALREADY,         ALREADY,          CONFLICT,       CONFLICT,      CONFLICT),
    Cancel:           (CANCEL,          CANCEL,          CANCEL,           CONFLICT,       CONFLICT,      ALREADY),
    MenuDeadline:     (EXPIRE_MENU,     EXPIRE_MENU,     IGNORE,           IGNORE,         NULL_RELEASE,  NULL_RELEASE),
    PaymentDeadline:  (IGNORE,          IGNORE,          EXPIRE_PAYMENT,   IGNORE,         IGNORE,        IGNORE),
    StockReleased:    (CONFIRM,         CONFIRM,         CONFIRM,          CONFIRM,        CONFIRM,       CONFIRM),
    PaymentRefunded:  (CONFIRM,         CONFIRM,         CONFIRM,          CONFIRM,        CONFIRM,       CONFIRM),
}
# fmt: on
_COLUMN = {state: column for column, state in enumerate(State)}
_UNDECIDED = {
    "id", "key", "user_id", "menu_ids", "created_at", "expected_total", "traceparent", "tracestate", "version",
    "effects",
}  # fmt: skip
#: Every field that a rule can change; all of them hold immutable values, so comparing them finds every change.
_decided_fields = attrgetter(*(each.name for each in fields(Order) if each.name not in _UNDECIDED))


def rule_for(message: type[Message], state: State) -> Rule:
    """The rule for a message in a state; every pair has exactly one."""
    return DECISIONS[message][_COLUMN[state]]


def decide(order: Order, message: Message, *, policy: Policy, now: datetime) -> Decision:
    """Apply one message to an order and return the result.

    Raises InvalidMessage and leaves the order unchanged. A change increments `order.version`; its events carry that
    version as their sequence.
    """
    before, fields_before = order.state, _decided_fields(order)
    rule = rule_for(type(message), before)
    if rule.act is not None:
        rule.act(order, message, policy, now)
    changed = _decided_fields(order) != fields_before
    if changed:
        order.version += 1
    effects, order.effects = tuple(order.effects), []
    return Decision(before, order.state, changed, effects, rule.outcome)


def is_sent(effect: Effect, policy: Policy) -> bool:
    """Whether this effect is published; a Payment Service that only speaks HTTP is sent nothing."""
    event_type = effect.type if isinstance(effect, Compensation) else effect
    return policy.payment_events or event_type not in (Announcement.PAYMENT_REQUESTED, REFUND)


#: The versions of an order at which it publishes the events that are repeated: nothing else precedes its pricing.
FIRST_SEQUENCE = {Announcement.ORDER_CREATED: 1, Announcement.PAYMENT_REQUESTED: 2}


def awaited_event(order: Order) -> Announcement:
    """The event whose answer the armed deadline waits for."""
    is_payment = order.state is State.AWAITING_PAYMENT
    return Announcement.PAYMENT_REQUESTED if is_payment else Announcement.ORDER_CREATED


def lifetime_is_over(order: Order, *, policy: Policy, now: datetime) -> bool:
    """Whether a pending order is as old as any may become: it then expires, even if nothing of it could be sent."""
    return order.state not in FINAL and now >= order.created_at + policy.lifetime


def limited(order: Order, at: datetime, *, policy: Policy) -> datetime:
    """This time, or the end of a pending order's lifetime if that is earlier."""
    return at if order.state in FINAL else min(at, order.created_at + policy.lifetime)


def deadline(order: Order, *, policy: Policy, now: datetime) -> datetime:
    """The deadline of the state that the order is in, armed or postponed now.

    The payment's is first that of its one reminder, halfway to `pay_by`.
    """
    if order.state is not State.AWAITING_PAYMENT:
        return limited(order, now + policy.menu_reply, policy=policy)
    if not order.reminders_left:
        return limited(order, now + policy.payment / 2, policy=policy)
    return now + (limited(order, now + policy.payment, policy=policy) - now) / 2


def pay_by(order: Order, due_at: datetime, *, policy: Policy) -> datetime:
    """When an order that awaits its payment expires, by its armed deadline: that of the reminder, or already the last.

    Not stored: from halfway it is as far again, or the end of the lifetime.
    """
    return limited(order, due_at + policy.payment / 2, policy=policy) if order.reminders_left else due_at


def expires_at(order: Order, *, policy: Policy) -> datetime | None:
    """When a pending order expires if nothing comes, by its armed deadline and the reminders that are left."""
    if order.due_at is None:
        return None
    if order.state is State.AWAITING_PAYMENT:
        return pay_by(order, order.due_at, policy=policy)
    return limited(order, order.due_at + order.reminders_left * policy.menu_reply, policy=policy)


def deadline_message(order: Order, *, policy: Policy, now: datetime) -> MenuDeadline | PaymentDeadline | None:
    """The message that a passed deadline produces; None while a reminder is left."""
    if order.state is State.AWAITING_PAYMENT:
        return PaymentDeadline() if now >= pay_by(order, order.due_at or now, policy=policy) else None
    is_reminded = order.reminders_left and not lifetime_is_over(order, policy=policy, now=now)
    return None if is_reminded else MenuDeadline()


def use_reminder(order: Order, *, policy: Policy, now: datetime) -> bool:
    """Use up one reminder and arm the next deadline; return whether to send the awaited event again."""
    if order.state is State.AWAITING_PAYMENT:
        # Set to 0: an order that was priced by a version without this reminder still has those of the menu.
        order.due_at, order.reminders_left = pay_by(order, order.due_at or now, policy=policy), 0
        return True
    order.reminders_left -= 1
    order.due_at = deadline(order, policy=policy, now=now)
    return order.state in AWAITING_MENU
