"""The route table, from which the Flask routes and the OpenAPI document are generated."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Concatenate

from flask import Flask, Response
from pydantic import BaseModel

from order_service.config import MAX_WAIT_SECONDS
from order_service.contract import events
from order_service.web import authorization, docs_pages, examples, requests, responses
from order_service.web.authorization import CUSTOMERS, OPEN, PAYMENTS, STAFF, Scopes
from order_service.web.endpoints import Api

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A success: its model (or schema) and example, the headers it always has, and those it may have."""

    description: str
    model: type[BaseModel] | None = None
    example: Any = None
    headers: Sequence[str] = ()
    optional_headers: Sequence[str] = ()
    media_type: str = "application/json"
    schema: Json = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True)
class Route:
    """One method of one path; `problems` are the codes it may answer, besides those of every route.

    `scopes`: a token with any of them may send it; OPEN, and so no default, lets everyone send it.
    """

    operation_id: str
    method: str
    path: str
    scopes: Scopes
    endpoint: Callable[Concatenate[Api, ...], Response]
    #: Without a summary, the route is for this service's own pages and is not documented.
    summary: str = ""
    answers: Mapping[int, Answer] = field(default_factory=dict)
    problems: Sequence[str] = ()
    headers: Sequence[str] = ()
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    example: Json = field(default_factory=dict)
    description: str = ""

    @property
    def all_problems(self) -> Sequence[str]:
        return (*self.problems, *(authorization.PROBLEMS if self.scopes else ()), "bad_request", "internal_error")

    def without_tokens(self) -> "Route":
        """The route as it is where requests need no token."""
        problems = [code for code in self.problems if code != "not_your_user"]
        return replace(self, scopes=OPEN, problems=problems)

    @property
    def is_rate_limited(self) -> bool:
        return "rate_limited" in self.problems


#: The documentation of path parameters; `_RULES` maps them to Flask's converters.
PATH_PARAMETERS: Mapping[str, Json] = {
    "id": {
        "description": "The order's id.",
        "schema": {"type": "integer", "minimum": 1, "maximum": events.MAX_ID},
        "example": 1,
    },
    "event": {
        "description": "The event's type.",
        "schema": {"type": "string", "enum": [*events.OUTGOING, *events.INCOMING]},
        "example": "OrderCreated",
    },
}
_RULES = {"{id}": "<int:order_id>", "{event}": "<name>", "{file}": "<name>"}
#: The headers of requests and responses, with their descriptions.
HEADERS = {
    "Accept-Language": "Messages are Indonesian, or English if the client prefers it.",
    "ETag": "The version of this order, for If-None-Match.",
    "Idempotency-Key": "A repeated key returns the order placed before; with another body, 422.",
    "If-None-Match": "An ETag received before; 304 if the order has not changed since.",
    "Last-Event-ID": "The id of the last event received; the stream resumes after it.",
    "Location": "The address of the order, relative to that of the request (RFC 9110).",
    "Prefer": "RFC 7240: `respond-async`, or `wait=N` to wait up to N seconds"
    f" (at most {MAX_WAIT_SECONDS}) for the menu.",
    "Preference-Applied": "The preferences that were applied.",
    "RateLimit": "How much of each limit is left (`r`), and for how many seconds (`t`); if a rate limit is set.",
    "RateLimit-Policy": "The limits: the quota (`q`) and its period in seconds (`w`).",
    "Retry-After": "The number of seconds after which to try again.",
    "traceparent": "W3C Trace Context; the events of this order carry it unchanged.",
    "tracestate": "W3C Trace Context; the events of this order carry it unchanged.",
    "WWW-Authenticate": "What is wrong with the token, if there is one (RFC 6750).",
    "X-Request-ID": "The id of this request in the service's log; generated if the request has none.",
}
#: The schemas of headers that are not arbitrary strings.
HEADER_SCHEMAS: Mapping[str, Json] = {
    "Idempotency-Key": {"type": "string", "pattern": requests.IDEMPOTENCY_KEY},
    "Location": {"type": "string", "format": "uri-reference", "pattern": "^orders/[0-9]+$"},
    "RateLimit": {"type": "string", "pattern": '^"[a-z]+";r=[0-9]+(;t=[0-9]+)?$'},
    "RateLimit-Policy": {"type": "string", "pattern": '^"[a-z]+";q=[0-9]+(;w=[0-9]+|;qu="[a-z-]+")?$'},
    "Retry-After": {"type": "integer", "minimum": 0},
}
_OBJECT: Json = {"type": "object"}
_READ = ("database_unavailable",)
_WRITE = (*_READ, "outcome_unknown")
_ORDER = ("order_not_found", *_READ)
_BODY = (
    "malformed_json", "body_too_large", "unsupported_media_type", "unsupported_content_encoding", "invalid_request",
)  # fmt: skip
_MENU = ("menu_not_found", "out_of_stock", "price_changed", "idempotency_key_reused")
_LIMITS = ("rate_limited", "too_many_pending")
_USER = ("user_not_found", "user_service_unavailable")
_ENDED = ("order_failed", "order_cancelled")
_PUT_CONFLICTS = ("order_paid", *_ENDED)


def _order(description: str, example: Json, *headers: str, optional: Sequence[str] = ()) -> Answer:
    return Answer(description, responses.Order, example, ("ETag", *headers), optional)


def _placed(description: str, example: Json) -> Answer:
    return _order(description, example, "Location", optional=["Preference-Applied"])


_PAGE = {200: Answer("A web page.", media_type="text/html")}

ROUTES = (
    Route(
        "placeOrder", "POST", "/orders", CUSTOMERS, Api.place_order, "Place an order",
        {
            201: _placed("The order is reserved and priced.", examples.PENDING),
            202: _placed("The order is recorded, but not priced yet.", examples.UNPRICED),
        },
        (*_BODY, *_MENU, *_USER, *_ENDED, *_LIMITS, *_WRITE, "not_your_user"),
        ("Prefer", "Idempotency-Key", "traceparent", "tracestate"),
        body=requests.OrderRequest, example=examples.ORDER_REQUEST,
        description="Records the order, then waits for the menu. Send an Idempotency-Key to repeat the request "
        "safely.",
    ),
    Route(
        "listOrders", "GET", "/orders", CUSTOMERS, Api.list_orders, "List orders, newest first",
        {200: Answer("A page of orders.", responses.OrderPage, examples.PAGE)},
        ("invalid_request", "not_your_user", *_READ), query=requests.OrderQuery,
        description="Returns one page; `next_cursor` leads to the next one.",
    ),
    Route(
        "getOrder", "GET", "/orders/{id}", CUSTOMERS, Api.get_order, "Read an order",
        {
            200: _order("The current version of the order.", examples.PENDING),
            304: Answer("The order has not changed since.", headers=("ETag",), media_type=""),
        },
        _ORDER, ("If-None-Match",),
        description="Returns the order as it stands now. With If-None-Match, an unchanged order is not sent again.",
    ),
    Route(
        "cancelOrder", "DELETE", "/orders/{id}", CUSTOMERS, Api.cancel_order,
        "Cancel an order; its reserved stock and its payments are compensated",
        {200: _order("The order is cancelled, by this request or an earlier one.", examples.CANCELLED)},
        ("order_not_found", "order_paid", "order_failed", *_WRITE),
        description="Cancels a pending order. A repeated request gets the same answer; a paid or failed order stays "
        "as it is.",
    ),
    Route(
        "updatePayment", "PUT", "/orders/{id}/payment", PAYMENTS, Api.update_payment, "Report the payment of an order",
        {
            200: _order("The order has the reported status.", examples.PAID),
            202: _order("The report is recorded; it takes effect once the menu answers.", examples.UNPRICED),
        },
        (*_BODY, "invalid_payment_status", "order_not_found", *_PUT_CONFLICTS, *_WRITE),
        body=requests.PaymentUpdate, example=examples.PAYMENT_REQUEST,
        description="Reports that the full total was paid, that the payment failed, or that it is pending. After a "
        "409 to `paid`, return the money.",
    ),
    Route(
        "getHistory", "GET", "/orders/{id}/history", CUSTOMERS, Api.get_history, "Read the history of an order",
        {200: Answer("A page of the history, oldest entry first.", responses.History, examples.HISTORY)},
        ("invalid_request", *_ORDER), query=requests.PageQuery,
        description="Every message, request and deadline that concerned the order, and the transition it caused.",
    ),
    Route(
        "explainOrder", "GET", "/orders/{id}/explain", CUSTOMERS, Api.explain_order, "Explain what an order waits for",
        {200: Answer("What it waits for, since when and until when.", responses.Explanation, examples.EXPLANATION)},
        _ORDER,
        description="One paragraph in Indonesian, or in English by Accept-Language, and the facts that it states.",
    ),
    Route(
        "streamOrder", "GET", "/orders/{id}/events", CUSTOMERS, Api.stream_order,
        "Receive each change of an order as it happens (server-sent events)",
        {
            200: Answer(
                "One event per change, and comments in between, until the order ends or the time limit is reached.",
                example=examples.EVENT, media_type="text/event-stream",
            ),
            204: Answer("The order has ended and Last-Event-ID names its last event: do not reconnect.", media_type=""),
        },
        (*_ORDER, "too_many_own_streams", "too_many_streams"), ("Last-Event-ID",),
        description="The text of a stream as an EventSource reads it. Each event is named `status`, its data is the "
        "order as JSON, and its id is the value for Last-Event-ID.",
    ),
    Route(
        "health", "GET", "/healthz", OPEN, Api.health, "Check that the process responds",
        {200: Answer("The process responds.", responses.Health, {"status": "ok"})},
        description="For liveness probes: answered whether or not the database and the broker are reachable.",
    ),
    Route(
        "readiness", "GET", "/readyz", OPEN, Api.readiness, "Check that the database is reachable and migrated",
        {200: Answer("The database is ready; the broker is not checked.", responses.Health, {"status": "ready"})},
        _READ,
        description="For readiness probes: 503 while the database cannot be used.",
    ),
    Route(
        "metrics", "GET", "/metrics", STAFF, Api.metrics, "Read the metrics, for Prometheus",
        {200: Answer("Prometheus's text format.", media_type="text/plain")}, ["not_found"],
        description="With several API processes, the sum of all of them. With ORDER_OPS_PORT the metrics are there.",
    ),
    Route(
        "docs", "GET", "/docs", OPEN, docs_pages.openapi_page, "This document as a web page", _PAGE,
        description="Swagger UI, without any file from another server.",
    ),
    Route(
        "board", "GET", "/board", OPEN, docs_pages.board_page, "The orders, live, as a web page", _PAGE,
        description="The page has no orders in it; it shows them to those with the scope orders:all (docs/board.md).",
    ),
    Route(
        "asyncapi", "GET", "/asyncapi", OPEN, docs_pages.asyncapi_page, "The events as a web page", _PAGE,
        description="Each event with its fields and an example, and the queues.",
    ),
    Route(
        "asyncapiDocument", "GET", "/asyncapi.json", OPEN, docs_pages.asyncapi_json,
        "The events as an AsyncAPI document",
        {200: Answer("An AsyncAPI 3 document.", schema=_OBJECT)},
        description="For generators of models and documentation.",
    ),
    Route(
        "eventSchema", "GET", "/schemas/{event}.json", OPEN, docs_pages.event_schema,
        "The JSON Schema of an event's data",
        {200: Answer("A JSON Schema.", schema=_OBJECT, media_type="application/schema+json")}, ["not_found"],
        description="Of the current version.",
    ),
    Route(
        "openapi", "GET", "/openapi.json", OPEN, docs_pages.openapi_json, "This document",
        {200: Answer("An OpenAPI 3.1.1 document.", schema=_OBJECT)},
        description="For generators of clients.",
    ),
    # Of no use to others: what follows changes with the pages.
    Route("boardFile", "GET", "/board/{file}", OPEN, docs_pages.board_file),
    Route("boardEvents", "GET", "/board/events", STAFF, Api.stream_board),
    Route("boardOrders", "GET", "/board/orders", STAFF, Api.list_board),
    Route("boardDishes", "GET", "/board/dishes", STAFF, Api.list_dishes),
    Route("boardOrder", "GET", "/board/orders/{id}", STAFF, Api.show_on_board),
    Route("docsFile", "GET", "/docs/{file}", OPEN, docs_pages.openapi_file),
    Route("index", "GET", "/", OPEN, partial(docs_pages.redirect, to="docs")),
    Route("boardSlash", "GET", "/board/", OPEN, partial(docs_pages.redirect, to="../board")),
    Route("docsSlash", "GET", "/docs/", OPEN, partial(docs_pages.redirect, to="../docs")),
    Route("asyncapiSlash", "GET", "/asyncapi/", OPEN, partial(docs_pages.redirect, to="../asyncapi")),
)  # fmt: skip


def install(app: Flask, api: Api) -> None:
    """Add every route to the application."""
    for route in ROUTES:
        rule = re.sub("{[a-z]+}", lambda found: _RULES[found[0]], route.path)
        app.add_url_rule(rule, route.operation_id, partial(route.endpoint, api), methods=[route.method])
