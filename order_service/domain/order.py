"""The order aggregate: its state, its reservations and payments, and the effects of their changes.

`saga.py` decides what a message changes; a change that takes more than an assignment is a method here.
"""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from hashlib import sha1
from uuid import UUID

from order_service.domain.messages import Item


class State(StrEnum):
    """The internal state of an order; its public summary is `status`."""

    AWAITING_MENU = "awaiting_menu"
    AWAITING_MENU_PREPAID = "awaiting_menu_prepaid"
    AWAITING_PAYMENT = "awaiting_payment"
    PAID = "paid"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def status(self) -> str:
        """The public status: pending, paid, failed or cancelled."""
        return self.value if self in FINAL else "pending"


#: The final states.
FINAL = frozenset({State.PAID, State.FAILED, State.CANCELLED})
#: The states in which the order waits for the menu.
AWAITING_MENU = frozenset({State.AWAITING_MENU, State.AWAITING_MENU_PREPAID})
#: The most reservations, and the most payments with an id, that an order records. It needs one of each, and faults
#: cause a few more. Its row contains all of them, and is read and written for every message.
MAX_RESERVATIONS = MAX_PAYMENTS = 100


class OrderError(Exception):
    """A domain error, with the order id and field for logs and responses."""

    def __init__(self, problem: str, *, order_id: int | None = None, field_name: str | None = None) -> None:
        super().__init__(problem)
        self.order_id = order_id
        self.field_name = field_name


class InvalidMessage(OrderError):
    """The message contradicts its order and can never be applied, so it is dead-lettered with this code."""

    code = "invalid"


class TooMany(InvalidMessage):
    """The order already has as many reservations or payments as it records."""

    code = "too_many"


class UnknownOrder(OrderError):
    """No order has the requested id."""


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment reported for an order. One reported over REST has neither id nor amount, and counts as the total."""

    id: str | None = None
    amount: Decimal | None = None


class Announcement(StrEnum):
    """An event that an order publishes once; the value is the event's type."""

    ORDER_CREATED = "OrderCreated"
    PAYMENT_REQUESTED = "PaymentRequested"
    ORDER_PAID = "OrderPaid"
    ORDER_FAILED = "OrderFailed"
    ORDER_CANCELLED = "OrderCancelled"


@dataclass(frozen=True, slots=True)
class Compensation:
    """A release or a refund, requested under one id until the sibling confirms it.

    `subject` is the reservation's or the payment's id; None means everything held for the order.
    """

    type: str
    id: str
    subject: str | None
    amount: Decimal | None
    reason: str


RELEASE = "StockReleaseRequested"
REFUND = "RefundRequested"

Effect = Announcement | Compensation


@dataclass(slots=True)
class Order:
    """One order; `effects` collects the effects of its changes."""

    id: int
    #: The namespace of the ids of all events of this order: the same event always has the same id.
    key: UUID
    user_id: int
    menu_ids: tuple[int, ...]
    created_at: datetime
    expected_total: Decimal | None = None
    state: State = State.AWAITING_MENU
    version: int = 1
    items: tuple[Item, ...] = ()
    total_price: Decimal | None = None
    #: Reservation ids in order of arrival, None for one without an id; the first is the accepted one if priced.
    reservations: tuple[str | None, ...] = ()
    #: Payments in order of arrival; the first is the one kept if paid.
    payments: tuple[Payment, ...] = ()
    #: The subjects of the releases and refunds requested so far.
    released: tuple[str | None, ...] = ()
    refunded: tuple[str | None, ...] = ()
    reason: str | None = None
    detail: str | None = None
    rejected_menu_id: int | None = None
    paid_at: datetime | None = None
    #: The armed deadline: the next reminder or the expiry, of the payment in awaiting_payment, otherwise of the menu.
    due_at: datetime | None = None
    reminders_left: int = 0
    traceparent: str | None = None
    tracestate: str | None = None
    effects: list[Effect] = field(default_factory=list)

    @property
    def lines(self) -> dict[int, int]:
        """Quantity by distinct menu id, in order of first appearance."""
        lines: dict[int, int] = {}
        for menu_id in self.menu_ids:
            lines[menu_id] = lines.get(menu_id, 0) + 1
        return lines

    @property
    def is_new(self) -> bool:
        """Whether no message was applied to it yet: the first accepted one always increments the version."""
        return self.version == 1

    def event_id(self, event_type: str) -> str:
        """The id of this order's one event of this type, the same each time it is sent."""
        return _uuid5_text(self.key, event_type)

    def compensation_id(self, event_type: str, subject: str | None) -> str:
        """The id of the one release or refund of this subject."""
        return _uuid5_text(self.key, event_type if subject is None else f"{event_type} {subject}")

    def release(self, reservation_id: str | None, reason: str) -> None:
        """Request the release of a reservation, once; None means everything held for this order."""
        if reservation_id not in self.released:
            self.released += (reservation_id,)
            release_id = self.compensation_id(RELEASE, reservation_id)
            self.effects.append(Compensation(RELEASE, release_id, reservation_id, None, reason))

    def refund(self, payment: Payment, reason: str) -> None:
        """Request the refund of a payment; one without an id means everything paid for this order."""
        self.refunded += (payment.id,)
        refund_id = self.compensation_id(REFUND, payment.id)
        self.effects.append(Compensation(REFUND, refund_id, payment.id, payment.amount, reason))

    def record_reservation(self, reservation_id: str | None) -> bool:
        """Record a reservation and return True; return False for a repeat of a known one.

        If the known reservation has no id, the first id that arrives is assigned to it and counts as a duplicate.
        Raises TooMany.
        """
        if reservation_id in self.reservations or (reservation_id is None and self.reservations):
            return False
        if None in self.reservations:
            self.reservations = tuple(reservation_id if known is None else known for known in self.reservations)
            return False
        if len(self.reservations) >= MAX_RESERVATIONS:
            problem = f"is one more than the {MAX_RESERVATIONS} recorded for this order; release it without a request"
            raise TooMany(problem, order_id=self.id, field_name="data.reservation_id")
        self.reservations += (reservation_id,)
        return True

    def record_payment(self, payment: Payment) -> bool:
        """Record a payment and return True; return False for a repeat: the first amount recorded for an id is kept.

        Raises TooMany, but not for the one payment without an id.
        """
        if any(known.id == payment.id for known in self.payments):
            return False
        if payment.id is not None and sum(known.id is not None for known in self.payments) >= MAX_PAYMENTS:
            problem = f"is one more than the {MAX_PAYMENTS} recorded for this order; refund it without a request"
            raise TooMany(problem, order_id=self.id, field_name="data.payment_id")
        self.payments += (payment,)
        return True

    def end(self, state: State, announcement: Announcement) -> None:
        """End the order as failed or cancelled: release the accepted reservation and refund every payment, each once.

        The menu's deadline stays armed while the menu has not answered; the payment's is disarmed.
        """
        if self.state is State.AWAITING_PAYMENT:
            self.due_at = None
        self.state = state
        self.effects.append(announcement)
        if self.total_price is not None:
            self.release(self.reservations[0], self.end_reason)
        for payment in self.payments:
            self.refund(payment, self.end_reason)

    @property
    def end_reason(self) -> str:
        """The reason given for the compensations of an ended order."""
        return self.reason or self.state.value

    def fail(self, reason: str, detail: str) -> None:
        """Fail the order for one of the public reasons."""
        self.reason, self.detail = reason, detail
        self.end(State.FAILED, Announcement.ORDER_FAILED)

    def judge(self, at: datetime) -> None:
        """Settle the order by its first payment, then handle later payments as second payments."""
        first, *later = self.payments
        if first.amount is not None and first.amount != self.total_price:
            self.fail(
                "amount_mismatch", f"paid {amount_text(first.amount)}, the total is {amount_text(self.total_price)}"
            )
            return
        self.state, self.paid_at, self.due_at = State.PAID, at, None
        self.effects.append(Announcement.ORDER_PAID)
        self.payments = (first,)
        for payment in later:
            if payment.id is not None:
                self.settle_second_payment(payment)

    def settle_second_payment(self, payment: Payment) -> None:
        """Handle a further payment of a paid order.

        If the kept payment has no id and the amount matches the total, it replaces that payment; otherwise refund it.
        """
        first, *others = self.payments
        is_known = any(known.id == payment.id for known in others)
        if first.id is None and payment.amount == self.total_price and not is_known:
            self.payments = (payment, *others)
        elif self.record_payment(payment):
            self.refund(payment, "second_payment")


def amount_text(amount: Decimal | None) -> str:
    """An amount as text for messages, without trailing zeros."""
    return "nothing" if amount is None else f"{amount.normalize():f}"


def _uuid5_text(namespace: UUID, name: str) -> str:
    """The text of `uuid.uuid5(namespace, name)` at a third of its cost (RFC 9562, section 5.5)."""
    digest = sha1(namespace.bytes + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) % 4]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"
