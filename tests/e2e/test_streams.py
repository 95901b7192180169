"""Event streams through the real server: many at once beside a load of POSTs, and their end when the API goes."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from order_service.config import Settings
from tests.e2e.house import House

#: As many as one API process keeps open by default.
STREAMS = Settings.model_fields["streams"].default
ORDERS, POSTERS = 20, 4
#: Seconds within which all streams end after SIGTERM, by the design.
STREAM_END_SECONDS = 2
NOW = {"Prefer": "respond-async"}


@pytest.fixture
def house(amqp_url: str, database_url: str, tmp_path: Any) -> Iterator[House]:
    """Nobody pays but the test."""
    with contextlib.closing(House(amqp_url, database_url, tmp_path, PAYMENT_MODE="manual")) as house:
        yield house


class Stream:
    """One open stream, read in a thread of its own."""

    def __init__(self, house: House, order_id: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", house.ports["api"], timeout=60)
        self._connection.request("GET", f"/orders/{order_id}/events")
        self._answer = self._connection.getresponse()
        self.status, self.headers = self._answer.status, self._answer.headers
        self.order_id, self.statuses, self.first = order_id, list[str](), threading.Event()

    def read(self) -> float:
        """Note the status of each event until the end, and return when that was."""
        with contextlib.closing(self._connection):
            while line := self._answer.readline():
                if line.startswith(b"data: "):
                    body = json.loads(line[6:])
                    assert body["id"] == self.order_id
                    self.statuses.append(body["status"])
                    self.first.set()
        return time.monotonic()


@contextlib.contextmanager
def opened(house: House, ids: list[int]) -> Iterator[tuple[list[Stream], list[Future[float]]]]:
    """STREAMS streams of these orders, each with its first event in."""
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [Stream(house, ids[number % len(ids)]) for number in range(STREAMS)]
        assert {(each.status, each.headers["Content-Type"]) for each in streams} == {(200, "text/event-stream")}
        ends = [pool.submit(each.read) for each in streams]
        assert all(each.first.wait(30) for each in streams), "each stream begins with the order as it stands"
        yield streams, ends


def placed(house: House, menu_id: int) -> list[int]:
    """The ids of pending orders, priced and not paid."""
    ids = [house.post({"user_id": 1, "menu_ids": [menu_id]}, headers=NOW).body["id"] for _ in range(ORDERS)]
    house.until(lambda: list(house.states().values()).count("awaiting_payment") == ORDERS, "the menu's answers")
    return ids


@pytest.mark.timeout(300)
def test_post_keeps_answering_beside_200_streams_and_each_sees_pending_then_paid(house: House) -> None:
    # given
    house.prepare()
    house.start_all()
    menu_id = house.add_menu()
    ids, done = placed(house, menu_id), threading.Event()

    def keep_posting() -> list[tuple[int, float]]:
        answers = []
        while not done.is_set():
            start = time.monotonic()
            status = house.post({"user_id": 1, "menu_ids": [menu_id]}).status
            answers.append((status, time.monotonic() - start))
        return answers

    # when
    with opened(house, ids) as (streams, ends), ThreadPoolExecutor(POSTERS) as pool:
        posting = [pool.submit(keep_posting) for _ in range(POSTERS)]
        one_more = house.ask("GET", f"/orders/{ids[0]}/events")
        try:
            paid = [house.ask("PUT", f"/orders/{id}/payment", {"payment_status": "paid"}).status for id in ids]
            for end in ends:
                end.result(timeout=60)
        finally:
            done.set()
        answers = [answer for each in posting for answer in each.result()]

    # then
    assert paid == [200] * ORDERS
    assert {tuple(each.statuses) for each in streams} == {("pending", "paid")}
    assert {status for status, _ in answers} <= {201, 202}
    assert len(answers) >= POSTERS
    # It waits 2 s for the menu at most.
    assert max(took for _, took in answers) < 10
    assert (one_more.status, one_more.body["code"]) == (503, "too_many_streams")
    assert int(one_more.headers["Retry-After"]) > 0


@pytest.mark.timeout(300)
def test_all_streams_end_within_two_seconds_of_sigterm(house: House) -> None:
    # given
    house.prepare()
    processes = house.start_all()
    ids = placed(house, house.add_menu())

    # when
    with opened(house, ids) as (streams, ends):
        told = time.monotonic()
        status = processes["api"].terminate()
        took = max(end.result(timeout=60) for end in ends) - told

    # then
    assert took < STREAM_END_SECONDS
    assert status == 0
    assert {tuple(each.statuses) for each in streams} == {("pending",)}
