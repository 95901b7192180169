"""Event streams: each change of an order as it happens, over at most as many streams as the settings allow."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from order_service.domain.order import State
from order_service.web import placing, streaming
from tests.builders import menu_reserved
from tests.databases import END_OTHER_SESSIONS
from tests.http_service import PAID, Eventually, Service, ServiceWith, problem
from tests.integration import core

#: Well below the interval of comments, on a busy machine.
FIRST_PIECE_SECONDS = 5
#: Idle streams need at least this time, in seconds, for this many queries. On PostgreSQL each costs up to three
#: transactions, with the test of its connection.
IDLE_SECONDS, MOST_QUERIES = 1.3, 4


class Stream:
    """An event stream, read piece by piece as it arrives."""

    def __init__(self, service: Service, order_id: int, last_event_id: str | None = None) -> None:
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        self.answer = service.client.get(f"/orders/{order_id}/events", headers=headers, buffered=False)
        self._pieces = self.answer.iter_encoded()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()

    def piece(self) -> str:
        """The next event or comment; nothing at the end."""
        return next(self._pieces, b"").decode()

    def event(self) -> dict[str, Any] | None:
        """The next event, comments left out; None at the end."""
        while (piece := self.piece()).startswith(":"):
            pass
        return dict(line.split(": ", 1) for line in piece.splitlines() if line) if piece else None


class EventSource:
    """A client that connects and reconnects as a browser's EventSource does.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#sse-processing-model
    """

    def __init__(self, service: Service, order_id: int) -> None:
        self._service, self._path = service, f"/orders/{order_id}/events"
        self.statuses, self.retry_ms, self.is_closed = list[str](), 0, False
        self._last_event_id = ""

    def connect(self) -> None:
        """Read one stream to its end, after which a browser waits `retry_ms`."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._last_event_id:
            headers["Last-Event-ID"] = self._last_event_id
        answer = self._service.get(self._path, headers=headers)
        self.is_closed = (answer.status_code, answer.mimetype) != (200, "text/event-stream")
        for line in answer.text.splitlines() if not self.is_closed else ():
            field, _, value = line.partition(": ")
            if field == "retry":
                self.retry_ms = int(value)
            elif field == "id":
                self._last_event_id = value
            elif field == "data":
                self.statuses.append(json.loads(value)["status"])


def test_event_source_reconnects_when_there_is_no_place_and_stops_after_the_last_event(service: Service) -> None:
    # given
    order_id = service.order_in(State.AWAITING_PAYMENT)
    source = EventSource(service, order_id)

    # when
    with Stream(service, order_id), Stream(service, order_id):
        source.connect()
        busy = source.is_closed, source.retry_ms, list(source.statuses)
    service.cancel(order_id)
    source.connect()
    open_again, retry_ms = not source.is_closed, source.retry_ms
    source.connect()

    # then
    assert busy == (False, 5000, [])
    assert (open_again, retry_ms, source.statuses) == (True, streaming.RETRY_MS, ["cancelled"])
    assert source.is_closed


def test_event_source_reconnects_when_the_database_is_unavailable(client: FlaskClient) -> None:
    path, headers = "/orders/1/events", {"Accept": "text/event-stream"}

    answer, other, order = client.get(path, headers=headers), client.get(path), client.get("/orders/1", headers=headers)

    assert (answer.status_code, answer.mimetype, answer.text) == (200, "text/event-stream", "retry: 5000\n\n")
    assert (other.status_code, order.status_code) == (503, 503)


def test_proxies_are_asked_to_pass_each_event_on_at_once(service: Service) -> None:
    with Stream(service, service.order_in(State.AWAITING_PAYMENT)) as stream:
        assert stream.answer.headers["X-Accel-Buffering"] == "no"
        assert stream.piece().endswith("\n\n")


def test_stream_shows_each_change_and_ends_with_the_order(service: Service) -> None:
    # when
    order_id = service.order_in(State.AWAITING_PAYMENT)
    with Stream(service, order_id) as stream:
        first = stream.event()
        paid = service.put_payment(order_id)
        second, end = stream.event(), stream.event()

    # then
    assert first
    assert second
    assert (first["event"], json.loads(first["data"])["status"]) == ("status", "pending")
    assert (second["event"], json.loads(second["data"])) == ("status", paid.json)
    assert int(first["id"]) < int(second["id"])
    assert end is None


@pytest.mark.parametrize("state", [State.PAID, State.FAILED, State.CANCELLED])
def test_stream_of_an_order_in_a_final_state_shows_it_and_closes(service: Service, state: State) -> None:
    with Stream(service, service.order_in(state)) as stream:
        only, end = stream.event(), stream.event()

    assert only
    assert json.loads(only["data"])["status"] == state.status
    assert end is None


@pytest.fixture
def frequent_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment every 0.1 s: the test client opens a stream only once it has a first piece to read."""
    assert streaming.HEARTBEAT_SECONDS == 15
    monkeypatch.setattr(streaming, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(streaming, "STOP_CHECK_SECONDS", 0.05)


def test_stream_continues_after_the_last_event_seen(service: Service) -> None:
    # given
    order_id = service.order_in(State.AWAITING_PAYMENT)
    with Stream(service, order_id) as stream:
        seen = (stream.event() or {})["id"]

    # when: nothing new, and so a comment at once; a change after the stream opened, a change before it opened, an id that no event has
    start = time.monotonic()
    with Stream(service, order_id, seen) as stream:
        first = stream.piece()
        first_seconds = time.monotonic() - start
        service.cancel(order_id)
        after = stream.event()
    with Stream(service, order_id, seen) as stream:
        missed = stream.event()
    with Stream(service, order_id, "nonsense") as stream:
        anything = stream.event()

    # then
    assert re.fullmatch(r":.*\n\n", first)
    assert first_seconds < FIRST_PIECE_SECONDS
    assert after
    assert after == missed == anything
    assert json.loads(after["data"])["status"] == "cancelled"
    # and: after the last event the answer is 204, on which an EventSource does not reconnect
    with Stream(service, order_id, after["id"]) as stream:
        assert (stream.answer.status_code, stream.event()) == (204, None)


@pytest.mark.usefixtures("frequent_comments")
def test_stream_sends_a_comment_when_nothing_happens(service_with: ServiceWith) -> None:
    # given: a stream that ends after 10 s if no comment comes
    service = service_with(stream_seconds=10)

    # when
    with Stream(service, service.order_in(State.AWAITING_PAYMENT)) as stream:
        stream.event()
        comments = [stream.piece(), stream.piece()]

    # then
    assert all(re.fullmatch(r":.*\n\n", comment) for comment in comments), comments


def test_place_of_a_stream_is_free_again_after_every_way_to_end_it(service: Service) -> None:
    # given: at most two streams
    order_id = service.order_in(State.AWAITING_PAYMENT)
    path = f"/orders/{order_id}/events"

    # when: closed after an event, closed before any event, and HEAD, which has no events
    for _ in range(3):
        with Stream(service, order_id) as stream:
            stream.event()
        Stream(service, order_id).answer.close()
        with service.client.head(path) as head:
            assert (head.status_code, head.data) == (200, b"")

    # then
    with Stream(service, order_id) as first, Stream(service, order_id) as second:
        third = service.get(path)
        assert (first.answer.status_code, second.answer.status_code) == (200, 200)
    problem(third, 503, "too_many_streams")
    assert int(third.headers["Retry-After"]) > 0


def test_idle_streams_cost_few_queries(service: Service, eventually: Eventually) -> None:
    # given
    order_id, begun = service.order_in(State.AWAITING_PAYMENT), list[float]()
    with ThreadPoolExecutor(2) as pool, Stream(service, order_id) as first, Stream(service, order_id) as second:
        first.event()
        second.event()
        ends = [pool.submit(stream.event) for stream in (first, second)]

        # when
        sa.event.listen(service.app.extensions["api"].database.engine, "begin", lambda _: begun.append(0))
        start = time.monotonic()
        eventually(lambda: len(begun) >= MOST_QUERIES, "the queries of the watcher", seconds=20)
        seconds = time.monotonic() - start
        service.cancel(order_id)
        last = [end.result(FIRST_PIECE_SECONDS) for end in ends]

    # then
    assert seconds > IDLE_SECONDS
    assert all(last)


@pytest.fixture
def rare_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The orders are read again after commits only."""
    assert placing.POLL_SECONDS < 1
    monkeypatch.setattr(placing, "POLL_SECONDS", 600)


@pytest.mark.usefixtures("rare_polls")
def test_commit_of_another_process_is_noticed(service: Service) -> None:
    order_id = service.order_in(State.AWAITING_PAYMENT)
    with Stream(service, order_id) as stream:
        stream.event()
        service.receive(order_id, PAID)
        changed = stream.event()
    posted = service.post_with_reply(menu_reserved())

    assert changed
    assert json.loads(changed["data"])["status"] == "paid"
    assert posted.status_code == 201


@core.POSTGRESQL_ONLY
def test_stream_shows_a_change_whose_notification_was_lost(service: Service, database_url: str) -> None:
    order_id = service.order_in(State.AWAITING_PAYMENT)
    with Stream(service, order_id) as stream, psycopg.connect(database_url, autocommit=True) as connection:
        stream.event()
        connection.execute("UPDATE orders SET version = version + 1")
        changed = stream.event()

        # and: one after which the database has closed the connections of the service
        connection.execute(END_OTHER_SESSIONS)
        connection.execute("UPDATE orders SET version = version + 1")
        changed_again = stream.event()

    assert changed
    assert changed_again
    assert int(changed["id"]) + 1 == int(changed_again["id"])
