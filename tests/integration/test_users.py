"""The client of the User Service and how the API uses its answers, against a real server with faults on demand."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from order_service.web import users
from order_service.web.users import Users, UserServiceDown
from tests.builders import order_request
from tests.http_service import Service, ServiceWith, problem, send, served
from tests.integration.stand_in import Answer, StandIn, hangs_up, says, silent

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{"id":1}'
UNKNOWN = b"HTTP/1.1 404 NOT FOUND\r\nContent-Length: 2\r\n\r\n{}"
BROKEN = b"HTTP/1.1 500 INTERNAL SERVER ERROR\r\nContent-Length: 2\r\n\r\n{}"
#: What a check may take beyond the total deadline on a busy machine, in seconds.
SLACK_SECONDS = 1.5


@pytest.fixture
def checker(stand_in: StandIn) -> Iterator[Users]:
    with contextlib.closing(Users(stand_in.url + "/")) as checker:
        yield checker


@pytest.mark.parametrize(
    "first",
    [
        says(BROKEN),
        says(BROKEN.replace(b"500", b"503")),
        says(b"HTTP/1.1 429 SLOW DOWN\r\nContent-Length: 0\r\n\r\n"),
        says(b"HTTP/1.1 302 FOUND\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"),
        says(b"nonsense\r\n\r\n"),
        says(OK.replace(b": 8", b": eight")),
        hangs_up,
        silent,
    ],
    ids=["500", "503", "429", "302", "no HTTP", "no length", "hangs up", "silent"],
)
@pytest.mark.parametrize(("second", "expected"), [(OK, True), (UNKNOWN, False)])
def test_request_without_a_usable_answer_is_repeated_once(
    stand_in: StandIn, checker: Users, first: Answer, second: bytes, expected: bool
) -> None:
    stand_in.answers = [first, says(second)]

    assert checker.exists(1) is expected
    assert len(stand_in.asked) == 2


def test_second_unusable_answer_is_down_and_there_is_no_third_attempt(stand_in: StandIn, checker: Users) -> None:
    stand_in.answers = [says(BROKEN), says(BROKEN), says(OK)]

    with pytest.raises(UserServiceDown, match="500"):
        checker.exists(1)
    assert len(stand_in.asked) == 2


def test_connection_closed_while_idle_does_not_mean_that_the_service_is_down(stand_in: StandIn, checker: Users) -> None:
    # given: a service that closes every connection after its answer without saying so
    def answers_and_closes(_: StandIn, connection: socket.socket) -> None:
        connection.sendall(OK)
        connection.shutdown(socket.SHUT_RDWR)

    stand_in.answers = [answers_and_closes]

    # when, then
    assert [checker.exists(user_id) for user_id in range(1, 21)] == [True] * 20


def test_many_threads_share_the_client(stand_in: StandIn, checker: Users) -> None:
    stand_in.answers = [says(OK)]

    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(checker.exists, range(1, 201))) == {True}
    assert sorted(stand_in.asked) == sorted(f"GET /users/{n} HTTP/1.1" for n in range(1, 201))


# How the API uses the answers.


@pytest.fixture
def service(service_with: ServiceWith, stand_in: StandIn) -> Service:
    return service_with(user_service_url=stand_in.url, wait_seconds=0)


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (says(UNKNOWN), 404, "user_not_found"),
        (says(BROKEN), 503, "user_service_unavailable"),
        (silent, 503, "user_service_unavailable"),
    ],
    ids=["unknown", "broken", "silent"],
)
def test_order_without_a_known_user_is_refused_in_time_and_not_recorded(
    service: Service, stand_in: StandIn, answer: Answer, status: int, code: str
) -> None:
    # given
    stand_in.answers = [answer]
    start = time.monotonic()

    # when
    refused = service.post()

    # then
    problem(refused, status, code)
    assert status == 404 or int(refused.headers["Retry-After"]) > 0
    assert stand_in.url not in refused.text
    assert time.monotonic() - start < users.TOTAL_SECONDS + SLACK_SECONDS
    assert service.rows() == (0, 0, 0)


def test_user_is_not_asked_about_for_a_request_that_is_refused_anyway(service: Service, stand_in: StandIn) -> None:
    stand_in.answers = [says(OK)]

    assert service.post(order_request(menu_ids=[])).status_code == 422
    assert service.get("/orders/1").status_code == 404
    assert stand_in.asked == []


def test_others_are_answered_while_posts_wait_for_a_silent_user_service(service: Service, stand_in: StandIn) -> None:
    stand_in.answers = [silent]

    with served(service.app) as address, ThreadPoolExecutor(12) as pool:
        posts = [pool.submit(send, address, "POST", "/orders", json.dumps(order_request())) for _ in range(12)]
        found = [send(address, "GET", path)[0] for path in ("/orders/1", "/readyz")]
        still_waiting = not any(post.done() for post in posts)
        statuses = {post.result()[0] for post in posts}

    assert (found, still_waiting, statuses) == ([404, 200], True, {503})
