"""The contract: the data of every event that comes in and goes out. The envelope around it is in envelope.py.

Incoming models ignore unknown fields (tolerant reader) and are strict about the known ones; docs/events.md and
the JSON Schemas are made from them.
"""

import json
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticKnownError

from order_service.domain import messages as domain

#: Prices stay below a thousand million and amounts below a hundred times that (100 dishes), with four decimals at
#: most: fifteen digits, which every JSON reader keeps exactly, doubles included.
MAX_PRICE = Decimal(10**9)
MAX_AMOUNT = Decimal(10**11)
#: One scale, alike on both databases.
_SCALE = Decimal("0.0001")
#: JSON Schema's multipleOf would say it, but readers that compute in doubles refuse 0.0003 by it.
DECIMALS = "at most four decimals"


def as_number(amount: Decimal) -> int | float:
    """An exact decimal as the JSON number that reads back as the same decimal, without a trailing `.0`."""
    return int(amount) if amount == amount.to_integral_value() else float(amount)


def exact_decimal(text: str) -> Decimal:
    """A JSON fraction as the decimal it was written as. Raises ValueError for NaN, Infinity and giant exponents."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise ValueError(f"{text[:40]} is not a number we can read")
    return number


_DECODER = json.JSONDecoder(parse_float=exact_decimal, parse_constant=exact_decimal)


def exact_json(document: str | bytes) -> Any:
    """What json.loads() makes of a document, with its fractions exact. Raises ValueError, and RecursionError."""
    # Given these functions it would make a decoder each time; it is content with anything that hands it one.
    return json.loads(document, cls=lambda: _DECODER)  # type: ignore[arg-type]


def _exact_amount(value: object, check: ValidatorFunctionWrapHandler) -> Decimal:
    # Decimal is what exact_json() makes of a fraction, so that 0.1 stays 0.1; text and true are no amounts.
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise ValueError("must be a JSON number")
    amount: Decimal = check(Decimal(str(value)) if isinstance(value, float) else value)
    # JSON can say -0.0, which is no amount of its own.
    exact = abs(amount.quantize(_SCALE))
    if exact != amount:
        raise PydanticKnownError("decimal_max_places", {"decimal_places": 4})
    return exact


def _id_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Amount = Annotated[
    Decimal,
    Field(ge=0, lt=MAX_AMOUNT),
    WrapValidator(_exact_amount),
    PlainSerializer(as_number),
    WithJsonSchema({"type": "number", "minimum": 0, "exclusiveMaximum": int(MAX_AMOUNT), "description": DECIMALS}),
]
Price = Annotated[
    Amount,
    Field(lt=MAX_PRICE),
    WithJsonSchema({"type": "number", "minimum": 0, "exclusiveMaximum": int(MAX_PRICE), "description": DECIMALS}),
]
#: Ids of ours and of the siblings' rows: strict integers that fit every database.
Id = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
#: PostgreSQL stores no NUL.
Text = Annotated[str, Field(strict=True, max_length=500, pattern=r"^[^\x00]*$")]
#: A sibling's own id: text up to 100 characters or an integer, kept and sent as text.
ForeignId = Annotated[
    str,
    BeforeValidator(_id_as_text),
    Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$"),
    WithJsonSchema(
        {"type": ["string", "integer"], "minLength": 1, "maxLength": 100, "pattern": r"^[^\x00]*$"}, mode="validation"
    ),
]


class EventData(BaseModel):
    """The `data` of one event type; the class name is the type on the wire."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    routing_key: ClassVar[str]
    #: What the event says, in one line, for the documents.
    says: ClassVar[str]

    order_id: Id


class IncomingData(EventData):
    def to_message(self) -> domain.Message:
        """What the decision table is asked."""
        raise NotImplementedError


class ReservedItem(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    id: Id
    name: Text
    price: Price
    stock: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]


class MenuReserved(IncomingData):
    routing_key = "menu.reserved"
    says = "The menu holds the stock for this order, at these prices."
    reservation_id: ForeignId | None = None
    items: Annotated[list[ReservedItem], Field(min_length=1, max_length=100)]

    def to_message(self) -> domain.Message:
        items = tuple(domain.Item(item.id, item.name, item.price, item.stock) for item in self.items)
        return domain.MenuReserved(items, self.reservation_id)


class MenuRejected(IncomingData):
    routing_key = "menu.rejected"
    says = "The menu cannot serve this order, and holds nothing for it."
    reason: Literal["menu_not_found", "out_of_stock"]
    menu_id: Id

    def to_message(self) -> domain.Message:
        return domain.MenuRejected(self.reason, self.menu_id)


class StockReleased(IncomingData):
    routing_key = "menu.released"
    says = "The release with this id is done, also when there was nothing to give back."
    release_id: ForeignId

    def to_message(self) -> domain.Message:
        return domain.StockReleased(self.release_id)


class PaymentCompleted(IncomingData):
    routing_key = "payment.completed"
    says = "This amount was taken for this order."
    payment_id: ForeignId
    amount: Amount

    def to_message(self) -> domain.Message:
        return domain.PaymentCompleted(self.payment_id, self.amount)


class PaymentFailed(IncomingData):
    routing_key = "payment.failed"
    says = "The payment did not work, and nothing was taken."
    payment_id: ForeignId | None = None
    reason: Text

    def to_message(self) -> domain.Message:
        return domain.PaymentFailed(self.reason)


class PaymentRefunded(IncomingData):
    routing_key = "payment.refunded"
    says = "The refund with this id is done, also when there was nothing to give back."
    refund_id: ForeignId

    def to_message(self) -> domain.Message:
        return domain.PaymentRefunded(self.refund_id)


class OutgoingData(EventData):
    """What we say about an order."""


class Line(BaseModel):
    model_config = ConfigDict(frozen=True)
    menu_id: Id
    quantity: Annotated[int, Field(ge=1)]


class OrderCreated(OutgoingData):
    routing_key = "order.created"
    says = "An order was placed: reserve its lines, or reject it. Repeated under the same id until answered."
    user_id: Id
    menu_ids: list[Id]
    lines: list[Line]
    created_at: datetime
    reply_by: datetime


class PaymentRequested(OutgoingData):
    routing_key = "payment.requested"
    says = "The stock is reserved: take this amount."
    user_id: Id
    amount: Amount
    pay_by: datetime


class OrderPaid(OutgoingData):
    routing_key = "order.paid"
    says = "The order is reserved and paid."
    user_id: Id
    total_price: Amount
    payment_id: str | None
    paid_at: datetime


class OrderFailed(OutgoingData):
    routing_key = "order.failed"
    says = "The order failed; what was taken for it is being given back."
    user_id: Id
    reason: str
    detail: str


class OrderCancelled(OutgoingData):
    routing_key = "order.cancelled"
    says = "The client cancelled the order; what was taken for it is being given back."
    user_id: Id


class StockReleaseRequested(OutgoingData):
    routing_key = "menu.release_requested"
    says = (
        "Give this reservation back, or with null whatever is held, and reserve no more for the order. Confirm always."
    )
    release_id: str
    reservation_id: str | None
    lines: list[Line]
    reason: str


class RefundRequested(OutgoingData):
    routing_key = "payment.refund_requested"
    says = "Give this payment back, or with null whatever was paid for the order. Confirm always."
    refund_id: str
    payment_id: str | None
    amount: Amount | None
    reason: str


class FieldError(BaseModel):
    model_config = ConfigDict(frozen=True)
    field: str
    problem: str


class MessageRejected(BaseModel):
    """Not about an order but about a message, so it has no order_id: the message may have named none."""

    model_config = ConfigDict(frozen=True)
    routing_key: ClassVar[str] = "order.message_rejected"
    says: ClassVar[str] = "We could not use a message of yours, and why; it is in our dead-letter queue."
    message_id: str | None
    type: str | None
    errors: list[FieldError]
    received_at: datetime


INCOMING: dict[str, type[IncomingData]] = {model.__name__: model for model in IncomingData.__subclasses__()}
OUTGOING: dict[str, type[OutgoingData] | type[MessageRejected]] = {
    **{model.__name__: model for model in OutgoingData.__subclasses__()},
    "MessageRejected": MessageRejected,
}
