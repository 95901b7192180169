"""What can happen to an order: a sibling's reply, a client's request, or a deadline."""

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Item:
    """A dish with the menu's price; `stock` is what remains, None if the menu does not count it."""

    id: int
    name: str
    price: Decimal
    stock: int | None


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
class ReportPaid:
    """A REST client reports the payment as paid; the report contains neither a payment id nor an amount."""


@dataclass(frozen=True, slots=True)
class ReportFailed:
    """A REST client reports the payment as failed."""


@dataclass(frozen=True, slots=True)
class ReportPending:
    """A REST client reports the payment as pending."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client cancels the order."""


@dataclass(frozen=True, slots=True)
class MenuDeadline:
    """The menu has not answered in time, even after all reminders."""


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
    MenuReserved | MenuRejected | PaymentCompleted | PaymentFailed | ReportPaid | ReportFailed | ReportPending
    | Cancel | MenuDeadline | PaymentDeadline | StockReleased | PaymentRefunded
)  # fmt: skip
