"""The endpoints of the orders and probes, one for each route of routes.py."""

from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
import structlog
from flask import Response, g, request
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json

from order_service import handlers, vendor
from order_service.config import Settings
from order_service.contract.events import MAX_ID
from order_service.domain import explanation
from order_service.domain.messages import Cancel, Message, ReportFailed, ReportPaid, ReportPending
from order_service.domain.order import AWAITING_MENU, Order, State, UnknownOrder
from order_service.domain.saga import Decision, Outcome
from order_service.process import StopFlag
from order_service.report import trace_id
from order_service.storage import facts, history, orders, schema, timeline
from order_service.storage.board import COLUMNS
from order_service.storage.database import Database
from order_service.storage.errors import OutcomeUnknown, settle
from order_service.unit_of_work import unit_of_work
from order_service.web import failures, limits, requests, responses, tokens
from order_service.web.audit import refused
from order_service.web.caller import caller
from order_service.web.dishes import Dishes
from order_service.web.headers import header
from order_service.web.live import Board, card
from order_service.web.observability import trace_context
from order_service.web.placing import MenuWait, Recorder, TooManyPending, UnreadableOrders, Watcher
from order_service.web.problems import Problem, prefers_english
from order_service.web.requests import BoardQuery, OrderQuery, OrderRequest, PageQuery
from order_service.web.responses import json_response
from order_service.web.streaming import Streams
from order_service.web.users import Users, UserServiceDown

log = structlog.get_logger(__name__)
_PAYMENT_MESSAGES: dict[str, Message] = {"paid": ReportPaid(), "failed": ReportFailed(), "pending": ReportPending()}
#: Database connections of one process; a request holds one only while it reads or writes.
POOL_SIZE = 10
#: The longest wait for a lock on an order or an idempotency key before a request is answered 503, in seconds.
LOCK_SECONDS = 3


class Api:
    """The endpoints and their shared resources; one object per process.

    `stopping` is set when the process stops: waiting requests are then answered and streams end.
    """

    def __init__(self, settings: Settings, stopping: StopFlag, openapi_document: Callable[[], dict[str, Any]]) -> None:
        self.settings, self.stopping, self.openapi_document = settings, stopping, openapi_document
        self.database = Database(settings.database_url, pool_size=POOL_SIZE, lock_seconds=LOCK_SECONDS, role="api")
        self.recorder = Recorder(self.database, settings.policy)
        self.unreadable = UnreadableOrders()
        self.watcher = Watcher(self.database, self.unreadable)
        self.menu_wait = MenuWait(self.watcher, stopping, limit=settings.waiters)
        self.rate_limit = limits.rate_limit(settings)
        own = settings.most_own_streams
        self.streams = Streams(self.watcher, stopping, limit=settings.streams, seconds=settings.stream_seconds, own=own)
        self.board = Board(self.database, settings, self.unreadable, stopping)
        url = settings.board_menu_url if settings.is_development else None
        self.dishes = Dishes(str(url)) if url else None
        self.users = Users(str(settings.user_service_url)) if settings.user_service_url else None
        self.verifier = tokens.verifier(settings)
        if self.verifier is None:
            log.info("requests need no token: ORDER_AUTH is not jwt", host=settings.host)
        if self.users is None:
            log.info("users are not checked: USER_SERVICE_URL is not set")

    def close(self) -> None:
        """Close all connections and end all threads. Call it once, after the last request."""
        self.stopping.set()
        for each in (self.watcher, self.board, self.dishes, self.users, self.verifier):
            if each:
                each.close()
        self.database.dispose()

    def place_order(self) -> Response:
        """Record the order, then wait for the menu for as long as the client prefers."""
        if self.rate_limit:
            self.rate_limit.count()
        body, key = requests.parse(OrderRequest, requests.json_body()), requests.idempotency_key()
        _require_own(body.user_id)
        # The server has already joined repeated headers, so get() is sufficient.
        wait_seconds, applied = requests.preferred_wait(header("Prefer", ""), self.settings.wait_seconds)
        order = self._find_repeated(body, key) if key else None
        if order is None:
            self._check_user(body.user_id)
            order = self._record(body, key)
        # For the log line of the request.
        structlog.contextvars.bind_contextvars(order_id=order.id)
        order = self.menu_wait.wait(order, wait_seconds)
        if order.reason in failures.REJECTIONS:
            raise Problem(order.reason, failures.values(order), order.id, headers=applied)
        if order.state in (State.FAILED, State.CANCELLED):
            raise _ended(order, applied)
        response = _order_response(order, 202 if order.state in AWAITING_MENU else 201)
        # Relative to /orders, because a proxy may have put a prefix before it that this process does not know.
        response.headers.update({"Location": f"orders/{order.id}"} | applied)
        return response

    def get_order(self, order_id: int) -> Response:
        """Return the order, or 304 if the client has this version."""
        # werkzeug's make_conditional() would also answer 412 to If-Match.
        response = _order_response(self._read(order_id))
        if request.if_none_match.contains_weak(response.get_etag()[0] or ""):
            response.status_code = 304
        return response

    def list_orders(self) -> Response:
        query, own_user_id = requests.query(OrderQuery), caller().own_user_id
        _require_own(query.user_id or own_user_id)
        states = [state for state in State if state.status == query.status]
        with self.database.reading() as connection:
            page = orders.list_orders(
                connection, user_id=query.user_id or own_user_id, states=states, before=query.cursor, limit=query.limit
            )
        self.unreadable.report(page.unreadable)
        english, next_cursor = prefers_english(), requests.cursor_after(page.following)
        bodies = [responses.Order.of(order, english=english) for order in page.orders]
        response = json_response(responses.OrderPage.model_construct(orders=bodies, next_cursor=next_cursor))
        response.headers.add("Vary", "Accept-Language")
        return response

    def cancel_order(self, order_id: int) -> Response:
        # A body has no meaning here, but an incomplete request must change nothing.
        requests.received_body()
        if caller().own_user_id:
            self._read(order_id)
        return self._change(order_id, Cancel())

    def get_history(self, order_id: int) -> Response:
        query = requests.query(PageQuery)
        order = self._read(order_id)
        with self.database.reading() as connection:
            found = history.read_history(connection, order, after=query.cursor, limit=query.limit + 1)
        page, next_cursor = requests.split_page(found, query.limit, lambda entry: entry[0])
        return json_response(responses.History.of(order, [entry for _, entry in page], next_cursor))

    def explain_order(self, order_id: int) -> Response:
        self._read(order_id)
        with self.database.reading() as connection:
            found = facts.of_order(connection, order_id, policy=self.settings.policy)
        response = json_response(responses.Explanation.of(found, english=prefers_english()))
        response.headers.add("Vary", "Accept-Language")
        return response

    def stream_order(self, order_id: int) -> Response:
        order, last_event_id = self._read(order_id), header("Last-Event-ID", None)
        return self.streams.open(order, last_event_id, expires_at=caller().expires_at)

    def stream_board(self) -> Response:
        last_event_id = header("Last-Event-ID", None)
        return self.streams.start(partial(self.board.stream, last_event_id), expires_at=caller().expires_at)

    def list_board(self) -> Response:
        """More of a column than the stream begins with."""
        query = requests.query(BoardQuery)
        with self.database.reading() as connection:
            page = orders.list_orders(
                connection, user_id=None, states=COLUMNS[query.column], before=query.cursor, limit=query.limit
            )
            found = facts.of_orders(
                connection, [order.id for order in page.orders], policy=self.settings.policy, unreadable=[]
            )
        self.unreadable.report(page.unreadable)
        return _json({"cards": [card(each) for each in found], "next_cursor": requests.cursor_after(page.following)})

    def show_on_board(self, order_id: int) -> Response:
        """The card of an order, with its explanation in both languages and its timeline."""
        self._read(order_id)
        policy = self.settings.policy
        with self.database.reading() as connection:
            found = facts.of_order(connection, order_id, policy=policy)
            entries = timeline.of_order(connection, found.order, policy=policy)
        texts = [explanation.explain(found, english=english) for english in (False, True)]
        return _json({"card": card(found), "explanation": texts, "timeline": entries})

    def list_dishes(self) -> Response:
        """What the board's form offers, besides the dishes of the orders that it shows."""
        found = self.dishes.read() if self.dishes else []
        return _json([[dish.id, dish.name, dish.price] for dish in found])

    def update_payment(self, order_id: int) -> Response:
        """Apply a reported payment by the decision table."""
        return self._change(order_id, _PAYMENT_MESSAGES[requests.parse_payment(requests.json_body()).payment_status])

    def health(self) -> Response:
        return json_response(responses.Health(status="ok"))

    def readiness(self) -> Response:
        """Check the database. An unreachable broker does not matter: the outbox keeps the events."""
        schema.check_migrated(self.database)
        self.database.check_writable()
        return json_response(responses.Health(status="ready"))

    def metrics(self) -> Response:
        """Answer with the metrics, unless they have a port of their own."""
        if self.settings.ops_port is not None:
            raise Problem("not_found")
        return Response(vendor.prometheus_metrics(), content_type=CONTENT_TYPE_LATEST)

    def _find_repeated(self, body: OrderRequest, key: str) -> Order | None:
        """Return the order that this request placed before. Raises Problem 422 if another request used its key."""
        with self.database.reading() as connection:
            found = orders.find_request(connection, _own_key(key))
        if found is None:
            return None
        order_id, request_hash = found
        if request_hash != _hash(body):
            raise Problem("idempotency_key_reused", order_id=order_id)
        return self._read(order_id)

    def _record(self, body: OrderRequest, key: str | None) -> Order:
        idempotency = {"idempotency_key": _own_key(key), "request_hash": _hash(body)} if key else {}
        placement = handlers.Placement(
            body.user_id,
            tuple(body.menu_ids),
            body.expected_total,
            pending_limit=self._pending_limit(),
            request_id=g.request_id,
            request=idempotency,
            **trace_context(),
        )
        try:
            return self.recorder.place(placement)
        except (sa.exc.IntegrityError, TooManyPending) as error:
            # A concurrent repeat of the request was recorded first.
            if key and (order := self._find_repeated(body, key)):
                return order
            if isinstance(error, TooManyPending):
                raise limits.too_many_pending(placement.pending_limit or 0) from None
            raise

    def _pending_limit(self) -> int | None:
        """How many pending orders the user may have; staff places orders for guests, so it has no limit."""
        is_staff = self.verifier is not None and caller().own_user_id is None
        return None if is_staff else self.settings.most_pending or None

    def _change(self, order_id: int, message: Message) -> Response:
        _check_id(order_id)
        is_repeat = False
        try:
            try:
                order, decision = self._apply(order_id, message)
            except OutcomeUnknown as unknown:
                # The lock on the order waits for the earlier transaction; a repeated request changes nothing.
                order, decision = settle(lambda: self._apply(order_id, message), unknown)
                is_repeat = True
        except UnknownOrder:
            raise Problem("order_not_found") from None
        if is_repeat and isinstance(message, ReportPaid) and None in order.refunded:
            # The first attempt was recorded, and the order ended before the repeat: it refunds the payment. After a
            # 409 the caller would give the money back a second time.
            return _order_response(order, 202)
        if decision.outcome is Outcome.REFUSED:
            if isinstance(message, ReportPaid):
                log.warning("a reported payment was refused, its caller must return the money", order_id=order.id,
                            type="PutPaid", state=order.state.value, reason=order.end_reason,
                            trace_id=trace_id(order.traceparent))  # fmt: skip
            raise _ended(order)
        return _order_response(order, 202 if decision.outcome is Outcome.REMEMBERED else 200)

    def _apply(self, order_id: int, message: Message) -> tuple[Order, Decision]:
        with unit_of_work(self.database, self.settings.policy) as work:
            return handlers.change_order(work, order_id, message)

    def _read(self, order_id: int) -> Order:
        """The order. Raises Problem 404 if the caller may not see it, as if it did not exist."""
        _check_id(order_id)
        own_user_id = caller().own_user_id
        with self.database.reading() as connection:
            order = orders.read_orders(connection, [order_id], user_id=own_user_id).get(order_id)
            if order is None and own_user_id and orders.versions(connection, [order_id]):
                raise refused("order_not_found")
        if order is None:
            raise Problem("order_not_found")
        return order

    def _check_user(self, user_id: int) -> None:
        """Raise Problem 404 for an unknown user, and 503 if the User Service does not answer."""
        try:
            if self.users and not self.users.exists(user_id):
                raise Problem("user_not_found")
        except UserServiceDown as error:
            log.warning("cannot check the user", error=str(error))
            raise Problem("user_service_unavailable") from None


def _json(value: object) -> Response:
    return Response(to_json(value), mimetype="application/json")


def _order_response(order: Order, status: int = 200) -> Response:
    english = prefers_english()
    response = json_response(responses.Order.of(order, english=english), status)
    # The key makes the ETag unique across databases, whose order ids all begin at 1.
    language = "-en" if english and order.state is State.FAILED else ""
    response.set_etag(f"{order.key.hex[:12]}-{order.version}{language}")
    response.headers.add("Vary", "Accept-Language")
    return response


def _ended(order: Order, headers: Mapping[str, str] | None = None) -> Problem:
    """The problem that an order has ended already, or that its payment is in."""
    if order.state in (State.PAID, State.AWAITING_MENU_PREPAID):
        return Problem("order_paid", order_id=order.id)
    is_failed = order.state is State.FAILED
    values = {"why": failures.message(order, english=prefers_english())} if is_failed else {}
    return Problem(f"order_{order.state.value}", values, order.id, headers=headers or {}, reason=order.end_reason)


def _require_own(user_id: int | None) -> None:
    """Raise Problem 403 for a user other than the one whose orders the caller may see."""
    if caller().own_user_id not in (None, user_id):
        raise refused("not_your_user")


def _own_key(key: str) -> str:
    """The key as it is stored: different for each subject, so that none meets another's."""
    subject = caller().subject
    # A comma is in no key of a client, so this is neither the key of a caller without a subject nor of another one.
    return key if subject is None else "," + sha256(f"{subject},{key}".encode()).hexdigest()


def _check_id(order_id: int) -> None:
    """Raise Problem 404 for an id that the database cannot hold."""
    if order_id > MAX_ID:
        raise Problem("order_not_found")


def _hash(body: OrderRequest) -> str:
    """The hash of the request's content, regardless of how its JSON was written."""
    return sha256(body.model_dump_json().encode()).hexdigest()
