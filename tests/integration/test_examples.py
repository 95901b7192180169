"""The contract by example, on both databases: what the design fixes, and every example of the OpenAPI document.

Each example is a scene: a few requests to a fresh service, of which the last one's answer counts.
"""

import contextlib
import http.client
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from structlog.testing import capture_logs
from werkzeug.test import TestResponse

from api import create_app
from order_service.config import Settings
from order_service.contract.envelope import Reply
from order_service.domain.messages import MenuRejected
from order_service.domain.order import State
from order_service.handlers import apply_replies
from order_service.web import openapi
from tests.integration.test_api import ASYNC, EXAMPLE, RESERVED, Eventually, Service, api_of, served

Scene = Callable[[Service], TestResponse]
PAID = {"payment_status": "paid"}
NOBODY, SILENCE = 404, 503


@pytest.fixture(scope="module")
def user_service() -> Iterator[str]:
    """A User Service that knows everybody but NOBODY, and fails for SILENCE."""
    app = Flask(__name__)

    @app.get("/users/<int:id>")
    def user(id: int) -> tuple[dict[str, int], int]:
        return {"id": id}, id if id in (NOBODY, SILENCE) else 200

    with served(app) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def service(database_url: str, user_service: str, eventually: Eventually) -> Iterator[Service]:
    service = Service(database_url, eventually, user_service_url=user_service, streams=1)
    with contextlib.closing(service):
        api_of(service.app).streams._seconds = 0.05  # a stream ends soon after its first event
        yield service


# The scenes.


def posted(service: Service, **more: Any) -> TestResponse:
    return service.post_answered(RESERVED, EXAMPLE | more)


def rejected(service: Service, reason: str, menu_id: int) -> TestResponse:
    return service.post_answered(MenuRejected(reason, menu_id))


def under_a_used_key(service: Service) -> TestResponse:
    service.post(headers=ASYNC | {"Idempotency-Key": "k1"})
    return service.post(EXAMPLE | {"user_id": 2}, {"Idempotency-Key": "k1"})


def asked(service: Service, path: str, state: State = State.AWAITING_PAYMENT) -> TestResponse:
    service.order_in(state)
    return service.client.get(path)


def asked_again(service: Service) -> TestResponse:
    etag = asked(service, "/orders/1").headers["ETag"]
    return service.client.get("/orders/1", headers={"If-None-Match": etag})


def put(service: Service, state: State, body: Any = PAID) -> TestResponse:
    service.order_in(state)
    return service.client.put("/orders/1/payment", json=body)


def cancelled(service: Service, state: State) -> TestResponse:
    service.order_in(state)
    return service.client.delete("/orders/1")


def told(service: Service) -> TestResponse:
    service.post(headers=ASYNC)
    with service.database.writing() as connection:
        apply_replies(connection, [Reply("menu-1", 1, "MenuReserved", RESERVED)], service._changes())
    return service.client.get("/orders/1/history")


def one_stream_too_many(service: Service) -> TestResponse:
    service.post(headers=ASYNC)
    with service.client.get("/orders/1/events", buffered=False):
        return service.client.get("/orders/1/events")


def asked_after_the_last_event(service: Service) -> TestResponse:
    last = asked(service, "/orders/1/events", State.PAID).text.split("id: ")[1].split("\n")[0]
    return service.client.get("/orders/1/events", headers={"Last-Event-ID": last})


def sent(method: str, path: str, **request: Any) -> Scene:
    return lambda service: service.client.open(path, method=method, **request)


def of_body(operation: str, method: str, path: str, good: dict[str, Any]) -> dict[tuple[str, str], Scene]:
    """What each request with a body may be told about it."""
    return {
        (operation, "malformed_json"): sent(method, path, data="nasi goreng", content_type="application/json"),
        (operation, "body_too_large"): sent(method, path, data=" " * 65_537, content_type="application/json"),
        (operation, "unsupported_media_type"): sent(method, path, data=json.dumps(good), content_type="text/plain"),
        (operation, "invalid_request"): sent(method, path, json=good | {"note": "tidak pedas"}),
    }


def of_order(operation: str, method: str, path: str) -> dict[tuple[str, str], Scene]:
    return {(operation, "order_not_found"): sent(method, path, json=PAID if method == "PUT" else None)}


#: How each answer of the OpenAPI document comes about: by operationId, and status or the problem's code.
SCENES: dict[tuple[str, str], Scene] = {
    ("placeOrder", "201"): posted,
    ("placeOrder", "202"): lambda service: service.post(headers=ASYNC),
    ("placeOrder", "menu_not_found"): partial(rejected, reason="menu_not_found", menu_id=9),
    ("placeOrder", "out_of_stock"): partial(rejected, reason="out_of_stock", menu_id=2),
    ("placeOrder", "price_changed"): partial(posted, expected_total=37000),
    ("placeOrder", "idempotency_key_reused"): under_a_used_key,
    ("placeOrder", "user_not_found"): lambda service: service.post(EXAMPLE | {"user_id": NOBODY}),
    ("placeOrder", "user_service_unavailable"): lambda service: service.post(EXAMPLE | {"user_id": SILENCE}),
    **of_body("placeOrder", "POST", "/orders", EXAMPLE),
    ("listOrders", "200"): partial(asked, path="/orders"),
    ("listOrders", "invalid_request"): sent("GET", "/orders?note=1"),
    ("getOrder", "200"): partial(asked, path="/orders/1"),
    ("getOrder", "304"): asked_again,
    **of_order("getOrder", "GET", "/orders/1"),
    ("cancelOrder", "200"): partial(cancelled, state=State.AWAITING_PAYMENT),
    ("cancelOrder", "order_paid"): partial(cancelled, state=State.PAID),
    ("cancelOrder", "order_failed"): partial(cancelled, state=State.FAILED),
    **of_order("cancelOrder", "DELETE", "/orders/1"),
    ("updatePayment", "200"): partial(put, state=State.AWAITING_PAYMENT),
    ("updatePayment", "202"): partial(put, state=State.AWAITING_MENU),
    ("updatePayment", "order_paid"): partial(put, state=State.PAID, body={"payment_status": "failed"}),
    ("updatePayment", "order_failed"): partial(put, state=State.FAILED),
    ("updatePayment", "order_cancelled"): partial(put, state=State.CANCELLED),
    ("updatePayment", "invalid_payment_status"): sent("PUT", "/orders/1/payment", json={"payment_status": "lunas"}),
    **of_body("updatePayment", "PUT", "/orders/1/payment", PAID),
    **of_order("updatePayment", "PUT", "/orders/1/payment"),
    ("getHistory", "200"): told,
    **of_order("getHistory", "GET", "/orders/1/history"),
    ("streamOrder", "200"): partial(asked, path="/orders/1/events"),
    ("streamOrder", "204"): asked_after_the_last_event,
    ("streamOrder", "too_many_streams"): one_stream_too_many,
    **of_order("streamOrder", "GET", "/orders/1/events"),
    ("health", "200"): sent("GET", "/healthz"),
    ("readiness", "200"): sent("GET", "/readyz"),
    ("eventSchema", "not_found"): sent("GET", "/schemas/OrderEaten.json"),
}


# What the design fixes, to the letter. That each is really answered so, is tested with the document's examples.

SOTO = {"id": 1, "name": "Nasi Ayam Bakar", "price": 18000, "stock": 14}
MIE = {"id": 2, "name": "Kwetiau Goreng", "price": 20000, "stock": 6}
ORDER = {"id": 1, "user_id": 1, "items": [SOTO, MIE], "total_price": 38000, "status": "pending", "created_at": "now"}
SILENT = ORDER | {
    "items": [{"id": id, "name": None, "price": None, "stock": None} for id in (1, 2)],
    "total_price": None,
}
LINE = {"at": "now", "type": "OrderPlaced", "from": None, "to": "awaiting_menu", "message_id": None}
NEXT = {"at": "now", "type": "MenuReserved", "from": "awaiting_menu", "to": "awaiting_payment", "message_id": "menu-1"}

SUCCESSES = [
    ("placeOrder", 201, ORDER),
    ("placeOrder", 202, SILENT),
    ("getOrder", 200, ORDER),
    ("listOrders", 200, {"orders": [ORDER], "next_cursor": None}),
    ("cancelOrder", 200, ORDER | {"status": "cancelled"}),
    ("updatePayment", 200, ORDER | {"status": "paid"}),
    ("updatePayment", 202, SILENT),
    ("getHistory", 200, {"events": [LINE, NEXT]}),
]
MEMBERS = {"type", "title", "status", "code", "message"}
ERRORS = [
    ("getOrder", "order_not_found", 404, "Pemesanan tidak ditemukan."),
    ("updatePayment", "order_not_found", 404, "Pemesanan tidak ditemukan."),
    ("updatePayment", "invalid_payment_status", 400, "Status pembayaran tidak valid."),
    ("placeOrder", "menu_not_found", 404, "Menu item 9 tidak ditemukan."),
    ("placeOrder", "out_of_stock", 400, "Menu item 2 kehabisan stok."),
    ("placeOrder", "user_not_found", 404, "Pengguna tidak ditemukan."),
    ("placeOrder", "user_service_unavailable", 503, None),
    ("placeOrder", "price_changed", 409, None),
    ("placeOrder", "idempotency_key_reused", 422, None),
    ("placeOrder", "malformed_json", 400, None),
    ("placeOrder", "body_too_large", 413, None),
    ("placeOrder", "unsupported_media_type", 415, None),
    ("placeOrder", "invalid_request", 422, None),
    ("cancelOrder", "order_paid", 409, None),
    ("updatePayment", "order_cancelled", 409, None),
    ("streamOrder", "too_many_streams", 503, None),
]


def written(body: Any) -> str:
    """JSON as text, where 1 and 1.0 differ and the order of the keys counts; every time is "now"."""
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "now", json.dumps(body))


def test_the_body_is_judged_before_the_order(service: Service) -> None:
    answer = service.client.put("/orders/99/payment", json={"payment_status": "lunas"})

    assert (answer.status_code, answer.get_json(force=True)["message"]) == (400, "Status pembayaran tidak valid.")


# What the OpenAPI document shows.

DOCUMENT = openapi.document()
#: What any operation may come to, whatever it is asked.
ANYWHERE = {"internal_error", "database_unavailable"}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path.format(id=1, event="OrderCreated"), operation


def documented() -> Iterator[tuple[str, str, str, Any]]:
    """operationId, status, the problem's code or else the status again, and the example."""
    for _, _, operation in operations():
        for status, answer in operation["responses"].items():
            for content in answer.get("content", {"": {"example": None}}).values():
                for code in content.get("examples", ()):
                    yield operation["operationId"], status, code, DOCUMENT["components"]["examples"][code]["value"]
                if "example" in content:
                    yield operation["operationId"], status, status, content["example"]


def answered_as_documented(answer: TestResponse, operation: dict[str, Any], example: Any) -> None:
    """The media type, the headers and the body are those of the document."""
    described = operation["responses"][str(answer.status_code)]
    required = {name for name, header in described["headers"].items() if header.get("required")}
    assert required <= {name for name, _ in answer.headers}
    assert [answer.mimetype or ""] == list(described.get("content", [""]))
    if answer.mimetype == "text/event-stream":
        body: Any = dict(line.split(": ", 1) for line in answer.text.split("\n\n")[0].splitlines())
    else:
        body = json.loads(answer.data) if answer.data else None
    assert written(body) == written(example)


EXAMPLES = [shown for shown in documented() if shown[2] not in ANYWHERE]
BY_ID = {operation["operationId"]: operation for _, _, operation in operations()}


def test_every_documented_example_has_its_scene() -> None:
    assert {(operation, name) for operation, _, name, _ in EXAMPLES} == SCENES.keys()


@pytest.mark.parametrize(
    ("operation", "status", "name", "example"), EXAMPLES, ids=[f"{shown[0]}-{shown[2]}" for shown in EXAMPLES]
)
def test_documented_example_is_answered(service: Service, operation: str, status: str, name: str, example: Any) -> None:
    answer = SCENES[operation, name](service)

    assert str(answer.status_code) == status, answer.text
    answered_as_documented(answer, BY_ID[operation], example)


@pytest.mark.parametrize(("operation", "status", "body"), SUCCESSES)
def test_successes_are_the_clients_in_status_keys_and_types(operation: str, status: int, body: Any) -> None:
    [shown] = [shown[3] for shown in EXAMPLES if (shown[0], shown[2]) == (operation, str(status))]

    assert written(shown) == written(body)


@pytest.mark.parametrize(("operation", "code", "status", "message"), ERRORS)
def test_errors_are_the_clients_in_status_and_message(
    operation: str, code: str, status: int, message: str | None
) -> None:
    [(shown_status, shown)] = [(shown[1], shown[3]) for shown in EXAMPLES if (shown[0], shown[2]) == (operation, code)]

    assert (shown_status, shown["status"], shown["code"]) == (str(status), status, code)
    assert MEMBERS <= shown.keys() <= MEMBERS | {"order_id", "errors"}
    assert shown["message"] == message or (message is None and shown["message"])


def test_documented_requests_are_those_of_the_clients_documents() -> None:
    shown = {id: operation["requestBody"] for id, operation in BY_ID.items() if "requestBody" in operation}

    assert {id: body["content"]["application/json"]["example"] for id, body in shown.items()} == {
        "placeOrder": {"user_id": 1, "menu_ids": [1, 2]},
        "updatePayment": {"payment_status": "paid"},
    }


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Flask]:
    """The API on a database that cannot be opened."""
    (tmp_path / "orders.db").mkdir()
    app = create_app(Settings(database_url=f"sqlite:///{tmp_path}/orders.db"))
    yield app
    api_of(app).close()


@pytest.mark.parametrize("code", sorted(ANYWHERE))
def test_trouble_of_ours_is_answered_as_documented(away: Flask, code: str) -> None:
    def fail(**values: Any) -> None:
        raise RuntimeError("a mistake of ours")

    if code == "internal_error":
        away.view_functions = dict.fromkeys(away.view_functions, fail)
    example = DOCUMENT["components"]["examples"][code]["value"]
    for method, path, operation in operations():
        if any(shown[:3] == (operation["operationId"], str(example["status"]), code) for shown in documented()):
            content = operation.get("requestBody", {}).get("content", {"application/json": {"example": None}})
            with capture_logs():  # tracebacks, which are long
                answer = away.test_client().open(path, method=method, json=content["application/json"]["example"])

            assert answer.status_code == example["status"]
            answered_as_documented(answer, operation, example)


# Idempotency-Key.


def test_the_same_key_from_fifty_threads_at_once_is_one_order(service: Service) -> None:
    # given
    together = threading.Barrier(50)

    def post(address: tuple[str, int]) -> tuple[int, Any]:
        with contextlib.closing(http.client.HTTPConnection(*address, timeout=60)) as connection:
            connection.connect()
            together.wait(30)
            headers = {"Content-Type": "application/json", "Idempotency-Key": "k1", "Prefer": "wait=30"}
            connection.request("POST", "/orders", json.dumps(EXAMPLE), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    # when
    with served(service.app) as address, ThreadPoolExecutor(50) as pool:
        answers = [pool.submit(post, address) for _ in range(50)]
        order_id = service.eventually(service.last_id, "the order to be recorded", seconds=60)
        service.tell(order_id, RESERVED)

    # then: PostgreSQL may have spent ids on those that came too late
    expected = ORDER | {"id": order_id}
    assert {(future.result()[0], written(future.result()[1])) for future in answers} == {(201, written(expected))}
    assert service.rows()[0] == 1
