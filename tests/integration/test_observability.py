"""What an operator sees of requests: request ids, one log line each, metrics by route."""

import logging
import re
import time

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from order_service.domain.order import State
from order_service.storage.tables import outbox
from tests.http_service import RESPOND_ASYNC, Service, body_of
from tests.integration import core
from tests.integration.core import SQLITE_ONLY


def test_every_request_is_one_line_in_the_log_with_the_id_that_is_returned(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    # when
    caplog.set_level(logging.DEBUG)
    with capture_logs([merge_contextvars]) as lines:
        posted = service.post(headers=RESPOND_ASYNC | {"X-Request-ID": "r1"})
        order_id = body_of(posted)["id"]
        service.get(f"/orders/{order_id}", headers={"X-Request-ID": "r2"})
        service.client.open("/orders", method="BREW", headers={"X-Request-ID": "r3"})
        service.get("/no%0Aline?user=secret", headers={"X-Request-ID": "r4"})
        for path in ("/healthz", "/readyz", "/metrics"):
            service.get(path, headers={"X-Request-ID": "probe"})

    # then
    logged = [line for line in lines if line["event"] == "request"]
    assert [
        (line["log_level"], line["request_id"], line["method"], line["path"], line["status"]) for line in logged
    ] == [
        ("info", "r1", "POST", "/orders", 202),
        ("info", "r2", "GET", f"/orders/{order_id}", 200),
        ("info", "r3", "BREW", "/orders", 405),
        ("info", "r4", "GET", "/no%0Aline", 404),
        ("debug", "probe", "GET", "/healthz", 200),
        ("debug", "probe", "GET", "/readyz", 200),
        ("debug", "probe", "GET", "/metrics", 200),
    ]
    assert all(0 <= line["ms"] < 60_000 for line in logged)
    assert logged[0]["order_id"] == order_id
    assert all("order_id" not in line for line in logged[1:])
    assert posted.headers["X-Request-ID"] == "r1"
    assert {line["request_id"] for line in lines if line.get("order_id") == order_id} == {"r1"}


IDS = f"{'a' * 32}-{'b' * 16}"
TRACED: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "sampled": ({"traceparent": f"00-{IDS}-01"}, {"traceparent": f"00-{IDS}-01"}),
    "not sampled": ({"traceparent": f"00-{IDS}-00"}, {"traceparent": f"00-{IDS}-00"}),
    "version 01": ({"traceparent": f"01-{IDS}-03"}, {"traceparent": f"01-{IDS}-03"}),
    "longer version": ({"traceparent": f"cc-{IDS}-03-more"}, {"traceparent": f"00-{IDS}-01"}),
    "version ff": ({"traceparent": f"ff-{IDS}-01"}, {}),
    "longer version 00": ({"traceparent": f"00-{IDS}-01-more"}, {}),
    "version 01 without a hyphen": ({"traceparent": f"01-{IDS}-01more"}, {}),
    "no trace id": ({"traceparent": f"00-{'0' * 32}-{'b' * 16}-01"}, {}),
    "capitals": ({"traceparent": f"00-{IDS.upper()}-01"}, {}),
    "nothing": ({}, {}),
    "state": (
        {"traceparent": f"00-{IDS}-00", "tracestate": "congo=t61rcWkgMzE, t@v=a b,"},
        {"traceparent": f"00-{IDS}-00", "tracestate": "congo=t61rcWkgMzE, t@v=a b,"},
    ),
    "state alone": ({"tracestate": "congo=1"}, {}),
    "state without a value": ({"traceparent": f"00-{IDS}-00", "tracestate": "congo"}, {"traceparent": f"00-{IDS}-00"}),
    "state with a key twice": (
        {"traceparent": f"00-{IDS}-00", "tracestate": "a=1,a=2"},
        {"traceparent": f"00-{IDS}-00"},
    ),
    "long state": (
        {"traceparent": f"00-{IDS}-00", "tracestate": ",".join(f"{key}={'v' * 200}" for key in "abc")},
        {"traceparent": f"00-{IDS}-00", "tracestate": ",".join(f"{key}={'v' * 200}" for key in "ab")},
    ),
}


@pytest.mark.parametrize("case", TRACED)
def test_trace_context_of_a_request_is_carried_by_its_event_as_it_came(service: Service, case: str) -> None:
    headers, expected = TRACED[case]

    service.post(headers=RESPOND_ASYNC | headers)

    [event] = core.unsent_events(service.database)
    [row] = core.rows(service.database, outbox)
    names = ("traceparent", "tracestate")
    assert {name: event[name] for name in names if name in event} == expected
    assert {name: row._mapping[name] for name in names if row._mapping[name]} == expected


@SQLITE_ONLY
def test_a_state_of_thousands_of_entries_takes_little_time(service: Service) -> None:
    headers = RESPOND_ASYNC | {"traceparent": f"00-{IDS}-00", "tracestate": "a=1" + "," * 8000}
    service.post(headers=RESPOND_ASYNC)
    began = time.thread_time()

    service.post(headers=headers)

    assert time.thread_time() - began < 0.1
    *_, row = core.rows(service.database, outbox)
    assert row.tracestate == "a=1" + "," * 509


@pytest.mark.parametrize("given", [None, "", "two words", "a" * 129, "\xff"])
def test_request_id_is_generated_where_none_is_valid(client: FlaskClient, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given}

    generated = [client.get(path, headers=headers).headers["X-Request-ID"] for path in ("/healthz", "/nothing")]

    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in generated), generated
    assert generated[0] != generated[1]


def test_metrics_count_requests_by_route_and_status_never_by_address(service: Service) -> None:
    def counted() -> dict[tuple[str, str, str], float]:
        text = service.get("/metrics").text
        [family] = [each for each in text_string_to_metric_families(text) if each.name == "http_requests"]
        samples = [sample for sample in family.samples if sample.name == "http_requests_total"]
        return {(s.labels["method"], s.labels["route"], s.labels["status"]): s.value for s in samples}

    # given
    service.get("/metrics")
    before = counted()

    # when
    order_id = service.order_in(State.AWAITING_MENU)
    for path in (f"/orders/{order_id}", f"/orders/{order_id}", "/orders/987654", "/nothing/at/all"):
        service.get(path)
    service.client.open("/orders", method="BREW")

    # then
    after = counted()
    grown = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
    assert grown == {
        ("POST", "/orders", "202"): 1,
        ("GET", "/orders/<int:order_id>", "200"): 2,
        ("GET", "/orders/<int:order_id>", "404"): 1,
        ("GET", "unknown", "404"): 1,
        ("other", "unknown", "405"): 1,
        ("GET", "/metrics", "200"): 1,
    }
    assert not any("987654" in route for _, route, _ in after)
