"""The client of the User Service and how the API uses its answers, against a real server with faults on demand."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from werkzeug.serving import make_server

from api import create_app
from order_service.config import Settings
from order_service.storage.database import Database
from order_service.storage.tables import orders, outbox
from order_service.web import users
from order_service.web.users import Users, UserServiceDown
from tests.integration.stand_in import Answer, StandIn, drips, hangs_up, says, silent

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{"id":1}'
UNKNOWN = b"HTTP/1.1 404 NOT FOUND\r\nContent-Length: 2\r\n\r\n{}"
BROKEN = b"HTTP/1.1 500 INTERNAL SERVER ERROR\r\nContent-Length: 2\r\n\r\n{}"
REQUEST = {"user_id": 1, "menu_ids": [1]}
#: What a check may take beyond the total deadline on a busy machine, in seconds.
SLACK_SECONDS = 0.7


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with contextlib.closing(StandIn()) as stand_in:
        yield stand_in


@pytest.fixture
def checker(stand_in: StandIn) -> Iterator[Users]:
    checker = Users(stand_in.url + "/")
    yield checker
    checker.close()


@pytest.mark.parametrize(("answer", "expected"), [(OK, True), (UNKNOWN, False)])
def test_user_exists_or_not_as_the_service_says(
    stand_in: StandIn, checker: Users, answer: bytes, expected: bool
) -> None:
    stand_in.answers = [says(answer)]

    assert checker.exists(7) is expected
    assert stand_in.asked == ["GET /users/7 HTTP/1.1"]


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


@pytest.mark.parametrize(
    "answer",
    [
        silent,
        drips(OK),
        drips(OK, first=OK.index(b"\r\n") + 2),
        drips(BROKEN),
        drips(b"HTTP/1.1 500 NO\r\n" + b"X-Filler: 1\r\n" * 20 + b"\r\n"),
        drips(b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + OK, pause=0.05),
    ],
    ids=["silent", "drips everything", "drips headers", "drips an error", "drips endless headers", "only continues"],
)
def test_slow_service_is_down_within_the_total_deadline(stand_in: StandIn, checker: Users, answer: Answer) -> None:
    # given
    stand_in.answers = [answer]
    start = time.monotonic()

    # when
    with pytest.raises(UserServiceDown):
        checker.exists(1)

    # then
    assert time.monotonic() - start < users.TOTAL_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize(
    "answer",
    [
        drips(OK.replace(b": 8", b": 100") + b" " * 92, first=OK.index(b"{")),
        drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20, first=47),
        drips(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100, first=19),
    ],
    ids=["with a length", "chunked", "until it closes"],
)
def test_body_that_drips_is_not_waited_for(stand_in: StandIn, checker: Users, answer: Answer) -> None:
    # given
    stand_in.answers = [answer]
    start = time.monotonic()

    # when
    with contextlib.suppress(UserServiceDown):
        assert checker.exists(1) is True

    # then
    assert time.monotonic() - start < users.TOTAL_SECONDS + SLACK_SECONDS


def test_endless_body_is_not_read(stand_in: StandIn, checker: Users) -> None:
    def endless(stand_in: StandIn, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        until = time.monotonic() + 2 * users.TOTAL_SECONDS
        while time.monotonic() < until and not stand_in.closing.is_set():
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")

    stand_in.answers = [endless]
    start = time.monotonic()

    with contextlib.suppress(UserServiceDown):
        assert checker.exists(1) is True

    assert time.monotonic() - start < users.TOTAL_SECONDS + SLACK_SECONDS


def test_service_that_refuses_connections_is_down_at_once() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    start = time.monotonic()

    with contextlib.closing(Users(f"http://127.0.0.1:{port}")) as users, pytest.raises(UserServiceDown):
        users.exists(1)

    assert time.monotonic() - start < 1


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


def count_rows(database_url: str) -> int:
    database = Database(database_url)
    try:
        with database.reading() as connection:
            tables = [sa.select(sa.func.count()).select_from(table) for table in (orders, outbox)]
            return sum(connection.execute(query).scalar_one() for query in tables)
    finally:
        database.dispose()


@pytest.fixture
def client(database_url: str, stand_in: StandIn) -> Iterator[FlaskClient]:
    given = {"database_url": database_url, "user_service_url": stand_in.url, "wait_seconds": 0}
    app = create_app(Settings.model_validate(given))
    yield app.test_client()
    app.extensions["api"].close()


def test_order_of_an_unknown_user_is_404_and_not_recorded(
    client: FlaskClient, database_url: str, stand_in: StandIn
) -> None:
    # given
    stand_in.answers = [says(UNKNOWN)]

    # when
    answer = client.post("/orders", json=REQUEST)
    english = client.post("/orders", json=REQUEST, headers={"Accept-Language": "en"})

    # then
    body = json.loads(answer.text)
    assert (answer.status_code, answer.content_type) == (404, "application/problem+json")
    assert (body["code"], body["message"]) == ("user_not_found", "Pengguna tidak ditemukan.")
    assert json.loads(english.text)["message"] != body["message"]
    assert count_rows(database_url) == 0


@pytest.mark.parametrize("answer", [says(BROKEN), silent], ids=["broken", "silent"])
def test_order_without_a_user_service_is_503_with_retry_after_and_not_recorded(
    client: FlaskClient, database_url: str, stand_in: StandIn, answer: Answer
) -> None:
    # given
    stand_in.answers = [answer]
    start = time.monotonic()

    # when
    refused = client.post("/orders", json=REQUEST)

    # then
    assert (refused.status_code, json.loads(refused.text)["code"]) == (503, "user_service_unavailable")
    assert int(refused.headers["Retry-After"]) > 0
    assert stand_in.url not in refused.text
    assert time.monotonic() - start < users.TOTAL_SECONDS + SLACK_SECONDS
    assert count_rows(database_url) == 0


def test_user_is_not_asked_about_for_a_request_that_is_refused_anyway(client: FlaskClient, stand_in: StandIn) -> None:
    stand_in.answers = [says(OK)]

    assert client.post("/orders", json={"user_id": 1, "menu_ids": []}).status_code == 422
    assert client.get("/orders/1").status_code == 404
    assert stand_in.asked == []


def test_others_are_answered_while_posts_wait_for_a_silent_user_service(client: FlaskClient, stand_in: StandIn) -> None:
    # given
    stand_in.answers = [silent]
    server = make_server("127.0.0.1", 0, client.application, threaded=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()

    def request(method: str, path: str, body: str | None = None) -> int:
        headers = {"Content-Type": "application/json"}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)) as connection:
            connection.request(method, path, body, headers)
            return connection.getresponse().status

    # when
    with ThreadPoolExecutor(12) as pool:
        posts = [pool.submit(request, "POST", "/orders", json.dumps(REQUEST)) for _ in range(12)]
        found = request("GET", "/orders/1"), request("GET", "/readyz")
        still_waiting = not any(post.done() for post in posts)
    server.shutdown()
    serving.join()
    server.server_close()

    # then
    assert (found, still_waiting) == ((404, 200), True)
    assert {post.result() for post in posts} == {503}
