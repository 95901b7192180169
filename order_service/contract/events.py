"""The data of every event that the service consumes or publishes. The envelope around it is in envelope.py.

Incoming models ignore unknown fields (tolerant reader) and are strict about the known ones. docs/events.md, the JSON
Schemas and the AsyncAPI document are generated from these models.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, WrapValidator
from pydantic_core import PydanticKnownError

from order_service.domain import messages as domain

#: Prices are below 10^9 and amounts below a hundred times that (100 dishes), with at most four decimals: fifteen
#: digits, which every JSON reader represents exactly, including one that uses doubles.
MAX_PRICE = Decimal(10**9)
MAX_AMOUNT = Decimal(10**11)
#: The scale of every stored amount, the same on both databases.
_SCALE = Decimal("0.0001")
#: A description, because validators that compute in doubles reject 0.0003 against JSON Schema's multipleOf.
DECIMALS = "at most four decimals"
#: An amount as text; only ASCII digits, while Decimal() also reads other ones.
_DECIMAL_TEXT = r"[0-9]+(\.[0-9]+)?"


def as_number(amount: Decimal) -> int | float:
    """An exact decimal as the JSON number that reads back as the same decimal, without a trailing `.0`."""
    return int(amount) if amount == amount.to_integral_value() else float(amount)


def exact_decimal(text: str) -> Decimal:
    """A JSON fraction as an exact decimal. Raises ValueError for NaN, Infinity and exponents out of range."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise ValueError(f"{text[:40]} is not a number that can be read")
    return number


def _whole_or_decimal(text: str) -> int | Decimal:
    """A JSON fraction, as an integer if it is one: JSON Schema makes no difference between 1 and 1.0."""
    number = exact_decimal(text)
    # A larger one is no integer of an event, and 1e1000000 would have a million digits.
    return int(number) if number.adjusted() < 100 and number == number.to_integral_value() else number


_DECODER = json.JSONDecoder(parse_float=_whole_or_decimal, parse_constant=exact_decimal)


def event_json(document: str | bytes) -> Any:
    """Decode the JSON of an event: fractions as exact decimals, 1.0 as the integer 1.

    Raises ValueError or RecursionError.
    """
    # Given the two parse functions instead, json.loads() would create a decoder for every call.
    return json.loads(document, cls=lambda: _DECODER)  # type: ignore[arg-type]


def _exact_amount(value: object, check: Callable[[object], Decimal]) -> Decimal:
    # Fractions are decoded as Decimal, so that 0.1 stays 0.1. Strings and booleans are not amounts.
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise ValueError("must be a JSON number")
    amount = check(Decimal(str(value)) if isinstance(value, float) else value)
    # abs() turns JSON's -0.0 into 0.
    exact = abs(amount.quantize(_SCALE))
    if exact != amount:
        raise PydanticKnownError("decimal_max_places", {"decimal_places": 4})
    return exact


def _text_as_decimal(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not re.fullmatch(_DECIMAL_TEXT, value):
        raise ValueError("must be a JSON number, or a text of digits with at most one decimal point")
    return Decimal(value)


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


def _or_text(limit: Decimal) -> WithJsonSchema:
    number = {"type": "number", "minimum": 0, "exclusiveMaximum": int(limit), "description": DECIMALS}
    text = {"type": "string", "pattern": f"^{_DECIMAL_TEXT}$", "description": "such a decimal"}
    return WithJsonSchema({"anyOf": [number, text]})


#: The same in an incoming event, where a sender that has no exact numbers may write text.
IncomingAmount = Annotated[Amount, BeforeValidator(_text_as_decimal), _or_text(MAX_AMOUNT)]
IncomingPrice = Annotated[Price, BeforeValidator(_text_as_decimal), _or_text(MAX_PRICE)]
#: The largest integer of an id or a stock, which both databases can hold.
MAX_ID = 2**31 - 1
#: The id of an order, a user or a dish: a strict integer that fits both databases.
Id = Annotated[int, Field(strict=True, ge=1, le=MAX_ID)]
#: PostgreSQL text cannot contain NUL.
Text = Annotated[str, Field(strict=True, max_length=500, pattern=r"^[^\x00]*$")]
#: The id of a reservation, payment, release or refund: text or an integer, stored and published as text.
ForeignId = Annotated[
    str,
    BeforeValidator(_id_as_text),
    Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$"),
    WithJsonSchema(
        {"type": ["string", "integer"], "minLength": 1, "maxLength": 100, "pattern": r"^[^\x00]*$"}, mode="validation"
    ),
]


class EventData(BaseModel):
    """The `data` of one event type. The name of the class is the type on the wire."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    routing_key: ClassVar[str]
    #: One line for the generated documents.
    description: ClassVar[str]
    #: The event types that may reply to it.
    replies: ClassVar[tuple[str, ...]] = ()
    #: Whether it needs a bound queue: published with AMQP's mandatory flag, and retried until a queue receives it.
    mandatory: ClassVar[bool] = True


class OrderEventData(EventData):
    order_id: Id


class IncomingData(OrderEventData):
    def to_message(self) -> domain.Message:
        """The message for the decision table, which has the same name and some or all of the fields."""
        message: type[domain.Message] = getattr(domain, type(self).__name__)
        return message(*[getattr(self, name) for name in message.__match_args__])


class ReservedItem(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    id: Id
    name: Text
    price: IncomingPrice
    #: What remains; None if the menu does not count it.
    stock: Annotated[int, Field(strict=True, ge=0, le=MAX_ID)] | None = None


class MenuReserved(IncomingData):
    routing_key = "menu.reserved"
    description = "The stock for the order is reserved, at these prices."
    reservation_id: ForeignId | None = None
    items: Annotated[list[ReservedItem], Field(min_length=1, max_length=100)]

    def to_message(self) -> domain.Message:
        # Sorted, so that messages that list the same items are equal.
        items = sorted(self.items, key=lambda item: item.id)
        entries = tuple(domain.Item(item.id, item.name, item.price, item.stock) for item in items)
        return domain.MenuReserved(entries, self.reservation_id)


class MenuRejected(IncomingData):
    routing_key = "menu.rejected"
    description = "The order cannot be served, and nothing is reserved for it."
    reason: Literal["menu_not_found", "out_of_stock"]
    menu_id: Id


class StockReleased(IncomingData):
    routing_key = "menu.released"
    description = "The release with this id is complete. Also sent when there was nothing to release."
    release_id: ForeignId


class PaymentCompleted(IncomingData):
    routing_key = "payment.completed"
    description = "This amount was charged for the order."
    payment_id: ForeignId
    amount: IncomingAmount


class PaymentFailed(IncomingData):
    routing_key = "payment.failed"
    description = "The payment failed for good: nothing was charged, and no further attempt will be made."
    payment_id: ForeignId | None = None
    reason: Text


class PaymentRefunded(IncomingData):
    routing_key = "payment.refunded"
    description = "The refund with this id is complete. Also sent when there was nothing to refund."
    refund_id: ForeignId


class Line(BaseModel):
    model_config = ConfigDict(frozen=True)
    menu_id: Id
    quantity: Annotated[int, Field(ge=1)]


class OrderCreated(OrderEventData):
    routing_key = "order.created"
    description = "An order was placed: reserve its lines, or reject it. Repeated under the same id until answered."
    replies = ("MenuReserved", "MenuRejected")
    user_id: Id
    menu_ids: list[Id]
    lines: list[Line]
    created_at: datetime
    reply_by: datetime


class PaymentRequested(OrderEventData):
    routing_key = "payment.requested"
    description = "The stock is reserved: charge this amount. Repeated under the same id halfway to `pay_by`."
    replies = ("PaymentCompleted", "PaymentFailed")
    user_id: Id
    amount: Amount
    pay_by: datetime


class OrderPaid(OrderEventData):
    routing_key = "order.paid"
    description = "The order is reserved and paid."
    mandatory = False
    user_id: Id
    total_price: Amount
    payment_id: str | None
    paid_at: datetime


class OrderFailed(OrderEventData):
    routing_key = "order.failed"
    description = "The order failed. Its reserved stock is being released, and its payments are being refunded."
    mandatory = False
    user_id: Id
    reason: str
    detail: str


class OrderCancelled(OrderEventData):
    routing_key = "order.cancelled"
    description = "The client cancelled the order. Its stock is being released, and its payments are being refunded."
    mandatory = False
    user_id: Id


class StockReleaseRequested(OrderEventData):
    routing_key = "menu.release_requested"
    description = (
        "Release this reservation; if its id is null, release all stock held for the order and reserve no more for it. "
        "Always confirm."
    )
    replies = ("StockReleased",)
    release_id: str
    reservation_id: str | None
    lines: list[Line]
    reason: str


class RefundRequested(OrderEventData):
    routing_key = "payment.refund_requested"
    description = "Refund this payment; if its id is null, refund everything paid for the order. Always confirm."
    replies = ("PaymentRefunded",)
    refund_id: str
    payment_id: str | None
    amount: Amount | None
    reason: str


class FieldError(BaseModel):
    model_config = ConfigDict(frozen=True)
    field: str
    problem: str


class MessageRejected(EventData):
    """Has no order_id, because the rejected message may not have had one."""

    routing_key = "order.message_rejected"
    description = "A message was rejected because of these errors, and is in a dead-letter queue of the Order Service."
    mandatory = False
    message_id: str | None
    type: str | None
    errors: list[FieldError]
    received_at: datetime


_INCOMING = (MenuReserved, MenuRejected, StockReleased, PaymentCompleted, PaymentFailed, PaymentRefunded)
_OUTGOING = (
    OrderCreated, PaymentRequested, OrderPaid, OrderFailed, OrderCancelled, StockReleaseRequested, RefundRequested,
    MessageRejected,
)  # fmt: skip
#: The models by event type, in the order of the generated documents.
INCOMING: dict[str, type[IncomingData]] = {model.__name__: model for model in _INCOMING}
OUTGOING: dict[str, type[EventData]] = {model.__name__: model for model in _OUTGOING}
EVENTS: dict[str, type[EventData]] = {**OUTGOING, **INCOMING}
