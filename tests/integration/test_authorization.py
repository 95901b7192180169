"""Who may send which request: every route with every caller, and what a refused caller learns and changes."""

import contextlib
import http.client
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from flask import Flask

from order_service.domain.order import State
from order_service.storage.tables import metadata
from order_service.web import audit as audit_log
from order_service.web import authorization, routes
from order_service.web.authorization import OPEN, REASONS
from order_service.web.routes import ROUTES, Route
from sandbox.issuer import Issuer
from tests.builders import menu_reserved, order_request
from tests.http_service import (
    ANSWER_SECONDS,
    RESPOND_ASYNC,
    Address,
    Service,
    ServiceWith,
    application,
    body_of,
    served,
)
from tests.integration import core
from tests.tokens import ALL, ISSUER, REFUSED, Published, bearer

JWT = {"auth": "jwt", "jwt_issuer": ISSUER, "jwt_jwks_url": "https://login.example/jwks"}
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
BODIES = {"placeOrder": order_request(), "updatePayment": {"payment_status": "paid"}}
#: User 1 owns the order of every request.
CUSTOMERS = {"owner": "1", "another user": "2"}
#: A file of each page that has some.
FILES = {"docsFile": "start.js", "boardFile": "board.js"}
#: Subject and scopes of those who may act for every user.
STAFF = {
    "till": ("till-3", "orders:all"),
    "payment service": ("payment-service", "payments"),
    "till that takes payments": ("till-4", "orders:all payments"),
}
CALLERS = ["no token", "basic", *REFUSED, *CUSTOMERS, *STAFF, "no scope", "customer without an id"]


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def code(self) -> str | None:
        return self.body.get("code") if isinstance(self.body, dict) else None

    @property
    def challenge(self) -> str | None:
        return self.headers.get("WWW-Authenticate")


def send(address: Address, method: str, path: str, headers: Mapping[str, str], body: Any = None) -> Answer:
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=ANSWER_SECONDS)) as connection:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        read = answer.read()
    is_json = "json" in answer.getheader("Content-Type", "")
    return Answer(answer.status, dict(answer.getheaders()), json.loads(read) if is_json and read else read)


class Protected(NamedTuple):
    """The API with tokens, over HTTP, and its issuer."""

    service: Service
    address: Address
    issuer: Issuer

    def order_of(self, user_id: int) -> int:
        """The id of a new order, which waits for its payment."""
        [order_id] = core.place(self.service.database, user_id=user_id)
        self.service.receive(order_id, menu_reserved())
        return order_id

    def send(self, method: str, path: str, token: str, body: Any = None, **headers: str) -> Answer:
        return send(self.address, method, path, bearer(token) | headers, body)

    def customer(self, subject: str, **claims: Any) -> str:
        return self.issuer.token(subject, "orders", **claims)

    def content(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table."""
        with self.service.database.reading() as connection:
            return {
                name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=str)
                for name, table in metadata.tables.items()
            }


@pytest.fixture
def protected(service_with: ServiceWith, issuer: Issuer, keys: Published) -> Iterator[Protected]:
    service = service_with(**keys.settings, wait_seconds=0, stream_seconds=0.05)
    with served(service.app) as address:
        yield Protected(service, address, issuer)


def headers_of(caller: str, issuer: Issuer) -> dict[str, str]:
    good = issuer.token("1", ALL)
    if caller in REFUSED:
        return bearer(REFUSED[caller][1](issuer, good))
    if caller in STAFF:
        return bearer(issuer.token(*STAFF[caller]))
    return {
        "no token": {},
        "basic": {"Authorization": "Basic MTox"},
        "owner": bearer(issuer.token("1", "orders")),
        "another user": bearer(issuer.token("2", "orders")),
        "no scope": bearer(issuer.token("1", "openid profile")),
        "customer without an id": bearer(issuer.token("budi", "orders")),
    }[caller]


def expected(caller: str, route: Route) -> tuple[int, str | None, str | None]:
    """Status, code and challenge."""
    if route.scopes == OPEN:
        return 302 if not route.answers and route.path.endswith("/") else 200, None, None
    if caller in ("no token", "basic"):
        return 401, "token_required", "Bearer"
    if caller in REFUSED:
        return invalid(REFUSED[caller][0])
    scopes = STAFF[caller][1].split() if caller in STAFF else {"no scope": []}.get(caller, ["orders"])
    if not set(scopes) & set(route.scopes):
        return 403, "insufficient_scope", f'Bearer error="insufficient_scope", scope="{route.scopes[0]}"'
    if caller == "customer without an id":
        return invalid("wrong_subject")
    if caller == "another user" and route.operation_id == "placeOrder":
        return 403, "not_your_user", None
    if caller == "another user" and "{id}" in route.path:
        return 404, "order_not_found", None
    return {"placeOrder": 202}.get(route.operation_id, 200), None, None


def invalid(reason: str) -> tuple[int, str | None, str | None]:
    return 401, "invalid_token", f'Bearer error="invalid_token", error_description="{REASONS[reason][1]}"'


@pytest.mark.parametrize("caller", CALLERS)
def test_every_route_answers_every_caller_as_its_scopes_say_and_a_refused_one_changes_nothing(
    caller: str, protected: Protected
) -> None:
    headers, changed, found = headers_of(caller, protected.issuer), [], {}
    for route in ROUTES:
        # given
        order_id = protected.order_of(1)
        path = route.path.format(id=order_id, event="OrderCreated", file=FILES.get(route.operation_id))
        before = protected.content()

        # when
        answer = send(protected.address, route.method, path, headers, BODIES.get(route.operation_id))

        # then
        found[route.operation_id] = (answer.status, answer.code, answer.challenge)
        if answer.status >= 400 and protected.content() != before:
            changed.append(route.operation_id)
        if answer.status in (401, 403):
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.headers["Cache-Control"] == "no-store"
    assert found == {route.operation_id: expected(caller, route) for route in ROUTES}
    assert changed == []


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation_id)
@ON_SQLITE
def test_preflights_pass_without_a_token_and_a_head_is_checked_as_its_get(protected: Protected, route: Route) -> None:
    path = route.path.format(id=1, event="OrderCreated", file=FILES.get(route.operation_id))

    assert send(protected.address, "OPTIONS", path, {}).status == 200
    if route.method == "GET" and route.scopes:
        assert send(protected.address, "HEAD", path, {}).challenge == "Bearer"


@ON_SQLITE
def test_unknown_addresses_and_methods_are_answered_without_a_token(protected: Protected) -> None:
    statuses = {
        (method, path): send(protected.address, method, path, {}).status
        for method, path in [("GET", "/nothing"), ("GET", "/orders/x"), ("PATCH", "/orders"), ("POST", "/orders/1")]
    }

    assert list(statuses.values()) == [404, 404, 405, 405]


@ON_SQLITE
@pytest.mark.parametrize("path", ["/orders", "/orders/1", "/healthz", "/nothing"])
def test_token_in_the_address_is_refused_even_beside_one_in_the_header(protected: Protected, path: str) -> None:
    token = protected.customer("1")

    answer = protected.send("GET", f"{path}?access_token={token}", token)

    assert (answer.status, answer.code) == (400, "token_in_query")
    assert answer.challenge == 'Bearer error="invalid_request"'
    assert token not in str(answer)


@ON_SQLITE
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_scheme_is_not_case_sensitive(protected: Protected, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {protected.customer('1')}"}

    assert send(protected.address, "GET", "/orders", headers).status == 200


@ON_SQLITE
def test_two_authorization_headers_are_refused(protected: Protected) -> None:
    headers, token = http.client.HTTPMessage(), protected.customer("1")
    for _ in range(2):
        headers.add_header("Authorization", f"Bearer {token}")

    with contextlib.closing(http.client.HTTPConnection(*protected.address)) as connection:
        connection.request("GET", "/orders", headers=headers)  # type: ignore[arg-type]
        assert connection.getresponse().status == 401


@pytest.mark.parametrize(
    "claims",
    [
        {"seconds": -25},  # within the leeway
        {"aud": ["menu-service", "order-service"]},
        {"header": {"typ": "JWT"}},
        {"header": {"typ": "application/AT+JWT"}},
        {"header": {"kid": None}},
        {
            "header": {
                "jku": "https://evil.example/jwks",
                "x5u": "https://evil.example/",
                "jwk": {"kty": "oct", "k": "eA"},
            }
        },
        {"seconds": 10**12},
    ],
    ids=str,
)
@ON_SQLITE
def test_tokens_that_are_accepted(protected: Protected, claims: dict[str, Any]) -> None:
    assert protected.send("GET", "/orders", protected.customer("1", **claims)).status == 200


@ON_SQLITE
def test_clock_of_the_issuer_may_be_fast(protected: Protected) -> None:
    token = protected.customer("1", nbf=time.time() + 25, iat=time.time() + 25)

    assert protected.send("GET", "/orders", token).status == 200


@ON_SQLITE
@pytest.mark.parametrize("subject", ["0", "-1", "01", "1.0", " 1", "٢", "2147483648", "9" * 200, "1_0", "one"])
def test_subject_of_a_customer_is_the_id_of_a_user(protected: Protected, subject: str) -> None:
    answer = protected.send("GET", "/orders", protected.customer(subject))

    assert (answer.status, answer.code) == (401, "invalid_token")


# What a customer learns of others.


def alike(answer: Answer) -> tuple[Any, ...]:
    return (
        answer.status,
        [each for each in answer.headers.items() if each[0] not in ("X-Request-ID", "Date")],
        answer.body,
    )


@pytest.mark.parametrize("language", ["id", "en"])
@pytest.mark.parametrize("state", State)
def test_order_of_another_user_is_answered_as_one_that_does_not_exist(
    protected: Protected, state: State, language: str
) -> None:
    # given
    token = protected.customer("2")
    order_id = protected.order_of(1)
    requests = [
        ("GET", "", {}), ("HEAD", "", {}), ("GET", "", {"If-None-Match": "*"}), ("DELETE", "", {}),
        ("GET", "/history", {}), ("GET", "/history?limit=0", {}), ("GET", "/events", {}),
        ("GET", "/events", {"Last-Event-ID": "2", "Accept": "text/event-stream"}), ("OPTIONS", "", {}),
        ("PUT", "/payment", {}), ("PATCH", "", {}), ("GET", "/nothing", {}),
    ]  # fmt: skip
    with protected.service.database.writing() as connection:
        orders = metadata.tables["orders"]
        connection.execute(sa.update(orders).values(state=state.value).where(orders.c.id == order_id))

    # when
    headers = bearer(token) | {"Accept-Language": language}
    foreign, unknown = (
        [
            alike(send(protected.address, method, f"/orders/{id}{path}", headers | more))
            for method, path, more in requests
        ]
        for id in (order_id, order_id + 1000)
    )

    # then
    assert foreign == unknown
    assert {answer[0] for answer in foreign} == {200, 403, 404, 405, 422}


def test_order_of_another_user_is_not_found_even_if_its_row_is_damaged(protected: Protected) -> None:
    order_id = protected.order_of(1)
    with protected.service.database.writing() as connection:
        connection.execute(sa.update(metadata.tables["orders"]).values(ledger="damaged"))

    assert protected.send("GET", f"/orders/{order_id}", protected.customer("2")).status == 404
    assert protected.send("GET", f"/orders/{order_id}", protected.customer("1")).status == 500


def test_list_of_a_customer_has_the_own_orders_on_every_page(protected: Protected) -> None:
    # given
    own = [protected.order_of(user_id) for user_id in (1, 2, 1, 2, 1)][::2]
    token, till = protected.customer("1"), protected.issuer.token("till", "orders:all")

    # when
    pages, cursor = [], ""
    while cursor is not None:
        page = protected.send("GET", f"/orders?limit=2{cursor and f'&cursor={cursor}'}", token).body
        pages.append([order["id"] for order in page["orders"]])
        cursor = page["next_cursor"]

    # then
    assert pages == [own[:0:-1], own[:1]]
    assert protected.send("GET", "/orders?user_id=1", token).body["orders"][0]["id"] == own[-1]
    assert protected.send("GET", "/orders", protected.customer("3")).body == {"orders": [], "next_cursor": None}
    for user_id in (2, 3):  # one with orders, one without
        answer = protected.send("GET", f"/orders?user_id={user_id}", token)
        assert (answer.status, answer.code) == (403, "not_your_user")
    assert len(protected.send("GET", "/orders", till).body["orders"]) == 5
    assert len(protected.send("GET", "/orders?user_id=2", till).body["orders"]) == 2


def test_each_subject_has_idempotency_keys_of_its_own(protected: Protected) -> None:
    def place(token: str, user_id: int, key: str = "k1", menu_id: int = 1) -> Answer:
        body = order_request(user_id=user_id, menu_ids=[menu_id])
        return protected.send("POST", "/orders", token, body, **{"Idempotency-Key": key})

    # given: users whose subject and key are the same text when put together
    one, two, eleven = (protected.customer(subject) for subject in ("1", "2", "11"))
    till = protected.issuer.token("till-1", "orders:all")

    # when
    answers = [
        place(one, 1), place(two, 2), place(till, 1), place(eleven, 11, key="k1"), place(one, 1, key="1k1"),
        place(two, 2, key="k1", menu_id=2), place(one, 1), place(till, 1),
    ]  # fmt: skip

    # then
    ids = [answer.body.get("order_id") or answer.body["id"] for answer in answers]
    assert [answer.status for answer in answers] == [202, 202, 202, 202, 202, 422, 202, 202]
    assert len(set(ids[:5])) == 5
    assert ids[5:] == [ids[1], ids[0], ids[2]]


def test_keys_from_before_tokens_were_required_stay_with_requests_without_one(
    service_with: ServiceWith, keys: Published, issuer: Issuer
) -> None:
    # given
    key = {"Idempotency-Key": "k1", "Prefer": "respond-async"}
    first = service_with().post(headers=key).json

    # when
    with_token = service_with(**keys.settings).post(headers=key | bearer(issuer.token("1", "orders"))).json
    again = service_with().post(headers=key).json

    # then
    assert again == first
    assert with_token["id"] != first["id"]


# Streams.


def test_stream_ends_when_its_token_expires(service_with: ServiceWith, keys: Published, issuer: Issuer) -> None:
    # given
    service = service_with(**keys.settings, stream_seconds=60)
    with served(service.app) as address:
        order_id = Protected(service, address, issuer).order_of(1)
        token = issuer.token("1", "orders", seconds=3)

        # when
        began = time.time()
        answer = send(address, "GET", f"/orders/{order_id}/events", bearer(token))
        seconds = time.time() - began

    # then
    assert answer.status == 200
    assert b"event: status" in answer.body
    assert 1 < seconds < 10, seconds


@pytest.mark.parametrize(("settings", "lines"), [({}, 1), ({"host": "::", "auth": "none"}, 1), (JWT, 0)])
def test_service_that_needs_no_tokens_says_so_at_its_start(
    settings: dict[str, str], lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = core.Log()
    monkeypatch.setattr("order_service.web.endpoints.log", log)

    with application("sqlite:////nonexistent/orders.db", **settings):
        assert log.count("requests need no token: ORDER_AUTH is not jwt") == lines


# The table.


def test_application_does_not_start_with_a_route_without_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Flask(__name__, static_folder=None)
    app.add_url_rule("/everything", "everything", lambda: "everything")

    with pytest.raises(ValueError, match="no scopes are declared for everything"):
        authorization.install(app, None, {route.operation_id: route.scopes for route in ROUTES})
    with pytest.raises(TypeError, match="scopes"):
        Route("all", "GET", "/everything", endpoint=ROUTES[0].endpoint, summary="", answers={})  # type: ignore[call-arg]


# The log of refused and privileged requests.


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> core.Log:
    log = core.Log()
    monkeypatch.setattr(audit_log, "log", log)
    return log


def lines(audit: core.Log) -> list[tuple[str, dict[str, Any]]]:
    """The event and the fields of each line; the address is checked."""
    found = [(call.args[0], dict(call.kwargs)) for call in audit.calls]
    assert {fields.pop("address") for _, fields in found} <= {"127.0.0.1"}
    audit.calls.clear()
    return found


def test_refused_and_privileged_requests_are_logged_and_those_of_a_customer_are_not(
    protected: Protected, audit: core.Log
) -> None:
    # given
    order_id = protected.order_of(1)
    path, paid = f"/orders/{order_id}", {"payment_status": "paid"}
    one, two, till = protected.customer("1"), protected.customer("2"), protected.issuer.token("till", "orders:all")

    # a customer, and reading
    for method, address in [("GET", path), ("GET", "/orders"), ("POST", "/orders"), ("GET", "/orders/4711")]:
        protected.send(method, address, one, order_request() if method == "POST" else None)
    protected.send("GET", path, till)
    assert lines(audit) == []

    # refused
    send(protected.address, "GET", path, {})
    protected.send("GET", path, "garbage")
    protected.send("DELETE", path, two)
    protected.send("POST", "/orders", two, order_request())
    protected.send("PUT", f"{path}/payment", till, paid)
    protected.send("GET", "/orders?access_token=x", one)
    known, nobody = {"order_id": order_id}, {"subject": None}
    assert lines(audit) == [
        ("access refused", nobody | known | {"operation": "getOrder", "code": "token_required"}),
        ("access refused", nobody | known | {"operation": "getOrder", "code": "invalid_token", "reason": "malformed"}),
        ("access refused", {"subject": "2", **known, "operation": "cancelOrder", "code": "order_not_found"}),
        ("access refused", {"subject": "2", "operation": "placeOrder", "code": "not_your_user"}),
        ("access refused", {"subject": "till", **known, "operation": "updatePayment", "code": "insufficient_scope"}),
        ("access refused", nobody | {"operation": "listOrders", "code": "token_in_query"}),
    ]

    # privileged
    protected.send("POST", "/orders", till, order_request())
    protected.send("PUT", f"{path}/payment", protected.issuer.token("payments-1", "payments"), paid)
    protected.send("DELETE", path, till)
    assert lines(audit) == [
        ("privileged request", {"subject": "till", "operation": "placeOrder", "status": 202}),
        ("privileged request", {"subject": "payments-1", **known, "operation": "updatePayment", "status": 200}),
        ("privileged request", {"subject": "till", **known, "operation": "cancelOrder", "status": 409}),
    ]


def test_repeats_of_a_refused_request_are_counted_in_one_line(
    protected: Protected, audit: core.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no client can fill the disk with them."""
    monkeypatch.setattr(audit_log, "PERIOD_SECONDS", 600.0)
    for number in range(1, 51):
        protected.send("GET", f"/orders/{number}", "garbage")
        protected.send("PUT", f"/orders/{number}/payment", protected.issuer.token("pay", "payments"), {})

    assert [(event, fields.get("code"), fields.get("status")) for event, fields in lines(audit)] == [
        ("access refused", "invalid_token", None),
        ("privileged request", None, 400),
    ]


def test_refused_hosts_and_clients_over_a_limit_are_logged(service_with: ServiceWith, audit: core.Log) -> None:
    service = service_with(rate_limit="1/hour", stream_limit=1, hosts="shop.example", trusted_proxies=1)
    here = RESPOND_ASYNC | {"Host": "shop.example", "X-Forwarded-For": "127.0.0.1:4711"}
    order_id = body_of(service.post(order_request(), here))["id"]
    opened = service.client.get(f"/orders/{order_id}/events", headers=here, buffered=False)

    service.get(f"/orders/{order_id}/events", here | {"Accept": "text/event-stream"})
    service.post(order_request(), here)
    service.get("/orders", here | {"Host": "evil.example"})

    opened.close()
    nobody = {"subject": None}
    assert lines(audit) == [
        ("access refused", nobody | {"code": "too_many_own_streams", "operation": "streamOrder", "order_id": order_id}),
        ("access refused", nobody | {"code": "rate_limited", "operation": "placeOrder"}),
        ("access refused", nobody | {"code": "host_not_accepted", "operation": "listOrders", "host": "evil.example"}),
    ]


def test_requests_without_tokens_are_not_logged_as_privileged(service: Service, audit: core.Log) -> None:
    order_id = service.order_in(State.AWAITING_PAYMENT)

    service.put_payment(order_id)

    assert lines(audit) == []


def test_every_reason_has_a_text_and_every_route_is_in_one_table() -> None:
    assert {reason for reason, _ in REFUSED.values()} == REASONS.keys()
    assert all(re.fullmatch("[a-z, ]+", english.replace("JWT", "").replace("+", "")) for _, english in REASONS.values())
    assert len({route.operation_id for route in routes.ROUTES}) == len(ROUTES)
