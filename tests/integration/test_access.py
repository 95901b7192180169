"""Which Host names and origins are accepted, the headers that protect every response, and headers that nobody should send."""

import re
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from order_service.domain.order import State
from order_service.web.routes import HEADERS, ROUTES, Route
from tests.http_service import RESPOND_ASYNC, Service, ServiceWith, application, problem

LOOPBACK = [
    "localhost", "localhost:5003", "LOCALHOST", "localhost.", "127.0.0.1:5003", "[::1]:5003", "[::1]",
    # A page can have its own name resolve to any address, but not an address.
    "192.168.1.5", "[2001:db8::1]:80",
]  # fmt: skip
FOREIGN = [
    "evil.example",
    "evil.example:5003",
    "localhost.evil.example",
    "notlocalhost",
    "127.0.0.1.evil.example",
    "2130706433",
]
MALFORMED = [
    "",
    " ",
    "localhost,localhost",
    "a b",
    "user@localhost",
    "localhost/",
    "localhost:x",
    "[::1",
    "::1",
    "\xe9",
    "a%20b",
]


def status_of(app: Flask, host: str, path: str = "/openapi.json") -> tuple[int, Any]:
    answer = app.test_client().get(path, headers={"Host": host})
    return answer.status_code, answer.json.get("code") if answer.status_code != 200 else None


@pytest.mark.parametrize(
    ("settings", "accepted", "refused"),
    [
        ({}, LOOPBACK, FOREIGN),
        ({"host": "0.0.0.0", "auth": "none"}, [*LOOPBACK, *FOREIGN], []),
        ({"host": "::", "auth": "none"}, [*LOOPBACK, *FOREIGN], []),
        ({"host": "0.0.0.0", "auth": "none", "hosts": "Orders.example, order_api"},
         ["orders.example", "order_api:80", "ORDERS.example.", "127.0.0.1"], [*FOREIGN, "localhost", "x.orders.example"]),
    ],
    ids=["loopback", "every IPv4 address", "every IPv6 address", "ORDER_HOSTS"],
)  # fmt: skip
def test_only_accepted_host_names_are_answered(
    settings: dict[str, str], accepted: list[str], refused: list[str]
) -> None:
    with application("sqlite:////nonexistent/orders.db", **settings) as app:
        assert {host: status_of(app, host) for host in accepted} == dict.fromkeys(accepted, (200, None))
        assert {host: status_of(app, host) for host in refused} == dict.fromkeys(refused, (400, "host_not_accepted"))
        assert {host: status_of(app, host) for host in MALFORMED} == dict.fromkeys(MALFORMED, (400, "bad_request"))
        # Probes send any name.
        assert {status_of(app, host, "/healthz") for host in [*accepted, *refused]} == {(200, None)}


def test_refused_host_changes_nothing_and_the_answer_names_the_setting(service: Service) -> None:
    answer = service.post(headers={"Host": "evil.example", "Accept-Language": "en"})

    assert "ORDER_HOSTS" in problem(answer, 400, "host_not_accepted")["message"]
    assert service.rows()[0] == 0


def test_nothing_about_orders_is_cached_and_no_response_is_embedded_or_sniffed(service: Service) -> None:
    # given
    order_id = service.order_in(State.PAID)
    order = service.get(f"/orders/{order_id}")
    paths = [
        f"/orders/{order_id}", "/orders", f"/orders/{order_id}/history", f"/orders/{order_id}/events", "/orders/99",
        "/orders?limit=x", "/metrics", "/healthz", "/docs", "/docs/start.js", "/asyncapi", "/openapi.json", "/nothing",
    ]  # fmt: skip

    # when
    answers = [service.get(path) for path in paths]
    answers += [service.post(headers=RESPOND_ASYNC), service.post("{"), service.cancel(order_id)]
    unchanged = service.get(f"/orders/{order_id}", {"If-None-Match": order.headers["ETag"]})

    # then
    for answer in [*answers, unchanged]:
        assert answer.headers["X-Content-Type-Options"] == "nosniff", answer.request.path
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        is_file = answer.request.path.startswith("/docs/")
        assert answer.headers["Cache-Control"] == ("max-age=3600" if is_file else "no-store"), answer.request.path
    assert (unchanged.status_code, unchanged.headers["ETag"]) == (304, order.headers["ETag"])


SHOP = "https://shop.example"


def allowed(answer: TestResponse) -> dict[str, str]:
    """The CORS headers of an answer, and whether a cache keeps it apart by origin."""
    return {name: value for name, value in answer.headers if name.startswith("Access-Control-")} | {
        "Vary": str("origin" in answer.vary)
    }


def words(header: str) -> set[str]:
    return {word.strip() for word in header.split(",")}


def test_page_of_an_allowed_origin_reads_every_answer_with_its_headers(service_with: ServiceWith) -> None:
    # given
    service = service_with(cors_origins=f"{SHOP},http://localhost:3000", stream_seconds=0.01)
    paid, pending = service.order_in(State.PAID), service.order_in(State.AWAITING_PAYMENT)
    etag = service.get(f"/orders/{paid}").headers["ETag"]
    origin = {"Origin": SHOP}

    # when
    answers = [
        service.get(path, origin)
        for path in (
            "/orders",
            f"/orders/{paid}",
            f"/orders/{pending}/events",
            "/orders/99",
            "/nothing",
            "/openapi.json",
        )
    ]
    answers += [
        service.get(f"/orders/{paid}", origin | {"If-None-Match": etag}),
        service.post(headers=origin | RESPOND_ASYNC),
        service.post("{", origin),
        service.client.delete(f"/orders/{paid}", headers=origin),
        service.client.patch("/orders", headers=origin),
        service.get("/orders", origin | {"Host": "evil.example"}),
    ]

    # then
    assert {answer.status_code for answer in answers} == {200, 202, 304, 400, 404, 405, 409}
    for answer in answers:
        found = allowed(answer)
        exposed = words(found.pop("Access-Control-Expose-Headers"))
        assert found == {"Access-Control-Allow-Origin": SHOP, "Vary": "True"}
        # Browsers show the others without being told: https://fetch.spec.whatwg.org/#cors-safelisted-response-header-name
        documented = {name for route in ROUTES for each in route.answers.values() for name in each.headers}
        assert documented | {"Preference-Applied", "Retry-After", "X-Request-ID"} <= exposed


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_preflight_of_every_route_allows_its_method_and_every_header_that_is_read(route: Route) -> None:
    path = re.sub(r"{\w+}", "1", route.path)
    asked = {"Origin": SHOP, "Access-Control-Request-Method": route.method}

    with application("sqlite:////nonexistent/orders.db", cors_origins=SHOP) as app:
        answer = app.test_client().options(path, headers=asked)

    assert answer.status_code == 200
    found = allowed(answer)
    assert (found["Access-Control-Allow-Origin"], found["Vary"]) == (SHOP, "True")
    assert route.method in words(found["Access-Control-Allow-Methods"])
    received = {
        "ETag",
        "Location",
        "Preference-Applied",
        "RateLimit",
        "RateLimit-Policy",
        "Retry-After",
        "WWW-Authenticate",
    }
    sent = HEADERS.keys() - received
    assert sent | {"Authorization", "Content-Type"} <= words(found["Access-Control-Allow-Headers"])
    assert 0 < int(found["Access-Control-Max-Age"]) <= 7200


@pytest.mark.parametrize(
    ("setting", "origin", "answered"),
    [
        ("", SHOP, {"Vary": "False"}),
        (SHOP, None, {"Vary": "True"}),
        *((SHOP, origin, {"Vary": "True"}) for origin in (
            "", "null", "*", "http://shop.example", f"{SHOP}:8443", f"{SHOP}.evil.example", "https://evil.example",
            f"{SHOP},https://evil.example", SHOP.upper(),
        )),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_page_of_another_origin_reads_nothing(
    setting: str, origin: str | None, answered: dict[str, str], method: str
) -> None:
    headers = {"Access-Control-Request-Method": "GET"} | ({} if origin is None else {"Origin": origin})

    with application("sqlite:////nonexistent/orders.db", cors_origins=setting) as app:
        answer = app.test_client().open("/openapi.json", method=method, headers=headers)

    assert allowed(answer) == answered


@pytest.mark.parametrize("origin", [SHOP, "null", None])
def test_asterisk_allows_every_origin_without_credentials(origin: str | None) -> None:
    with application("sqlite:////nonexistent/orders.db", cors_origins="*") as app:
        answer = app.test_client().get("/openapi.json", headers={} if origin is None else {"Origin": origin})

    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in answer.headers


LONG = "a" * 8000
ODD_HEADERS = [
    *[("If-None-Match", value) for value in ('"', 'W/"', "x", '"x", "', ",", '""' * 4000, LONG, '"a"b"')],
    *[("Last-Event-ID", value) for value in ("", "-1", "1,2", "9" * 8000, "\xff", LONG)],
    *[("Accept-Language", value) for value in ("", "*", "en;q=nan", "en;q=-1", "en;q=1e400", ";;;", "en," * 2500, LONG)],
    *[("traceparent", value) for value in ("", "00-", "ff-" + "1" * 32, "\xff", LONG, f"00-{'a' * 32}-{'b' * 16}-01,x")],
    *[("tracestate", value) for value in ("", ",", "=", "\xff", LONG, "a=1," * 2000)],
    *[("X-Request-ID", value) for value in ("", "a,b", "\xff", LONG)],
    *[("Prefer", value) for value in ("=", ";", '"', '"' * 4001, "a," * 4000, "\xff", LONG, "wait=" + "9" * 8000)],
    *[("Accept", value) for value in ("text/html", "x", LONG)],
    *[("If-Match", value) for value in ('"x"', "*", LONG)],
    *[("Range", value) for value in ("bytes=0-1", "bytes=9-1", LONG)],
    *[("X-Forwarded-Host", value) for value in ("evil.example", LONG)],
]  # fmt: skip


def test_odd_optional_headers_are_ignored(service_with: ServiceWith) -> None:
    # given
    service = service_with(waiters=0, streams=100, stream_seconds=0.01)
    order_id = service.order_in(State.AWAITING_PAYMENT)
    paths = [f"/orders/{order_id}", f"/orders/{order_id}/events", "/orders/99"]

    # when
    read = {
        (name, value[:20]): tuple(service.get(path, {name: value}).status_code for path in paths)
        for name, value in ODD_HEADERS
    }
    posted = {(name, value[:20]): service.post(headers={name: value}).status_code for name, value in ODD_HEADERS}

    # then
    assert read == dict.fromkeys(read, (200, 200, 404))
    assert posted == dict.fromkeys(posted, 202)
