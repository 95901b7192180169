"""The wire format: CloudEvents in structured JSON, read tolerantly; and the outbox that takes the answers."""

import json
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from pika.spec import BasicProperties
from pydantic import BaseModel, Field

EXCHANGE = "restaurant.events"
CONTENT_TYPE = "application/cloudevents+json"
#: The contract's table, as far as the siblings go.
ROUTING_KEYS = {
    "OrderCreated": "order.created",
    "StockReleaseRequested": "menu.release_requested",
    "PaymentRequested": "payment.requested",
    "RefundRequested": "payment.refund_requested",
    "MenuReserved": "menu.reserved",
    "MenuRejected": "menu.rejected",
    "StockReleased": "menu.released",
    "PaymentCompleted": "payment.completed",
    "PaymentFailed": "payment.failed",
    "PaymentRefunded": "payment.refunded",
}

#: Ids of the contract.
Id = Annotated[int, Field(ge=1, le=2**31 - 1)]
#: An id the other side made up, given back as it came.
Reference = Annotated[str, Field(max_length=100)] | int
#: 15 digits are what a JSON number carries unharmed through every language (RFC 8259, section 6).
Amount = Annotated[Decimal, Field(ge=0, max_digits=15)]


class Envelope(BaseModel):
    """What is read of an incoming CloudEvent. Other attributes are ignored."""

    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Event:
    """An answer: something that has happened here, to an order."""

    type: str
    order_id: int
    data: dict[str, Any]


def parse_json(body: bytes) -> Any:
    """The JSON value, fractions exact. Raises ValueError on anything else, also on what nests too deep."""
    try:
        return json.loads(body, parse_float=Decimal)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def number(amount: Decimal) -> int | float:
    """An Amount as JSON writes it: 18000, not 18000.0; a float names 15 digits exactly."""
    return int(amount) if amount == amount.to_integral_value() else float(amount)


def once() -> Iterable[tuple[str, float]]:
    """One message of its own id, at once."""
    return [(str(uuid.uuid4()), 0.0)]


def enqueue(
    db: sqlite3.Connection,
    service: str,
    events: Sequence[Event],
    traceparent: str | None,
    departures: Callable[[], Iterable[tuple[str, float]]] = once,
) -> None:
    """Put answers into the outbox, in the caller's transaction. Every answer of every service passes here.

    A repeated answer is a new message: it has to arrive even where an earlier one was read and thrown away.
    `departures` says under which id and when each copy of an answer leaves.
    """
    for event in events:
        for message_id, due_at in departures():
            body = json.dumps(envelope(service, event, message_id), ensure_ascii=False)
            db.execute(
                "INSERT INTO outbox (message_id, type, order_id, body, traceparent, due_at) VALUES (?, ?, ?, ?, ?, ?)",
                (message_id, event.type, event.order_id, body, traceparent, due_at),
            )


def envelope(service: str, event: Event, message_id: str) -> dict[str, Any]:
    """The event as a CloudEvent of this moment."""
    return {
        "specversion": "1.0",
        "id": message_id,
        "source": f"/{service}",
        "type": event.type,
        "subject": str(event.order_id),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "datacontenttype": "application/json",
        "correlationid": str(event.order_id),
        "data": event.data,
    }


def properties(service: str, row: sqlite3.Row) -> BasicProperties:
    """The AMQP properties of an outbox row, enough to recognise the message in the broker's console."""
    return BasicProperties(
        type=row["type"],
        message_id=row["message_id"],
        correlation_id=str(row["order_id"]),
        app_id=service,
        timestamp=int(datetime.now(UTC).timestamp()),
        content_type=CONTENT_TYPE,
        delivery_mode=2,
        headers={"traceparent": row["traceparent"]} if row["traceparent"] else None,
    )
