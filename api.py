"""The HTTP edge: takes orders, answers questions about them, and never talks to RabbitMQ."""

import threading
import time
from collections.abc import Sequence
from hashlib import sha256

import sqlalchemy as sa
import structlog
from flask import Flask, Response, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from werkzeug.routing import IntegerConverter
from werkzeug.serving import make_server

from order_service import handlers
from order_service import process as startup
from order_service.config import Settings
from order_service.domain.messages import Cancel, Message, ReportFailed, ReportPaid, ReportPending
from order_service.domain.order import AWAITING_MENU, Order, State, UnknownOrder
from order_service.domain.saga import Outcome
from order_service.storage import history
from order_service.storage import migrate as schema
from order_service.storage import orders as order_rows
from order_service.storage.database import Database
from order_service.unit_of_work import unit_of_work
from order_service.web import contract_pages, docs_page, problems
from order_service.web import observability as tracing
from order_service.web.observability import traceparent
from order_service.web.problems import Problem
from order_service.web.recording import Recorder
from order_service.web.requests import (
    MAX_REQUEST_BYTES,
    OrderRequest,
    cursor_after,
    history_body,
    idempotency_key,
    json_body,
    order_body,
    parse,
    parse_payment,
    query,
)
from order_service.web.streaming import Streams
from order_service.web.users import Users, UserServiceDown
from order_service.web.waiting import Watcher, preferred_wait

log = structlog.get_logger(__name__)
_PAYMENT_MESSAGES: dict[str, Message] = {"paid": ReportPaid(), "failed": ReportFailed(), "pending": ReportPending()}
#: Database connections of one process; a request holds one only while it reads or writes.
POOL_SIZE = 10
#: How long a request waits for a lock on its order, or on its idempotency key, before it is answered 503.
LOCK_SECONDS = 3
#: How soon a waiting request notices that the process is to stop, in seconds.
SLICE_SECONDS = 1.0
#: The largest id that the tables hold.
MAX_ID = 2**31 - 1


class Api:
    """The routes and what they need; one object per process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url, pool_size=POOL_SIZE, lock_seconds=LOCK_SECONDS)
        self.recorder = Recorder(self._record_all)
        self.watcher = Watcher(self.database)
        self.streams = Streams(self.watcher, limit=settings.streams, seconds=settings.stream_seconds)
        self.users = Users(str(settings.user_service_url)) if settings.user_service_url else None
        self._waiters = threading.Semaphore(settings.waiters)
        if self.users is None:
            log.info("users are not checked: USER_SERVICE_URL is not set")

    def close(self) -> None:
        """Let go of every connection and thread, once nothing is being answered any more. Final."""
        self.streams.stopping.set()
        self.watcher.close()
        if self.users:
            self.users.close()
        self.database.dispose()

    def place_order(self) -> Response:
        """POST /orders: record first, then wait a little for the menu."""
        wanted, key = parse(OrderRequest, json_body()), idempotency_key()
        # A server joins a header that came twice; getlist() would only look at every other header as well.
        wait_seconds, applied = preferred_wait(request.headers.get("Prefer", ""), self.settings.wait_seconds)
        order = self._repeated(wanted, key) if key else None
        if order is None:
            self._check_user(wanted.user_id)
            order = self._record(wanted, key)
        # For the request's line in the log.
        structlog.contextvars.bind_contextvars(order_id=order.id)
        order = self._wait_for_menu(order, wait_seconds)
        if order.reason in ("menu_not_found", "out_of_stock", "price_changed"):
            about = {"menu_id": order.rejected_menu_id, "detail": order.detail}
            raise Problem(order.reason, about, {"order_id": order.id}, {"Preference-Applied": applied})
        response = _answer(order, 202 if order.state in AWAITING_MENU else 201)
        response.headers["Location"] = f"/orders/{order.id}"
        if applied:
            response.headers["Preference-Applied"] = applied
        return response

    def get_order(self, order_id: int) -> Response:
        """GET /orders/{id}; 304 to a client that has this version already."""
        # By hand: werkzeug's make_conditional() would also answer 412 to If-Match.
        response = _answer(self._read(order_id), 200)
        if request.if_none_match.contains_weak(response.get_etag()[0] or ""):
            response.status_code = 304
        return response

    def list_orders(self) -> Response:
        """GET /orders, newest first, a page at a time."""
        wanted = query()
        states = [state for state in State if state.status == wanted.status]
        with self.database.reading() as connection:
            page = order_rows.list_orders(
                connection, user_id=wanted.user_id, states=states, before=wanted.cursor, limit=wanted.limit + 1
            )
        shown = page[: wanted.limit]
        next_cursor = cursor_after(shown[-1]) if len(page) > wanted.limit else None
        return jsonify(orders=[order_body(order) for order in shown], next_cursor=next_cursor)

    def cancel_order(self, order_id: int) -> Response:
        """DELETE /orders/{id}: what was taken for it is given back."""
        return self._change(order_id, Cancel())

    def get_history(self, order_id: int) -> Response:
        """GET /orders/{id}/history: everything that happened to it, oldest first."""
        order = self._read(order_id)
        with self.database.reading() as connection:
            entries = history.read_history(connection, order)
        return jsonify(events=[history_body(entry) for entry in entries])

    def stream_order(self, order_id: int) -> Response:
        """GET /orders/{id}/events: each change as it happens, until the order ends."""
        return self.streams.open(self._read(order_id), request.headers.get("Last-Event-ID"))

    def put_payment(self, order_id: int) -> Response:
        """PUT /orders/{id}/payment: the same table decides as for messages from the broker."""
        return self._change(order_id, _PAYMENT_MESSAGES[parse_payment(json_body()).payment_status])

    def healthz(self) -> Response:
        """GET /healthz: the process answers."""
        return jsonify(status="ok")

    def readyz(self) -> Response:
        """GET /readyz: the database is there and migrated. The broker may be away: the outbox absorbs it."""
        schema.check_migrated(self.database)
        return jsonify(status="ready")

    def metrics(self) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(tracing.figures(), content_type=CONTENT_TYPE_LATEST)

    def _repeated(self, wanted: OrderRequest, key: str) -> Order | None:
        """The order this request placed before. Raises Problem 422 if it was another request's key."""
        with self.database.reading() as connection:
            found = order_rows.find_request(connection, key)
        if found is None:
            return None
        order_id, request_hash = found
        if request_hash != _hash(wanted):
            raise Problem("idempotency_key_reused", extra={"order_id": order_id})
        return self._read(order_id)

    def _record(self, wanted: OrderRequest, key: str | None) -> Order:
        repeatable = {"idempotency_key": key, "request_hash": _hash(wanted)} if key else {}
        placement = handlers.Placement(
            wanted.user_id, tuple(wanted.menu_ids), wanted.expected_total, traceparent(), repeatable
        )
        try:
            order = self.recorder.place(placement)
        except sa.exc.IntegrityError:
            # The same request, at the same time, was faster.
            if key and (order_placed := self._repeated(wanted, key)):
                return order_placed
            raise
        return order

    def _record_all(self, placements: Sequence[handlers.Placement]) -> list[Order]:
        with unit_of_work(self.database, self.settings.policy) as work:
            return handlers.place_orders(work, placements)

    def _wait_for_menu(self, order: Order, seconds: float) -> Order:
        """The order once the menu has answered, or as it stands when the time is up or too many wait already."""
        end = time.monotonic() + seconds
        if order.state not in AWAITING_MENU or not seconds or not self._waiters.acquire(blocking=False):
            return order
        try:
            # In slices: a process that is to stop answers 202 rather than drop the connection.
            while (
                order.state in AWAITING_MENU
                and (left := end - time.monotonic()) > 0
                and not self.streams.stopping.is_set()
            ):
                order = self.watcher.wait(order, min(left, SLICE_SECONDS))
        finally:
            self._waiters.release()
        return order

    def _change(self, order_id: int, message: Message) -> Response:
        _require_possible(order_id)
        try:
            with unit_of_work(self.database, self.settings.policy) as work:
                order, decision = handlers.change_order(work, order_id, message)
        except UnknownOrder:
            raise Problem("order_not_found") from None
        if decision.outcome is Outcome.REFUSED:
            raise Problem(f"order_{order.state.value}", extra={"order_id": order.id})
        return _answer(order, 202 if decision.outcome is Outcome.REMEMBERED else 200)

    def _read(self, order_id: int) -> Order:
        _require_possible(order_id)
        with self.database.reading() as connection:
            order = order_rows.read_orders(connection, [order_id]).get(order_id)
        if order is None:
            raise Problem("order_not_found")
        return order

    def _check_user(self, user_id: int) -> None:
        """Nothing is recorded for a user who does not exist, or while nobody can say."""
        try:
            if self.users and not self.users.exists(user_id):
                raise Problem("user_not_found")
        except UserServiceDown as error:
            log.warning("user not checked", error=str(error))
            raise Problem("user_service_unavailable") from None


def _answer(order: Order, status: int) -> Response:
    response = Response(to_json(order_body(order)) + b"\n", status, mimetype="application/json")
    # The key makes it differ between databases that count their orders from one.
    response.set_etag(f"{order.key.hex[:12]}-{order.version}")
    return response


def _require_possible(order_id: int) -> None:
    """An id that no column can hold is the id of no order."""
    if order_id > MAX_ID:
        raise Problem("order_not_found")


def _hash(wanted: OrderRequest) -> str:
    """Of what was asked for, not of how it was written."""
    return sha256(wanted.model_dump_json().encode()).hexdigest()


class _Canonical(IntegerConverter):
    """One address for each order: not 01, and no digits of other scripts, which int() would read too."""

    regex = "0|[1-9][0-9]*"


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application. Connects to nothing until the first request."""
    app = Flask(__name__, static_folder=None)
    # One byte more, because a chunked body is cut there without a word; json_body() then sees that it is too large.
    app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST_BYTES + 1
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.url_map.converters["int"] = _Canonical
    # What is not an address of ours is not found; the redirect to one would be HTML.
    app.url_map.merge_slashes = False
    api = Api(settings or startup.begin())
    app.add_url_rule("/orders", view_func=api.place_order, methods=["POST"])
    app.add_url_rule("/orders/<int:order_id>", view_func=api.get_order)
    app.add_url_rule("/orders", view_func=api.list_orders)
    app.add_url_rule("/orders/<int:order_id>", view_func=api.cancel_order, methods=["DELETE"])
    app.add_url_rule("/orders/<int:order_id>/history", view_func=api.get_history)
    app.add_url_rule("/orders/<int:order_id>/events", view_func=api.stream_order)
    app.add_url_rule("/orders/<int:order_id>/payment", view_func=api.put_payment, methods=["PUT"])
    app.add_url_rule("/healthz", view_func=api.healthz)
    app.add_url_rule("/readyz", view_func=api.readyz)
    app.add_url_rule("/metrics", view_func=api.metrics)
    app.register_blueprint(contract_pages.pages)
    app.register_blueprint(docs_page.pages)
    tracing.install(app)
    problems.install(app)
    app.extensions["api"] = api
    return app


def main() -> None:
    """`python api.py`: a quick look with Flask's own server; `make run` serves with gunicorn."""
    settings = startup.begin()
    stop = startup.stop_on_signal()
    database = Database(settings.database_url)
    schema.wait_for_database(database, stop)
    database.dispose()
    if stop.is_set():
        return
    app = create_app(settings)
    server = make_server(settings.host, settings.port, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log.info("serving", url=f"http://{settings.host}:{settings.port}")
    stop.wait()
    server.shutdown()
    app.extensions["api"].close()


if __name__ == "__main__":
    main()
