"""Which Host names are accepted, the headers that protect every response, and headers that nobody should send."""

from typing import Any

import pytest
from flask import Flask

from order_service.domain.order import State
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
        ({"host": "till.lan"}, [*LOOPBACK, "Till.lan:5003"], FOREIGN),
        ({"host": "0.0.0.0"}, [*LOOPBACK, *FOREIGN], []),
        ({"host": "::"}, [*LOOPBACK, *FOREIGN], []),
        ({"host": "0.0.0.0", "hosts": "Orders.example, order_api"},
         ["orders.example", "order_api:80", "ORDERS.example.", "127.0.0.1"], [*FOREIGN, "localhost", "x.orders.example"]),
    ],
    ids=["loopback", "name", "every IPv4 address", "every IPv6 address", "ORDER_HOSTS"],
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


LONG = "a" * 8000
ODD_HEADERS = [
    *[("If-None-Match", value) for value in ('"', 'W/"', "x", '"x", "', ",", '""' * 4000, LONG, '"a"b"')],
    *[("Last-Event-ID", value) for value in ("", "-1", "1,2", "9" * 8000, "\xff", LONG)],
    *[("Accept-Language", value) for value in ("", "*", "en;q=nan", "en;q=-1", "en;q=1e400", ";;;", "en," * 2500, LONG)],
    *[("traceparent", value) for value in ("", "00-", "ff-" + "1" * 32, "\xff", LONG, f"00-{'a' * 32}-{'b' * 16}-01,x")],
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
