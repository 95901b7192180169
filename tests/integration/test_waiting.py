"""How long a POST waits for the menu, and how many may wait at once."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from order_service.config import Settings
from order_service.domain.messages import Item
from tests.builders import menu_reserved, order_request
from tests.http_service import ANSWER_SECONDS, Eventually, Service, ServiceWith, body_of, send, served

#: Threads that are left when all streams are open and all waiters wait, at least.
SPARE_THREADS = 16


def test_prefer_decides_how_long_a_post_waits(service_with: ServiceWith) -> None:
    # given
    default = 0.8
    expected: dict[str | None, float] = {
        **dict.fromkeys([None, "nonsense", "wait=soon", "wait=-1", "wait=0.1", "wait", ",;=,"], default),
        **dict.fromkeys(["respond-async", "wait=0"], 0),
        **dict.fromkeys(["wait=1", 'WAIT = "1"', "handling=lenient, wait=1; extra=2"], 1),
        **dict.fromkeys(["respond-async, wait=1", "wait=1, respond-async"], 1),
    }
    service = service_with(wait_seconds=default)

    def timed(preference: str | None) -> tuple[int, float]:
        start = time.monotonic()
        answer = service.post(headers={"Prefer": preference} if preference else None)
        return answer.status_code, time.monotonic() - start

    # when
    with ThreadPoolExecutor(len(expected)) as pool:
        answers = dict(zip(expected, pool.map(timed, expected), strict=True))
    alone = timed("respond-async")

    # then
    assert {status for status, _ in answers.values()} == {202}
    too_early = {text: took for text, (_, took) in answers.items() if took < expected[text]}
    too_late = {text: took for text, (_, took) in answers.items() if took > expected[text] + 1.5}
    assert (too_early, too_late) == ({}, {})
    assert alone[1] < default


def test_wait_is_capped_at_30_seconds_and_the_first_one_counts(service_with: ServiceWith) -> None:
    # given: no POST waits, but each says for how long it would
    service = service_with(waiters=0)
    applied = {
        **dict.fromkeys(["wait=30", "wait=31", "wait=999999999", "wait=99999999999999999999"], "wait=30"),
        "respond-async, wait=5": "respond-async, wait=5",
        "wait=5,wait=9": "wait=5",
        # RFC 7240: quoted values, spaces, parameters, names in any case, unknown preferences
        'foo="a,wait=9", WAIT = "5" ;x="y,wait=8"': "wait=5",
        r'foo="a\",wait=9", wait=5': "wait=5",
        'Respond-Async; x="1, wait=9"': "respond-async",
    }

    # when
    start = time.monotonic()
    answers = {text: service.post(headers={"Prefer": text}) for text in applied}
    took = time.monotonic() - start

    # then
    assert {text: answer.headers["Preference-Applied"] for text, answer in answers.items()} == applied
    assert ({answer.status_code for answer in answers.values()}, took < 5) == ({202}, True)


def test_preferences_that_do_not_concern_the_wait_are_ignored(service_with: ServiceWith) -> None:
    # given
    service = service_with(waiters=0)
    preferences = [
        'foo="a,wait=9"', 'foo="a;wait=9"', "foo; wait=9", 'foo="a, wait=9', 'wait="9', "wait='9'", "wait=-9", "wait=9.5",
        "wait=", "wait", "wait=x, wait=9", "wait=9 9", "=9", ",", '"wait=9"', 'foo="respond-async"', "xrespond-async",
    ]  # fmt: skip

    # when
    answers = [service.post(headers={"Prefer": text}) for text in preferences]

    # then
    applied = {
        text: answer.headers.get("Preference-Applied") for text, answer in zip(preferences, answers, strict=True)
    }
    assert applied == dict.fromkeys(preferences)
    assert {answer.status_code for answer in answers} == {202}


def test_long_wait_ends_with_the_reply(service: Service) -> None:
    start = time.monotonic()

    answer = service.post_with_reply(menu_reserved(), headers={"Prefer": "wait=30"})

    assert answer.status_code == 201
    assert time.monotonic() - start < 5


def test_many_wait_at_once_and_each_gets_its_own_answer(service: Service) -> None:
    # given
    waiting = [service.post_waiting({"user_id": n, "menu_ids": [1]}) for n in range(1, 17)]

    # when
    for order_id, _ in reversed(waiting):
        item = Item(1, f"Dish of {order_id}", Decimal(order_id), order_id)
        service.receive(order_id, menu_reserved(f"R{order_id}", item))

    # then
    for order_id, future in waiting:
        body = body_of(future.result(ANSWER_SECONDS))
        assert (future.result().status_code, body["id"], body["total_price"]) == (201, order_id, order_id)
        assert body["items"][0]["name"] == f"Dish of {order_id}"


def test_beyond_the_cap_of_waiters_the_answer_is_202_at_once(service_with: ServiceWith) -> None:
    # given
    service = service_with(waiters=3, wait_seconds=30)
    waiting = [service.post_waiting() for _ in range(3)]

    # when
    start = time.monotonic()
    fourth = service.post()
    took = time.monotonic() - start

    # then
    assert (fourth.status_code, took < 3) == (202, True)
    assert not any(future.done() for _, future in waiting)

    # and: another POST waits in a place that became free
    service.receive(waiting[0][0], menu_reserved())
    assert waiting[0][1].result(ANSWER_SECONDS).status_code == 201
    waiting.append(service.post_waiting())
    for order_id, _ in waiting[1:]:
        service.receive(order_id, menu_reserved())
    assert {future.result(ANSWER_SECONDS).status_code for _, future in waiting} == {201}


def test_waiting_posts_leave_a_real_server_time_for_others(service_with: ServiceWith, eventually: Eventually) -> None:
    # given
    service = service_with(waiters=8, wait_seconds=30)
    with served(service.app) as address, ThreadPoolExecutor(24) as pool:
        # when
        posts = [pool.submit(send, address, "POST", "/orders", json.dumps(order_request())) for _ in range(24)]
        eventually(lambda: sum(post.done() for post in posts) == 16, "16 of 24 POSTs to be answered at once")

        # then
        assert {post.result()[0] for post in posts if post.done()} == {202}
        assert send(address, "GET", "/healthz")[0] == 200
        for order_id in range(1, service.last_id() + 1):
            service.receive(order_id, menu_reserved())
        assert sorted(post.result()[0] for post in posts) == [201] * 8 + [202] * 16


@pytest.mark.parametrize(("streams", "waiters"), [(200, 64), (0, 0), (5000, 1000)])
def test_threads_are_more_than_streams_and_waiters_can_take(streams: int, waiters: int) -> None:
    settings = Settings(streams=streams, waiters=waiters)

    assert settings.api_threads > streams + waiters + SPARE_THREADS
