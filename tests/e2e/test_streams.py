"""Event streams through the real server: many at once under a load of POSTs, and their end when the API stops."""

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from order_service.config import Settings
from tests.e2e.client import RESPOND_ASYNC, Client, order_of, repeating
from tests.e2e.deployment import MOSTLY_ON_POSTGRESQL, MOSTLY_ON_SQLITE, ON_SQLITE, Deployment, api_alone
from tests.e2e.process import STOP_SECONDS

#: The streams that one API process keeps open by default.
STREAMS = Settings.model_fields["streams"].default
ORDERS, POSTERS = 20, 4
#: Seconds within which all streams end after SIGTERM or SIGINT; the service promises it.
STREAM_END_SECONDS = 2
#: Seconds after its client left within which the place of a stream is free; the service promises it.
FREE_SECONDS = 2


class Stream:
    """The event stream of one order."""

    def __init__(self, client: Client, order_id: int) -> None:
        self._connection = client.connect()
        self._connection.request("GET", f"/orders/{order_id}/events")
        self._response = self._connection.getresponse()
        assert (self._response.status, self._response.headers["Content-Type"]) == (200, "text/event-stream")
        self.order_id, self.statuses, self.has_begun = order_id, list[str](), threading.Event()

    def read(self) -> float:
        """Record the status in each event until the stream ends; return the time of its end."""
        with contextlib.closing(self._connection):
            while line := self._response.readline():
                if line.startswith(b"data: "):
                    body = json.loads(line[6:])
                    assert body["id"] == self.order_id
                    self.statuses.append(body["status"])
                    self.has_begun.set()
        return time.monotonic()


@contextlib.contextmanager
def opened(client: Client, ids: list[int]) -> Iterator[tuple[list[Stream], list[Future[float]]]]:
    """Open STREAMS streams of these orders and wait for the first event of each, the order's present state."""
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [Stream(client, ids[number % len(ids)]) for number in range(STREAMS)]
        ends = [pool.submit(stream.read) for stream in streams]
        assert all(stream.has_begun.wait(30) for stream in streams), "the first event of each stream"
        yield streams, ends


def post_orders(client: Client, body: Any) -> list[int]:
    return [client.post_order(body, headers=RESPOND_ASYNC).body["id"] for _ in range(ORDERS)]


@pytest.mark.timeout(300)
@MOSTLY_ON_POSTGRESQL
def test_api_accepts_orders_beside_200_streams_and_each_stream_shows_pending_then_paid(deployment: Deployment) -> None:
    # given: orders that are priced and not paid
    deployment.start_all(PAYMENT_MODE="manual")
    client, body = deployment.client, order_of(deployment.client.add_menu())
    ids = post_orders(client, body)
    deployment.wait_until(lambda: deployment.records.count("awaiting_payment") == ORDERS, "the menu's replies")

    def post() -> tuple[int, float]:
        start = time.monotonic()
        status = client.post_order(body).status
        return status, time.monotonic() - start

    # when
    with opened(client, ids) as (streams, ends), repeating(post, threads=POSTERS) as answers:
        one_more = client.request("GET", f"/orders/{ids[0]}/events")
        paid = [client.request("PUT", f"/orders/{id}/payment", {"payment_status": "paid"}).status for id in ids]
        for end in ends:
            end.result(timeout=60)

    # then
    assert paid == [200] * ORDERS
    assert {tuple(stream.statuses) for stream in streams} == {("pending", "paid")}
    assert {status for status, _ in answers} <= {201, 202}
    assert len(answers) >= POSTERS
    # A POST waits for the menu for at most 2 s.
    assert max(seconds for _, seconds in answers) < 10
    assert (one_more.status, one_more.body["code"]) == (503, "too_many_streams")
    assert int(one_more.headers["Retry-After"]) > 0


@pytest.mark.timeout(300)
@MOSTLY_ON_SQLITE
def test_all_streams_end_within_two_seconds_of_sigterm(database_url: str, tmp_path: Path) -> None:
    with api_alone(database_url, tmp_path) as deployment:
        # given
        [api] = deployment.processes
        ids = post_orders(deployment.client, order_of(1))

        # when
        with opened(deployment.client, ids) as (streams, ends):
            stopped_at = time.monotonic()
            status = api.terminate()
            seconds = max(end.result(timeout=60) for end in ends) - stopped_at

        # then
        assert seconds < STREAM_END_SECONDS
        assert status == 0
        assert {tuple(stream.statuses) for stream in streams} == {("pending",)}


@pytest.mark.field
@ON_SQLITE
def test_all_streams_end_within_two_seconds_of_ctrl_c(database_url: str, tmp_path: Path) -> None:
    with api_alone(database_url, tmp_path) as deployment:
        # given
        [api] = deployment.processes
        ids = post_orders(deployment.client, order_of(1))
        [worker] = map(int, re.findall(r"Booting worker with pid: (\d+)", api.log))
        parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])

        # when: a terminal sends it to all processes
        with opened(deployment.client, ids) as (_, ends):
            stopped_at = time.monotonic()
            for pid in (parent, worker):
                os.kill(pid, signal.SIGINT)
            status = api.exit_status(seconds=STOP_SECONDS)
            seconds = max(end.result(timeout=60) for end in ends) - stopped_at

        # then
        assert seconds < STREAM_END_SECONDS
        assert (status, "SIGKILL" in api.log) == (0, False)


def has_place(client: Client, order_id: int) -> bool:
    with contextlib.closing(client.connect()) as connection:
        connection.request("GET", f"/orders/{order_id}/events")
        return connection.getresponse().status == 200


@ON_SQLITE
@pytest.mark.parametrize("more", [b"", b"GET /orders/1/events HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50])
def test_place_of_a_stream_is_free_soon_after_its_client_left(database_url: str, tmp_path: Path, more: bytes) -> None:
    with api_alone(database_url, tmp_path, ORDER_STREAMS="1") as deployment:
        # given: a stream in the only place, perhaps with further requests that its client has sent already
        [api] = deployment.processes
        [order_id, *_] = post_orders(deployment.client, order_of(1))
        connection = deployment.client.connect()
        connection.request("GET", f"/orders/{order_id}/events")
        connection.sock.sendall(more)
        answer = connection.getresponse()
        answer.readline()
        was_taken = not has_place(deployment.client, order_id)

        # when
        answer.close()
        connection.close()
        left_at = time.monotonic()
        deployment.wait_until(lambda: has_place(deployment.client, order_id), "the place to be free")
        seconds = time.monotonic() - left_at

    # then
    assert was_taken
    assert seconds < FREE_SECONDS
    assert "Traceback" not in api.log
