"""The HTTP client for other services: one request, one deadline, and whether the request was sent."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

import sandbox.servers.http_client
from order_service.http_client import MAX_REDIRECTS, MAX_RESPONSE_BYTES, HttpClient, RequestFailed
from tests.integration.stand_in import Answer, StandIn, drips, hangs_up, says, silent

TOTAL_SECONDS = 0.5
#: What a request may take beyond its deadline on a busy machine, in seconds.
SLACK_SECONDS = 1.5


def ok(body: bytes, *, length: int | None = None) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (length or len(body), body)


@pytest.fixture
def client(stand_in: StandIn) -> Iterator[HttpClient]:
    with contextlib.closing(HttpClient(stand_in.url, total_seconds=TOTAL_SECONDS)) as client:
        yield client


@contextlib.contextmanager
def full_listener() -> Iterator[str]:
    """The URL of a server whose queue of connections is full, so that connecting takes indefinitely."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def failure(client: HttpClient) -> RequestFailed:
    """The failure of a PUT, which must come within the deadline."""
    start = time.monotonic()
    with pytest.raises(RequestFailed) as failed:
        client.request("PUT", "/", {"a": 1})
    assert time.monotonic() - start < TOTAL_SECONDS + SLACK_SECONDS
    return failed.value


def test_answer_has_the_status_and_json_with_exact_decimals(stand_in: StandIn, client: HttpClient) -> None:
    stand_in.answers = [says(ok(b'{"price": 0.1, "stock": 3}')), says(b"HTTP/1.1 404 NO\r\nContent-Length: 0\r\n\r\n")]

    found, missing = client.request("GET", "/a"), client.request("PUT", "/b", {"sold_quantity": 1})

    assert (found.status, found.json()) == (200, {"price": Decimal("0.1"), "stock": 3})
    assert (missing.status, missing.json()) == (404, None)
    assert stand_in.asked == ["GET /a HTTP/1.1", "PUT /b HTTP/1.1"]


def moved(location: str) -> Answer:
    return says(b"HTTP/1.1 308 Moved\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % location.encode())


def test_get_follows_a_few_redirects_and_a_change_none(stand_in: StandIn, client: HttpClient) -> None:
    stand_in.answers = [moved("/users/1/"), moved(f"{stand_in.url}/v2/users/1"), says(ok(b"1"))]
    assert client.request("GET", "/users/1").json() == 1
    assert stand_in.asked == ["GET /users/1 HTTP/1.1", "GET /users/1/ HTTP/1.1", "GET /v2/users/1 HTTP/1.1"]

    stand_in.answers = [moved("/again")] * (MAX_REDIRECTS + 2)
    assert client.request("GET", "/").status == 308
    assert len(stand_in.asked) == 3 + 1 + MAX_REDIRECTS

    assert client.request("PUT", "/", {"sold_quantity": 1}).status == 308
    assert stand_in.asked[-1] == "PUT / HTTP/1.1"


@pytest.mark.parametrize(
    "answer",
    [
        drips(ok(b"1" * 100), first=len(ok(b"1" * 100)) - 90),
        drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20, first=47),
        drips(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100, first=19),
        says(ok(b'"' + b"x" * MAX_RESPONSE_BYTES + b'"')),
        lambda stand_in, connection: (says(ok(b"12", length=3))(stand_in, connection), hangs_up(stand_in, connection)),
        says(ok(b"[" * 60_000)),
        says(ok(b"\xff")),
    ],
    ids=[
        "too slow",
        "chunked and too slow",
        "until it closes and too slow",
        "too long",
        "breaks off",
        "too deep",
        "not UTF-8",
    ],
)
def test_status_is_returned_without_a_usable_body(stand_in: StandIn, client: HttpClient, answer: Answer) -> None:
    stand_in.answers = [answer]
    start = time.monotonic()

    found = client.request("GET", "/")

    assert (found.status, found.json()) == (200, None)
    assert time.monotonic() - start < TOTAL_SECONDS + SLACK_SECONDS


@pytest.mark.parametrize(
    "answer",
    [
        silent,
        hangs_up,
        drips(ok(b"{}")),
        drips(ok(b"{}"), first=ok(b"{}").index(b"\r\n") + 2),
        drips(b"HTTP/1.1 500 NO\r\n" + b"X-Filler: 1\r\n" * 20 + b"\r\n"),
        drips(b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + ok(b"{}"), pause=0.05),
    ],
    ids=["silent", "hangs up", "drips", "drips headers", "drips endless headers", "only continues"],
)
def test_request_without_a_status_may_have_been_sent(stand_in: StandIn, client: HttpClient, answer: Answer) -> None:
    stand_in.answers = [answer]

    assert failure(client).is_sent
    assert len(stand_in.asked) == 1


def test_request_without_a_connection_was_not_sent(stand_in: StandIn) -> None:
    stand_in.close()
    with full_listener() as full:
        for url in (stand_in.url, full):
            with contextlib.closing(HttpClient(url, total_seconds=TOTAL_SECONDS)) as client:
                assert not failure(client).is_sent


@pytest.mark.parametrize("reuses_connections", [True, False])
def test_connection_is_reused_only_if_wanted(stand_in: StandIn, reuses_connections: bool) -> None:
    connections = set()

    def answer(_: StandIn, connection: socket.socket) -> None:
        connections.add(connection.getpeername())
        connection.sendall(ok(b"{}"))

    stand_in.answers = [answer]
    client = HttpClient(stand_in.url, total_seconds=5, reuses_connections=reuses_connections)
    with contextlib.closing(client):
        for _ in range(3):
            client.request("GET", "/")

    assert len(connections) == (1 if reuses_connections else 3)


def test_nothing_is_started_before_the_first_request_nor_left_after_closing(stand_in: StandIn) -> None:
    stand_in.answers = [says(ok(b"{}"))]
    client = HttpClient(stand_in.url, total_seconds=5)
    before = set(threading.enumerate())
    client.close()
    assert client.request("GET", "/").status == 200
    started = {thread.name for thread in threading.enumerate() if thread not in before}
    client.close()

    assert "http client" in started
    assert "http client" not in {thread.name for thread in threading.enumerate() if thread not in before}
    assert HttpClient(stand_in.url, total_seconds=5)
    assert "http client" not in {thread.name for thread in threading.enumerate() if thread not in before}


def test_close_cancels_open_requests(stand_in: StandIn) -> None:
    stand_in.answers = [silent]
    client = HttpClient(stand_in.url, total_seconds=20)
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(client.request, "GET", "/")
        while not stand_in.asked:
            assert not request.done()
        client.close()
        error = request.exception(timeout=5)

    assert isinstance(error, RequestFailed)
    assert error.is_sent


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_services_are_called_without_the_proxies_of_the_environment(
    name: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.answers = [says(ok(b"{}"))]
    monkeypatch.setenv(name, "http://127.0.0.1:1")

    with contextlib.closing(HttpClient(stand_in.url, total_seconds=TOTAL_SECONDS)) as client:
        assert client.request("GET", "/").status == 200
    assert sandbox.servers.http_client.call("GET", stand_in.url) == {}
