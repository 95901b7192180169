"""The HTTP harness: the API on one database, the siblings' replies to its orders, and requests over real connections.

The use case that the consumers call applies the replies, so no broker is needed.
"""

import contextlib
import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import TestResponse

from api import create_app
from order_service import handlers
from order_service.config import Settings
from order_service.contract.envelope import Reply
from order_service.domain.messages import Message
from order_service.domain.order import State
from order_service.storage.database import Database
from order_service.storage.tables import order_history, orders, outbox
from order_service.unit_of_work import unit_of_work
from tests.builders import REQUEST_TOTAL, menu_rejected, menu_reserved, order_request, payment_completed, policy, reply
from tests.serving import serving

#: `eventually(check, "what is waited for", seconds=10)`, the fixture.
Eventually = Callable[..., Any]
#: Makes a service with these settings, closed at the end of the test: the fixture `service_with`.
ServiceWith = Callable[..., "Service"]
Address = tuple[str, int]

RESPOND_ASYNC = {"Prefer": "respond-async"}
JSON_HEADERS = {"Content-Type": "application/json"}
ORDER_KEYS = ["id", "user_id", "items", "total_price", "status", "created_at"]
#: The most that one answer may take on a busy machine.
ANSWER_SECONDS = 60

PAID = payment_completed("P1", REQUEST_TOTAL)
#: The replies that bring a new order into each state; for CANCELLED the client cancels it.
REPLIES: Mapping[State, tuple[Message, ...]] = {
    State.AWAITING_MENU: (),
    State.AWAITING_MENU_PREPAID: (PAID,),
    State.AWAITING_PAYMENT: (menu_reserved(),),
    State.PAID: (menu_reserved(), PAID),
    State.FAILED: (menu_rejected(),),
    State.CANCELLED: (),
}


class Service:
    """The API on one database, and its siblings' replies."""

    def __init__(self, database_url: str, eventually: Eventually, **settings: Any) -> None:
        self._resources = contextlib.ExitStack()
        settings = {"wait_seconds": 10, "streams": 2} | settings
        self.app = self._resources.enter_context(application(database_url, **settings))
        self.database = Database(database_url)
        self._resources.callback(self.database.dispose)
        self._pool = self._resources.enter_context(ThreadPoolExecutor(32))
        self._eventually = eventually

    def close(self) -> None:
        self._resources.close()

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> TestResponse:
        return self.client.get(path, headers=headers)

    def get_order(self, order_id: int) -> dict[str, Any]:
        return body_of(self.get(f"/orders/{order_id}"))

    def post(self, body: Any = None, headers: Mapping[str, str] | None = None) -> TestResponse:
        """POST /orders with the documented body, another one, or the text of one."""
        content = {"data": body} if isinstance(body, str) else {"json": order_request() if body is None else body}
        return self.client.post("/orders", headers=headers, content_type="application/json", **content)

    def post_waiting(
        self, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Future[TestResponse]]:
        """POST in a thread; returns once the order is recorded, with its id and the answer to come."""
        before = self.last_id()
        future = self._pool.submit(self.post, body, headers)

        def is_recorded() -> bool:
            if future.done():
                pytest.fail(f"the POST did not wait: {future.result().status} {future.result().text}")
            return self.last_id() > before

        self._eventually(is_recorded, "the order to be recorded")
        return self.last_id(), future

    def post_with_reply(
        self, message: Message, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        """The answer to a POST whose menu replies while it waits."""
        order_id, future = self.post_waiting(body, headers)
        self.receive(order_id, message)
        return future.result(ANSWER_SECONDS)

    def put_payment(self, order_id: int | str, status: str = "paid") -> TestResponse:
        return self.client.put(f"/orders/{order_id}/payment", json={"payment_status": status})

    def cancel(self, order_id: int) -> TestResponse:
        return self.client.delete(f"/orders/{order_id}")

    def receive(self, order_id: int, *messages: Message) -> None:
        """Apply messages, each under a new id, as one batch of a consumer."""
        self.apply(*(reply(order_id, message, id=str(uuid4())) for message in messages))

    def apply(self, *replies: Reply) -> None:
        with unit_of_work(self.database, policy()) as work:
            assert handlers.apply_replies(work, replies) == []

    def order_in(self, state: State) -> int:
        """The id of a new order in this state."""
        order_id: int = body_of(self.post(headers=RESPOND_ASYNC))["id"]
        if replies := REPLIES[state]:
            self.receive(order_id, *replies)
        if state is State.CANCELLED:
            self.cancel(order_id)
        assert self._scalar(sa.select(orders.c.state).where(orders.c.id == order_id)) == state
        return order_id

    def last_id(self) -> int:
        return int(self._scalar(sa.select(sa.func.max(orders.c.id))) or 0)

    def rows(self) -> tuple[int, ...]:
        """How many orders, history entries and outbox rows there are."""
        return tuple(
            self._scalar(sa.select(sa.func.count()).select_from(table)) for table in (orders, order_history, outbox)
        )

    def _scalar(self, query: sa.Select[Any]) -> Any:
        with self.database.reading() as connection:
            return connection.execute(query).scalar()


@contextlib.contextmanager
def application(database_url: str, **settings: Any) -> Iterator[Flask]:
    """The application alone, for what needs no orders."""
    app = create_app(Settings(database_url=database_url, **settings))
    try:
        yield app
    finally:
        app.extensions["api"].close()


def body_of(answer: TestResponse) -> dict[str, Any]:
    """The JSON object of an answer."""
    body: dict[str, Any] = json.loads(answer.text)
    return body


def problem(answer: TestResponse, status: int, code: str) -> dict[str, Any]:
    """The problem that must have been answered."""
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json"), answer.text
    body = body_of(answer)
    assert (body["status"], body["code"]) == (status, code)
    assert body["message"] == body["detail"] != ""
    assert {"type", "title"} <= body.keys()
    return body


class QuietHandler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def served(app: Flask) -> Iterator[Address]:
    """The address of a real threaded server, for what the test client cannot do."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=QuietHandler)
    with serving(server) as port:
        yield "127.0.0.1", port


def send(
    address: Address, method: str, path: str, body: Any = None, headers: Mapping[str, str] = JSON_HEADERS
) -> tuple[int, Any]:
    """Send one request over a connection of its own; the status and the JSON of the answer."""
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=ANSWER_SECONDS)) as connection:
        # The answer may come before the end of the body.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
