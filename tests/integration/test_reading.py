"""What a client reads and follows: pages of orders, versions, event streams, and what the operator sees of it."""

import contextlib
import http.client
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs
from werkzeug.test import TestResponse

from order_service.config import Settings
from order_service.domain.order import State
from order_service.web import streaming
from tests.integration.test_api import ASYNC, EXAMPLE, RESERVED, Eventually, Service, problem, served

#: Threads that are left when all streams are open and all waiters wait, at least.
SPARE_THREADS = 16


@pytest.fixture
def service(database_url: str, eventually: Eventually) -> Iterator[Service]:
    with contextlib.closing(Service(database_url, eventually, streams=2)) as service:
        yield service


# Pages.


def walked(service: Service, query: str) -> list[list[int]]:
    """The ids of every page, by the cursor of the one before."""
    pages, more = [], ""
    while True:
        page = service.client.get(f"/orders?{query}{more}").json or {}
        pages.append([order["id"] for order in page["orders"]])
        if page["next_cursor"] is None:
            return pages
        more = f"&cursor={page['next_cursor']}"


def test_pages_go_from_the_newest_to_the_oldest_without_gap_or_repeat(service: Service) -> None:
    ids = [service.order_in(State.AWAITING_MENU) for _ in range(5)]

    assert walked(service, "limit=2") == [ids[:2:-1], ids[2:0:-1], ids[:1]]
    assert walked(service, "limit=5") == [ids[::-1]]
    assert walked(service, "") == [ids[::-1]]


def test_an_order_placed_between_two_pages_shifts_none(service: Service) -> None:
    first, second, third = (service.order_in(State.AWAITING_MENU) for _ in range(3))

    page = service.client.get("/orders?limit=2").json or {}
    service.order_in(State.AWAITING_MENU)
    rest = service.client.get(f"/orders?limit=2&cursor={page['next_cursor']}").json or {}

    assert [order["id"] for order in page["orders"]] == [third, second]
    assert [order["id"] for order in rest["orders"]] == [first]


def test_filters_are_by_user_and_by_public_status_and_hold_on_every_page(service: Service) -> None:
    by_state = {state: service.order_in(state) for state in State}
    theirs = [service.post(EXAMPLE | {"user_id": 2}, ASYNC).json["id"] for _ in range(3)]  # type: ignore[index]
    pending = [id for state, id in by_state.items() if state.status == "pending"]

    assert walked(service, "status=pending&user_id=1&limit=1") == [[id] for id in sorted(pending, reverse=True)]
    assert walked(service, "user_id=2&limit=2") == [theirs[:0:-1], theirs[:1]]
    for state in (State.PAID, State.FAILED, State.CANCELLED):
        assert walked(service, f"status={state.status}") == [[by_state[state]]]
    assert walked(service, "user_id=3") == [[]]


def test_a_listed_order_has_the_body_it_has_alone(service: Service) -> None:
    order_id = service.order_in(State.PAID)

    [listed] = (service.client.get("/orders").json or {})["orders"]

    assert listed == service.client.get(f"/orders/{order_id}").json


@pytest.mark.parametrize(
    "query",
    [
        "user_id=", "user_id=0", "user_id=1.0", "user_id=+1", "user_id=2147483648", "user_id=1&user_id=1",
        "status=", "status=PAID", "status=awaiting_menu", "limit=0", "limit=101", "limit=x", "cursor=", "cursor=7",
        "note=1",
    ],
)  # fmt: skip
def test_query_that_cannot_be_used_is_422_naming_its_parameter(service: Service, query: str) -> None:
    found = problem(service.client.get(f"/orders?{query}"), 422, "invalid_request")

    assert [error["field"] for error in found["errors"]] == [query.split("=")[0]]


# Versions.


def test_etag_changes_with_the_order_and_spares_the_body_until_then(service: Service) -> None:
    # given
    order_id = service.order_in(State.AWAITING_PAYMENT)
    etag = service.client.get(f"/orders/{order_id}").headers["ETag"]

    def again(seen: str) -> TestResponse:
        return service.client.get(f"/orders/{order_id}", headers={"If-None-Match": seen})

    # when, then
    same = again(etag)
    assert (same.status_code, same.data, same.headers["ETag"]) == (304, b"", etag)
    assert again('"another"').status_code == 200
    assert again(f'"another", {etag}').status_code == 304
    assert (again(f"W/{etag}").status_code, again("*").status_code, again("nonsense").status_code) == (304, 304, 200)
    # What is asked under any other condition is read as if without.
    for name, value in [
        ("If-Match", '"another"'), ("If-Unmodified-Since", "Thu, 02 Jan 2020 03:04:05 GMT"), ("Range", "bytes=0-3"),
        ("If-Modified-Since", "Thu, 02 Jan 2120 03:04:05 GMT"), ("If-Range", etag),
    ]:  # fmt: skip
        found = service.client.get(f"/orders/{order_id}", headers={name: value})
        assert (found.status_code, found.headers["ETag"]) == (200, etag), name
    assert service.client.get("/orders/1", headers={"If-Match": '"x"', "If-None-Match": etag}).status_code == 304

    # and
    changed = service.client.put(f"/orders/{order_id}/payment", json={"payment_status": "paid"})
    assert changed.headers["ETag"] != etag
    assert (again(etag).status_code, again(changed.headers["ETag"]).status_code) == (200, 304)


# Idempotency-Key.


def test_a_repeated_request_is_answered_from_the_order_as_it_stands_now(service: Service) -> None:
    key = {"Idempotency-Key": "k1"}
    first = service.post(headers=ASYNC | key).json or {}
    service.tell(first["id"], RESERVED)

    again = service.post(headers=key)
    other = service.post(EXAMPLE | {"menu_ids": [2]}, key)
    another_key = service.post(headers=ASYNC | {"Idempotency-Key": "k2"})

    assert (again.status_code, (again.json or {})["id"], (again.json or {})["total_price"]) == (201, first["id"], 38000)
    assert problem(other, 422, "idempotency_key_reused")["order_id"] == first["id"]
    assert (another_key.json or {})["id"] != first["id"]
    assert service.rows()[0] == 2


@pytest.mark.parametrize("key", ["x1,x2", ",", "", "two words", "é", "a" * 256])
def test_key_that_cannot_be_used_is_422_naming_its_header(service: Service, key: str) -> None:
    answer = service.post(headers=ASYNC | {"Idempotency-Key": key})

    found = problem(answer, 422, "invalid_request")
    assert [error["field"] for error in found["errors"]] == ["Idempotency-Key"]
    assert service.rows()[0] == 0


def test_two_keys_are_422_over_a_real_connection_too(service: Service) -> None:
    # given
    with served(service.app) as address, contextlib.closing(http.client.HTTPConnection(*address, timeout=10)) as client:
        client.putrequest("POST", "/orders")
        body = json.dumps(EXAMPLE).encode()
        for name, value in [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]:
            client.putheader(name, value)
        client.putheader("Idempotency-Key", "x1")
        client.putheader("Idempotency-Key", "x2")

        # when
        client.endheaders(body)
        answer = client.getresponse()

        # then
        assert (answer.status, json.loads(answer.read())["errors"][0]["field"]) == (422, "Idempotency-Key")


def test_every_other_visible_character_may_stand_in_a_key(service: Service) -> None:
    key = "".join(map(chr, range(0x21, 0x7F))).replace(",", "")

    assert service.post(headers=ASYNC | {"Idempotency-Key": key}).status_code == 202


# Event streams.


class Stream:
    """An event stream read piece by piece, as it comes."""

    def __init__(self, service: Service, order_id: int, last_event_id: str | None = None) -> None:
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        self.answer = service.client.get(f"/orders/{order_id}/events", headers=headers, buffered=False)
        self._pieces = iter(self.answer.response)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()

    def piece(self) -> str:
        """The next event or comment; nothing at the end."""
        piece = next(self._pieces, "")
        return piece.decode() if isinstance(piece, bytes) else piece

    def event(self) -> dict[str, Any] | None:
        """The next event, comments left out; None at the end."""
        while (piece := self.piece()).startswith(":"):
            pass
        return dict(line.split(": ", 1) for line in piece.splitlines() if line) if piece else None


def test_stream_tells_each_change_and_ends_with_the_order(service: Service) -> None:
    order_id = service.order_in(State.AWAITING_PAYMENT)
    with Stream(service, order_id) as stream:
        first = stream.event()
        paid = service.client.put(f"/orders/{order_id}/payment", json={"payment_status": "paid"})
        second, end = stream.event(), stream.event()

    assert first
    assert second
    assert (first["event"], json.loads(first["data"])["status"]) == ("status", "pending")
    assert (second["event"], json.loads(second["data"])) == ("status", paid.json)
    assert int(first["id"]) < int(second["id"])
    assert end is None


@pytest.mark.parametrize("state", [State.PAID, State.FAILED, State.CANCELLED])
def test_stream_of_an_ended_order_tells_its_end_and_closes(service: Service, state: State) -> None:
    with Stream(service, service.order_in(state)) as stream:
        only, end = stream.event(), stream.event()

    assert only
    assert json.loads(only["data"])["status"] == state.status
    assert end is None


def test_stream_goes_on_after_the_last_event_seen(service: Service) -> None:
    # given
    order_id = service.order_in(State.AWAITING_PAYMENT)
    with Stream(service, order_id) as stream:
        seen = (stream.event() or {})["id"]

    # when: nothing new, then something new meanwhile, then an id that is none
    with Stream(service, order_id, seen) as stream:
        service.cancel(order_id)
        after = stream.event()
    with Stream(service, order_id, seen) as stream:
        missed = stream.event()
    with Stream(service, order_id, "nonsense") as stream:
        anything = stream.event()

    # then
    assert after == missed == anything
    assert json.loads((after or {})["data"])["status"] == "cancelled"
    # and: nothing more will come, which only 204 says to an EventSource
    with Stream(service, order_id, (after or {})["id"]) as stream:
        assert (stream.answer.status_code, stream.event()) == (204, None)


def test_stream_sends_a_comment_when_nothing_happens(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert streaming.HEARTBEAT_SECONDS == 15
    monkeypatch.setattr(streaming, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(streaming, "STOP_CHECK_SECONDS", 0.05)
    service.app.extensions["api"].streams._seconds = 10  # an end instead of a comment, should none come

    with Stream(service, service.order_in(State.AWAITING_PAYMENT)) as stream:
        stream.event()
        comments = [stream.piece(), stream.piece()]

    assert all(re.fullmatch(r":.*\n\n", comment) for comment in comments), comments


def test_stream_ends_after_its_time(database_url: str, eventually: Eventually) -> None:
    with (
        contextlib.closing(Service(database_url, eventually, stream_seconds=0.2)) as service,
        Stream(service, service.order_in(State.AWAITING_PAYMENT)) as stream,
    ):
        first, end = stream.event(), stream.event()

    assert first
    assert end is None


def test_place_of_a_stream_is_free_again_however_it_ended(service: Service) -> None:
    # given: two places
    order_id = service.order_in(State.AWAITING_PAYMENT)
    path = f"/orders/{order_id}/events"

    # when: left after an event, before any, and by HEAD, which has none
    for _ in range(3):
        with Stream(service, order_id) as stream:
            stream.event()
        Stream(service, order_id).answer.close()
        with service.client.head(path) as head:
            assert (head.status_code, head.data) == (200, b"")

    # then
    with Stream(service, order_id) as first, Stream(service, order_id) as second:
        third = service.client.get(path)
        assert (first.answer.status_code, second.answer.status_code) == (200, 200)
    problem(third, 503, "too_many_streams")
    assert int(third.headers["Retry-After"]) > 0


@pytest.mark.parametrize(("streams", "waiters"), [(200, 64), (0, 0), (5000, 1000)])
def test_threads_are_more_than_streams_and_waiters_can_take(streams: int, waiters: int) -> None:
    settings = Settings(streams=streams, waiters=waiters)

    assert settings.api_threads > streams + waiters + SPARE_THREADS


# What the operator sees.


def test_request_id_comes_back_and_stands_in_the_log(service: Service) -> None:
    with capture_logs([merge_contextvars]) as lines:
        answer = service.post(headers=ASYNC | {"X-Request-ID": "abc-123"})

    assert answer.headers["X-Request-ID"] == "abc-123"
    about = [line for line in lines if line.get("order_id") == (answer.json or {})["id"]]
    assert about
    assert {line["request_id"] for line in about} == {"abc-123"}


def test_every_request_is_one_line_in_the_log(service: Service) -> None:
    # when
    with capture_logs([merge_contextvars]) as lines:
        order_id = (service.post(headers=ASYNC | {"X-Request-ID": "r1"}).json or {})["id"]
        service.client.get(f"/orders/{order_id}", headers={"X-Request-ID": "r2"})
        service.client.open("/orders", method="BREW", headers={"X-Request-ID": "r3"})
        service.client.get("/no%0Aline?user=secret", headers={"X-Request-ID": "r4"})
        for path in ("/healthz", "/readyz", "/metrics"):
            service.client.get(path, headers={"X-Request-ID": "probe"})

    # then
    told = [line for line in lines if line["event"] == "request"]
    assert [(line["log_level"], line["request_id"], line["method"], line["path"], line["status"]) for line in told] == [
        ("info", "r1", "POST", "/orders", 202),
        ("info", "r2", "GET", f"/orders/{order_id}", 200),
        ("info", "r3", "BREW", "/orders", 405),
        ("info", "r4", "GET", "/no%0Aline", 404),
        ("debug", "probe", "GET", "/healthz", 200),
        ("debug", "probe", "GET", "/readyz", 200),
        ("debug", "probe", "GET", "/metrics", 200),
    ]
    assert all(0 <= line["ms"] < 60_000 for line in told)
    assert told[0]["order_id"] == order_id
    assert all("order_id" not in line for line in told[1:])


@pytest.mark.parametrize("given", [None, "", "two words", "a" * 129, "\xff"])
def test_request_id_is_made_up_where_none_can_be_used(service: Service, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given}

    made_up = [service.client.get(path, headers=headers).headers["X-Request-ID"] for path in ("/healthz", "/nothing")]

    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in made_up), made_up
    assert made_up[0] != made_up[1]


def test_metrics_count_requests_by_route_and_status_never_by_address(service: Service) -> None:
    def counted() -> dict[tuple[str, str, str], float]:
        text = service.client.get("/metrics").text
        [family] = [each for each in text_string_to_metric_families(text) if each.name == "http_requests"]
        samples = [sample for sample in family.samples if sample.name == "http_requests_total"]
        return {(s.labels["method"], s.labels["route"], s.labels["status"]): s.value for s in samples}

    # given
    service.client.get("/metrics")
    before = counted()

    # when
    order_id = service.order_in(State.AWAITING_MENU)
    for path in (f"/orders/{order_id}", f"/orders/{order_id}", "/orders/987654", "/nothing/at/all"):
        service.client.get(path)
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
