"""The contract by example, on both databases: what the design fixes, and every example of the OpenAPI document.

Each example has a scenario: requests to a new service, of which the last one's answer is compared with the example.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from structlog.testing import capture_logs
from werkzeug.test import TestResponse

from order_service.domain.order import State
from order_service.storage.errors import OutcomeUnknown
from order_service.web import openapi
from tests.builders import menu_rejected, menu_reserved, order_request, reply
from tests.http_service import RESPOND_ASYNC, Service, ServiceWith, application, served

Scenario = Callable[[Service], TestResponse]
PAID = {"payment_status": "paid"}
#: Ids for which the User Service answers 404 and 503.
UNKNOWN_USER, FAILING_USER = 404, 503


@pytest.fixture(scope="module")
def user_service() -> Iterator[str]:
    """The URL of a User Service that knows all users except these two."""
    app = Flask(__name__)

    @app.get("/users/<int:id>")
    def user(id: int) -> tuple[dict[str, int], int]:
        return {"id": id}, id if id in (UNKNOWN_USER, FAILING_USER) else 200

    with served(app) as (host, port):
        yield f"http://{host}:{port}"


#: Limits that only the scenarios of these problems need.
LIMITS: dict[str, dict[str, Any]] = {
    "rate_limited": {"rate_limit": "1/minute"},
    "too_many_pending": {"pending_limit": 20},
    "too_many_own_streams": {"streams": 2, "stream_limit": 1},
}


@pytest.fixture
def service(service_with: ServiceWith, user_service: str, request: pytest.FixtureRequest) -> Service:
    """A service whose one stream ends soon after its first event."""
    parameters = getattr(request.node, "callspec", None)
    limits = LIMITS.get(parameters.params.get("name", "") if parameters else "", {})
    return service_with(**{"user_service_url": user_service, "streams": 1, "stream_seconds": 0.05} | limits)


# The scenes.


def posted(service: Service, **fields: Any) -> TestResponse:
    return service.post_with_reply(menu_reserved(), order_request(**fields))


def rejected(service: Service, reason: str, menu_id: int) -> TestResponse:
    return service.post_with_reply(menu_rejected(reason, menu_id))


def refused_user(service: Service, user_id: int) -> TestResponse:
    return service.post(order_request(user_id=user_id))


def repeated(service: Service, end: Scenario) -> TestResponse:
    """A repeat of the request whose order has ended in the meantime."""
    key = {"Idempotency-Key": "k1"}
    service.post(headers=RESPOND_ASYNC | key)
    end(service)
    return service.post(headers=key)


def unpaid(method: str, path: str, **request: Any) -> Scenario:
    """The request, once the payment of order 1 has failed."""

    def scenario(service: Service) -> TestResponse:
        service.put_payment(service.order_in(State.AWAITING_PAYMENT), "failed")
        return sent(method, path, **request)(service)

    return scenario


def under_a_used_key(service: Service) -> TestResponse:
    service.post(headers=RESPOND_ASYNC | {"Idempotency-Key": "k1"})
    return service.post(order_request(user_id=2), {"Idempotency-Key": "k1"})


def after(count: int) -> Scenario:
    """A POST after this many others."""
    return lambda service: [service.post(headers=RESPOND_ASYNC) for _ in range(count + 1)][-1]


def sent(method: str, path: str, **request: Any) -> Scenario:
    return lambda service: service.client.open(path, method=method, **request)


def sent_in(state: State, method: str, path: str, **request: Any) -> Scenario:
    """The request, once order 1 is in this state."""

    def scenario(service: Service) -> TestResponse:
        service.order_in(state)
        return sent(method, path, **request)(service)

    return scenario


def read_again(service: Service) -> TestResponse:
    etag = sent_in(State.AWAITING_PAYMENT, "GET", "/orders/1")(service).headers["ETag"]
    return service.get("/orders/1", headers={"If-None-Match": etag})


def history_of_two(service: Service) -> TestResponse:
    service.post(headers=RESPOND_ASYNC)
    service.apply(reply(1, menu_reserved(), id="menu-1"))
    return service.get("/orders/1/history")


def one_stream_too_many(service: Service) -> TestResponse:
    service.post(headers=RESPOND_ASYNC)
    with service.client.get("/orders/1/events", buffered=False):
        return service.get("/orders/1/events")


def streamed_after_the_last_event(service: Service) -> TestResponse:
    events = sent_in(State.PAID, "GET", "/orders/1/events")(service).text
    return service.get("/orders/1/events", headers={"Last-Event-ID": events.split("id: ")[1].split("\n")[0]})


def of_body(operation: str, method: str, path: str, valid: dict[str, Any]) -> dict[tuple[str, str], Scenario]:
    """The problems that every request with a body may have with it."""
    return {
        (operation, "malformed_json"): sent(method, path, data="nasi goreng", content_type="application/json"),
        (operation, "body_too_large"): sent(method, path, data=" " * 65_537, content_type="application/json"),
        (operation, "unsupported_media_type"): sent(method, path, data=json.dumps(valid), content_type="text/plain"),
        (operation, "unsupported_content_encoding"): sent(
            method, path, json=valid, headers={"Content-Encoding": "gzip"}
        ),
        (operation, "invalid_request"): sent(method, path, json=valid | {"note": "tidak pedas"}),
    }


def metrics_at_a_port_of_their_own(service: Service) -> TestResponse:
    with application(service.database.url, ops_port=9100) as app:
        return app.test_client().get("/metrics")


PAYMENT = ("PUT", "/orders/1/payment")
OF_ONE_ORDER = {
    "getOrder": ("GET", "/orders/1"),
    "cancelOrder": ("DELETE", "/orders/1"),
    "updatePayment": PAYMENT,
    "getHistory": ("GET", "/orders/1/history"),
    "explainOrder": ("GET", "/orders/1/explain"),
    "streamOrder": ("GET", "/orders/1/events"),
}
#: How each answer of the OpenAPI document comes about: by operationId, and status or the problem's code.
SCENARIOS: dict[tuple[str, str], Scenario] = {
    ("placeOrder", "201"): posted,
    ("placeOrder", "202"): partial(Service.post, headers=RESPOND_ASYNC),
    ("placeOrder", "menu_not_found"): partial(rejected, reason="menu_not_found", menu_id=9),
    ("placeOrder", "out_of_stock"): partial(rejected, reason="out_of_stock", menu_id=2),
    ("placeOrder", "price_changed"): partial(posted, expected_total=37000),
    ("placeOrder", "order_failed"): partial(repeated, end=lambda service: service.put_payment(1, "failed")),
    ("placeOrder", "order_cancelled"): partial(repeated, end=lambda service: service.cancel(1)),
    ("placeOrder", "idempotency_key_reused"): under_a_used_key,
    ("placeOrder", "user_not_found"): partial(refused_user, user_id=UNKNOWN_USER),
    ("placeOrder", "user_service_unavailable"): partial(refused_user, user_id=FAILING_USER),
    ("placeOrder", "rate_limited"): after(1),
    ("placeOrder", "too_many_pending"): after(20),
    **of_body("placeOrder", "POST", "/orders", order_request()),
    ("listOrders", "200"): sent_in(State.AWAITING_PAYMENT, "GET", "/orders"),
    ("listOrders", "invalid_request"): sent("GET", "/orders?note=1"),
    ("getHistory", "invalid_request"): sent("GET", "/orders/1/history?note=1"),
    ("getOrder", "200"): sent_in(State.AWAITING_PAYMENT, "GET", "/orders/1"),
    ("getOrder", "304"): read_again,
    ("cancelOrder", "200"): sent_in(State.AWAITING_PAYMENT, "DELETE", "/orders/1"),
    ("cancelOrder", "order_paid"): sent_in(State.PAID, "DELETE", "/orders/1"),
    ("cancelOrder", "order_failed"): unpaid("DELETE", "/orders/1"),
    ("updatePayment", "200"): sent_in(State.AWAITING_PAYMENT, *PAYMENT, json=PAID),
    ("updatePayment", "202"): sent_in(State.AWAITING_MENU, *PAYMENT, json=PAID),
    ("updatePayment", "order_paid"): sent_in(State.PAID, *PAYMENT, json={"payment_status": "failed"}),
    ("updatePayment", "order_failed"): unpaid(*PAYMENT, json=PAID),
    ("updatePayment", "order_cancelled"): sent_in(State.CANCELLED, *PAYMENT, json=PAID),
    ("updatePayment", "invalid_payment_status"): sent(*PAYMENT, json={"payment_status": "lunas"}),
    **of_body("updatePayment", *PAYMENT, PAID),
    ("getHistory", "200"): history_of_two,
    ("explainOrder", "200"): sent_in(State.PAID, "GET", "/orders/1/explain"),
    ("streamOrder", "200"): sent_in(State.AWAITING_PAYMENT, "GET", "/orders/1/events"),
    ("streamOrder", "204"): streamed_after_the_last_event,
    ("streamOrder", "too_many_streams"): one_stream_too_many,
    ("streamOrder", "too_many_own_streams"): one_stream_too_many,
    **{(name, "order_not_found"): sent(*request, json=PAID) for name, request in OF_ONE_ORDER.items()},
    ("health", "200"): sent("GET", "/healthz"),
    ("readiness", "200"): sent("GET", "/readyz"),
    ("metrics", "not_found"): metrics_at_a_port_of_their_own,
    ("eventSchema", "not_found"): sent("GET", "/schemas/OrderEaten.json"),
}


# What the design fixes, to the letter; the tests of the document's examples show that it is answered.

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
    ("getHistory", 200, {"events": [LINE, NEXT], "next_cursor": None}),
]


def written(body: Any) -> str:
    """JSON as text, where 1 and 1.0 differ and the order of the keys counts; every time is "now"."""
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "now", json.dumps(body))


# What the OpenAPI document shows.

DOCUMENT = openapi.document(needs_tokens=False)
#: The errors behind problems that no request causes.
FAULTS: dict[str, Exception] = {
    "internal_error": RuntimeError("a programming error"),
    "outcome_unknown": OutcomeUnknown("COMMIT", None, OSError("the connection is closed")),
}
#: Problems of any operation.
ANYWHERE = {"database_unavailable", "bad_request", *FAULTS}


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
        body: Any = answer.text.split("\n\n")[0] + "\n\n"
    else:
        body = json.loads(answer.data) if answer.data else None
    assert written(body) == written(example)


EXAMPLES = [shown for shown in documented() if shown[2] not in ANYWHERE]
BY_ID = {operation["operationId"]: operation for _, _, operation in operations()}


def test_every_documented_example_has_a_scenario() -> None:
    assert {(operation, name) for operation, _, name, _ in EXAMPLES} == SCENARIOS.keys()


@pytest.mark.parametrize(
    ("operation", "status", "name", "example"), EXAMPLES, ids=[f"{shown[0]}-{shown[2]}" for shown in EXAMPLES]
)
def test_documented_example_is_answered(service: Service, operation: str, status: str, name: str, example: Any) -> None:
    answer = SCENARIOS[operation, name](service)

    assert str(answer.status_code) == status, answer.text
    answered_as_documented(answer, BY_ID[operation], example)


@pytest.mark.parametrize(("operation", "status", "body"), SUCCESSES)
def test_successes_are_the_clients_in_status_keys_and_types(operation: str, status: int, body: Any) -> None:
    [shown] = [shown[3] for shown in EXAMPLES if (shown[0], shown[2]) == (operation, str(status))]

    assert written(shown) == written(body)


def test_documented_requests_are_those_of_the_clients_documents() -> None:
    shown = {id: operation["requestBody"] for id, operation in BY_ID.items() if "requestBody" in operation}

    assert {id: body["content"]["application/json"]["example"] for id, body in shown.items()} == {
        "placeOrder": {"user_id": 1, "menu_ids": [1, 2]},
        "updatePayment": {"payment_status": "paid"},
    }


@pytest.mark.parametrize("code", sorted(ANYWHERE))
def test_problem_of_any_operation_is_answered_as_documented(client: FlaskClient, code: str) -> None:
    def fail(**values: Any) -> str:
        raise FAULTS[code]

    # given
    if code in FAULTS:
        views = client.application.view_functions
        views.update((name, fail) for name in list(views))
    example = DOCUMENT["components"]["examples"][code]["value"]
    documenting = {shown[0] for shown in documented() if shown[1:3] == (str(example["status"]), code)}
    for method, path, operation in operations():
        if operation["operationId"] in documenting:
            content = operation.get("requestBody", {}).get("content", {"application/json": {"example": None}})

            # when
            with capture_logs():  # tracebacks, which are long
                answer = client.open(
                    path,
                    method=method,
                    json=content["application/json"]["example"],
                    headers={"Host": "a b"} if code == "bad_request" else None,
                )

            # then
            assert answer.status_code == example["status"]
            answered_as_documented(answer, operation, example)
