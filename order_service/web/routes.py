"""What the API can be asked, and all it may answer, as data; openapi.py makes the OpenAPI document of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from order_service.contract import events
from order_service.web import examples
from order_service.web import requests as bodies
from order_service.web import responses as schemas

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A success: its model (or else schema) and example, the headers it always has, those it may have."""

    says: str
    model: type[BaseModel] | None = None
    example: Any = None
    headers: Sequence[str] = ()
    may_have: Sequence[str] = ()
    media_type: str = "application/json"
    schema: Json = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True)
class Operation:
    """One method at one path; `problems` are the codes it may answer, besides `internal_error`."""

    id: str
    method: str
    path: str
    summary: str
    answers: Mapping[int, Answer]
    problems: Sequence[str] = ()
    headers: Sequence[str] = ()
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    example: Json = field(default_factory=dict)

    @property
    def may_fail(self) -> Sequence[str]:
        """The codes of all its problems."""
        return (*self.problems, "internal_error")


#: Headers of requests and answers, and what they say.
HEADERS = {
    "Accept-Language": "Problems are told in Indonesian, or in English if that is preferred.",
    "Allow": "The methods this address takes.",
    "ETag": "The version of this order, for If-None-Match.",
    "Idempotency-Key": "The same key and body again: the order placed before, as it stands now. Another body: 422.",
    "If-None-Match": "An ETag seen before; 304 if the order has not changed since.",
    "Last-Event-ID": "The id of the last event seen; the stream goes on after it.",
    "Location": "Where the order is.",
    "Prefer": "RFC 7240: `respond-async`, or `wait=N` for up to N seconds (at most 30) until the menu answers.",
    "Preference-Applied": "Which preferences counted.",
    "Retry-After": "Seconds after which to try again.",
    "traceparent": "W3C Trace Context; the events of this order carry it on.",
    "X-Request-ID": "Names this request in our log; made up where it is missing.",
}
#: Their schemas, where any text will not do.
HEADER_SCHEMAS: Mapping[str, Json] = {
    "Idempotency-Key": {"type": "string", "pattern": bodies.IDEMPOTENCY_KEY},
    "Location": {"type": "string", "pattern": "^/orders/[0-9]+$"},
    "Retry-After": {"type": "integer", "minimum": 0},
}
#: Parameters in a path.
PATH: Mapping[str, Json] = {
    "id": {
        "description": "The order's id.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        "example": 1,
    },
    "event": {
        "description": "The event's type.",
        "schema": {"type": "string", "enum": [*events.OUTGOING, *events.INCOMING]},
        "example": "OrderCreated",
    },
}
_OBJECT: Json = {"type": "object"}
#: One event of a stream, as a browser's EventSource hands it over.
_EVENT: Json = {
    "type": "object",
    "properties": {
        "event": {"const": "status"},
        "id": {"type": "string", "description": "For Last-Event-ID."},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/Order"},
        },
    },
    "required": ["event", "id", "data"],
}
_READ = ("database_unavailable",)
_ORDER = ("order_not_found", *_READ)
_BODY = ("malformed_json", "body_too_large", "unsupported_media_type", "invalid_request")
_MENU = ("menu_not_found", "out_of_stock", "price_changed", "idempotency_key_reused")
_USER = ("user_not_found", "user_service_unavailable")
_PUT_CONFLICTS = ("order_paid", "order_failed", "order_cancelled")


def _order(says: str, example: Json, headers: Sequence[str] = (), may_have: Sequence[str] = ()) -> Answer:
    return Answer(says, schemas.Order, example, ("ETag", *headers), may_have)


OPERATIONS = (
    Operation(
        "placeOrder", "POST", "/orders", "Place an order",
        {
            201: _order("Reserved and priced.", examples.PENDING, ["Location"], ["Preference-Applied"]),
            202: _order("Recorded; not priced yet.", examples.UNPRICED, ["Location"], ["Preference-Applied"]),
        },
        (*_BODY, *_MENU, *_USER, *_READ), ("Prefer", "Idempotency-Key", "traceparent"),
        body=bodies.OrderRequest, example=examples.ORDER_REQUEST,
    ),
    Operation(
        "listOrders", "GET", "/orders", "List orders, newest first",
        {200: Answer("A page of orders.", schemas.OrderPage, examples.PAGE)},
        ("invalid_request", *_READ), query=bodies.OrderQuery,
    ),
    Operation(
        "getOrder", "GET", "/orders/{id}", "Read an order",
        {
            200: _order("The order as it stands.", examples.PENDING),
            304: Answer("It has not changed since.", headers=("ETag",), media_type=""),
        },
        _ORDER, ("If-None-Match",),
    ),
    Operation(
        "cancelOrder", "DELETE", "/orders/{id}", "Cancel an order; what was taken for it is given back",
        {200: _order("Cancelled, now or before; it can still be read.", examples.CANCELLED)},
        (*_ORDER, "order_paid", "order_failed"),
    ),
    Operation(
        "updatePayment", "PUT", "/orders/{id}/payment", "Say how the payment went",
        {
            200: _order("The order has that status.", examples.PAID),
            202: _order("Remembered; the menu has not answered yet.", examples.UNPRICED),
        },
        (*_BODY, "invalid_payment_status", *_ORDER, *_PUT_CONFLICTS),
        body=bodies.PaymentUpdate, example=examples.PAYMENT_REQUEST,
    ),
    Operation(
        "getHistory", "GET", "/orders/{id}/history", "Everything that happened to an order",
        {200: Answer("Oldest first.", schemas.History, examples.HISTORY)}, _ORDER,
    ),
    Operation(
        "streamOrder", "GET", "/orders/{id}/events", "Each change of an order as it happens (server-sent events)",
        {
            200: Answer(
                "An event each time the order changes, until it ends or the stream is long enough; comments between.",
                example=examples.EVENT, media_type="text/event-stream", schema=_EVENT,
            ),
            204: Answer("The order has ended, and Last-Event-ID was its last event: do not come back.", media_type=""),
        },
        (*_ORDER, "too_many_streams"), ("Last-Event-ID",),
    ),
    Operation(
        "health", "GET", "/healthz", "The process answers", {200: Answer("Yes.", schemas.Health, {"status": "ok"})}
    ),
    Operation(
        "readiness", "GET", "/readyz", "The database answers and is migrated",
        {200: Answer("Yes; the broker may be away.", schemas.Health, {"status": "ready"})}, _READ,
    ),
    Operation("metrics", "GET", "/metrics", "Figures for Prometheus", {200: Answer("Text.", media_type="text/plain")}),
    Operation("docs", "GET", "/docs", "This document as a page", {200: Answer("A page.", media_type="text/html")}),
    Operation("asyncapi", "GET", "/asyncapi", "The events as a page", {200: Answer("A page.", media_type="text/html")}),
    Operation(
        "asyncapiDocument", "GET", "/asyncapi.json", "The events", {200: Answer("AsyncAPI 3.", schema=_OBJECT)}
    ),
    Operation(
        "eventSchema", "GET", "/schemas/{event}.json", "The JSON Schema of an event's data",
        {200: Answer("JSON Schema.", schema=_OBJECT, media_type="application/schema+json")}, ["not_found"],
    ),
    Operation("openapi", "GET", "/openapi.json", "This document", {200: Answer("OpenAPI 3.1.1.", schema=_OBJECT)}),
)  # fmt: skip
