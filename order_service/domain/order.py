"""The domain: an order, and the one total table that says what every message does to it. No I/O, no clock."""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from hashlib import sha1
from uuid import UUID


class State(StrEnum):
    """Where an order stands inside; the public word for it is `status`."""

    AWAITING_MENU = "awaiting_menu"
    AWAITING_MENU_PREPAID = "awaiting_menu_prepaid"
    AWAITING_PAYMENT = "awaiting_payment"
    PAID = "paid"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def status(self) -> str:
        """The client's vocabulary: pending, paid, failed or cancelled."""
        return self.value if self in FINAL else "pending"


#: The states a status never leaves.
FINAL = frozenset({State.PAID, State.FAILED, State.CANCELLED})
#: The states in which the menu's answer is still what the order waits for.
AWAITING_MENU = frozenset({State.AWAITING_MENU, State.AWAITING_MENU_PREPAID})


def plain(amount: Decimal | None) -> str:
    """An amount in a text, without the zeros that PostgreSQL or a sibling's way of writing gave it."""
    return "nothing" if amount is None else f"{amount.normalize():f}"


def _id_within(namespace: UUID, name: str) -> str:
    """The text of `uuid.uuid5`, without the object that takes longer to make than the hash (RFC 9562, section 5.5)."""
    digest = sha1(namespace.bytes + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) % 4]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


class OrderError(Exception):
    """Something an order refuses; carries what a log line or an answer needs to say why."""

    def __init__(self, problem: str, *, order_id: int | None = None, field_name: str | None = None) -> None:
        super().__init__(problem)
        self.order_id = order_id
        self.field_name = field_name


class InvalidMessage(OrderError):
    """The message contradicts the order it names: it can never succeed, so it is dead-lettered."""


class UnknownOrder(OrderError):
    """No order has the id that was asked for."""


@dataclass(frozen=True, slots=True)
class Item:
    """One dish as the menu priced it; `stock` is what remains after the reservation."""

    id: int
    name: str
    price: Decimal
    stock: int


@dataclass(frozen=True, slots=True)
class Payment:
    """Money reported for an order. PUT paid names neither id nor amount: it counts as the full total."""

    id: str | None = None
    amount: Decimal | None = None


@dataclass(frozen=True, slots=True)
class MenuReserved:
    items: tuple[Item, ...]
    reservation_id: str | None = None


@dataclass(frozen=True, slots=True)
class MenuRejected:
    reason: str
    menu_id: int


@dataclass(frozen=True, slots=True)
class PaymentCompleted:
    payment_id: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class PaymentFailed:
    reason: str


@dataclass(frozen=True, slots=True)
class PutPaid:
    """The client's PUT /orders/{id}/payment with `paid`."""


@dataclass(frozen=True, slots=True)
class PutFailed:
    """The same with `failed`."""


@dataclass(frozen=True, slots=True)
class PutPending:
    """The same with `pending`."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client's DELETE /orders/{id}."""


@dataclass(frozen=True, slots=True)
class MenuDeadline:
    """The menu's time is up, all reminders included."""


@dataclass(frozen=True, slots=True)
class PaymentDeadline:
    """`pay_by` has passed."""


@dataclass(frozen=True, slots=True)
class StockReleased:
    release_id: str


@dataclass(frozen=True, slots=True)
class PaymentRefunded:
    refund_id: str


Message = (
    MenuReserved | MenuRejected | PaymentCompleted | PaymentFailed | PutPaid | PutFailed | PutPending
    | Cancel | MenuDeadline | PaymentDeadline | StockReleased | PaymentRefunded
)  # fmt: skip


class Announcement(StrEnum):
    """What an order tells the world once; the value is the event's type."""

    ORDER_CREATED = "OrderCreated"
    PAYMENT_REQUESTED = "PaymentRequested"
    ORDER_PAID = "OrderPaid"
    ORDER_FAILED = "OrderFailed"
    ORDER_CANCELLED = "OrderCancelled"


@dataclass(frozen=True, slots=True)
class Compensation:
    """Something to give back, asked for under one id until the sibling confirms it.

    `subject` is the reservation's or the payment's id; None means whatever is held for the order.
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
    """One order. Only `decide` changes it; `effects` holds what the change announces."""

    id: int
    #: Namespace of the ids of everything this order sends: the same event always has the same id.
    key: UUID
    user_id: int
    menu_ids: tuple[int, ...]
    created_at: datetime
    expected_total: Decimal | None = None
    state: State = State.AWAITING_MENU
    version: int = 1
    items: tuple[Item, ...] = ()
    total_price: Decimal | None = None
    #: Reservation ids in order of arrival, None for a nameless one; the first is the accepted one if priced.
    reservations: list[str | None] = field(default_factory=list)
    #: Payments in order of arrival; the first is the one kept if paid.
    payments: list[Payment] = field(default_factory=list)
    #: What a release or a refund was already asked for.
    released: list[str | None] = field(default_factory=list)
    refunded: list[str | None] = field(default_factory=list)
    reason: str | None = None
    detail: str | None = None
    rejected_menu_id: int | None = None
    paid_at: datetime | None = None
    #: The armed deadline: the payment's in awaiting_payment, otherwise the menu's next reminder or its end.
    due_at: datetime | None = None
    reminders_left: int = 0
    traceparent: str | None = None
    effects: list[Effect] = field(default_factory=list)

    @property
    def lines(self) -> dict[int, int]:
        """Quantity by distinct menu id, in the order first asked for."""
        lines: dict[int, int] = {}
        for menu_id in self.menu_ids:
            lines[menu_id] = lines.get(menu_id, 0) + 1
        return lines

    @property
    def is_untouched(self) -> bool:
        """Whether no message was applied to it yet: the first one, whatever it is, changes an order or is refused."""
        return self.version == 1

    def event_id(self, event_type: str) -> str:
        """The id under which this order sends its one event of this type, however often."""
        return _id_within(self.key, event_type)

    def compensation_id(self, event_type: str, subject: str | None) -> str:
        """The id of the one release or refund of this subject."""
        return _id_within(self.key, event_type if subject is None else f"{event_type} {subject}")

    def release(self, reservation_id: str | None, reason: str) -> None:
        """Ask once for a reservation to be given back; None: whatever is held for this order."""
        if reservation_id not in self.released:
            self.released.append(reservation_id)
            release_id = self.compensation_id(RELEASE, reservation_id)
            self.effects.append(Compensation(RELEASE, release_id, reservation_id, None, reason))

    def refund(self, payment: Payment, reason: str) -> None:
        """Ask for a payment to be given back; a nameless one: what was paid for this order."""
        self.refunded.append(payment.id)
        refund_id = self.compensation_id(REFUND, payment.id)
        self.effects.append(Compensation(REFUND, refund_id, payment.id, payment.amount, reason))

    def is_new_reservation(self, reservation_id: str | None) -> bool:
        """Record a reservation; False for a repeat, and for the first id after a nameless one, its name."""
        if reservation_id in self.reservations or (reservation_id is None and self.reservations):
            return False
        if None in self.reservations:
            self.reservations[self.reservations.index(None)] = reservation_id
            return False
        self.reservations.append(reservation_id)
        return True

    def is_new_payment(self, payment: Payment) -> bool:
        """Record a payment in order of arrival; False for a repeat: the first amount of an id stands."""
        if any(known.id == payment.id for known in self.payments):
            return False
        self.payments.append(payment)
        return True

    def end(self, state: State, announcement: Announcement) -> None:
        """Reach failed or cancelled: give back the accepted reservation and every payment, each once.

        The menu's deadline stays armed while the menu has not answered; the payment's goes.
        """
        if self.state is State.AWAITING_PAYMENT:
            self.due_at = None
        self.state = state
        self.effects.append(announcement)
        reason = self.reason or state.value
        if self.total_price is not None:
            self.release(self.reservations[0], reason)
        for payment in self.payments:
            self.refund(payment, reason)

    def fail(self, reason: str, detail: str) -> None:
        """Reach failed for one of the public reasons."""
        self.reason, self.detail = reason, detail
        self.end(State.FAILED, Announcement.ORDER_FAILED)

    def judge(self, at: datetime) -> None:
        """The first payment decides; the later ones are treated as if they came after that."""
        first, *later = self.payments
        if first.amount is not None and first.amount != self.total_price:
            self.fail("amount_mismatch", f"paid {plain(first.amount)}, the total is {plain(self.total_price)}")
            return
        self.state, self.paid_at, self.due_at = State.PAID, at, None
        self.effects.append(Announcement.ORDER_PAID)
        self.payments = [first]
        for payment in later:
            if payment.id is not None:
                self.take_second_payment(payment)

    def take_second_payment(self, payment: Payment) -> None:
        """A payment for an order already paid: it names the nameless one if it can, else it is refunded."""
        if not self.is_new_payment(payment):
            return
        if self.payments[0].id is None and payment.amount == self.total_price:
            self.payments[0] = self.payments.pop()
        else:
            self.refund(payment, "second_payment")
