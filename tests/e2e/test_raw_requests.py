"""Requests as bytes that no HTTP client sends, answered by the real server: none of them changes an order."""

import json
import socket
from collections.abc import Iterator

import pytest

from tests.e2e.client import RESPOND_ASYNC
from tests.e2e.deployment import Deployment, api_alone

BODY = b'{"user_id":1,"menu_ids":[1]}'
CHUNKS = b"1c\r\n" + BODY + b"\r\n0\r\n\r\n"
JSON = b"Content-Type: application/json\r\nPrefer: respond-async\r\nConnection: close\r\n"
POST = b"POST /orders HTTP/1.1\r\nHost: localhost\r\n" + JSON
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("api")
    with api_alone(f"sqlite:///{directory}/orders.db", directory) as deployment:
        yield deployment


def exchange(deployment: Deployment, request: bytes) -> tuple[int, str, bytes]:
    """Send the bytes, then FIN; the status, the media type and the body of the only answer."""
    with socket.create_connection(("127.0.0.1", deployment.ports["api"]), timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.count(b"HTTP/1.") == 1, received
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(status.split()[1]), headers["content-type"], body


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 100\r\n\r\n" + BODY,
        b"Content-Length: 29\r\n\r\n" + BODY,
        b"Content-Length: 65536\r\n\r\n" + BODY,
        b"Content-Length: 28\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1c\r\n" + BODY,
        b"Transfer-Encoding: chunked\r\n\r\n1c\r\n" + BODY + b"\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1c\r\n" + BODY + b"\r\n0\r\n",
    ],
)
def test_body_that_ends_early_is_400_and_changes_nothing(api: Deployment, framing: bytes) -> None:
    # given
    placed = api.client.post_order(headers=RESPOND_ASYNC).body

    # when
    posted = exchange(api, POST + framing)
    cancelled = exchange(api, POST.replace(b"POST /orders", b"DELETE /orders/%d" % placed["id"]) + framing)

    # then
    for status, content_type, body in (posted, cancelled):
        assert (status, content_type, json.loads(body)["code"]) == (400, PROBLEM, "bad_request")
    assert newest_order(api) == placed


@pytest.mark.parametrize(
    "coding", ["gzip, chunked", "identity, chunked", "deflate,chunked", "foo, chunked", "chunked;x=1"]
)
@pytest.mark.parametrize("method", [b"POST /orders", b"DELETE /orders/%d", b"GET /orders/%d"])
def test_transfer_encoding_other_than_chunked_is_501(api: Deployment, coding: str, method: bytes) -> None:
    # given
    placed = api.client.post_order(headers=RESPOND_ASYNC).body
    request = POST.replace(b"POST /orders", method.replace(b"%d", b"%d" % placed["id"]))
    request = request.replace(b"Connection: close\r\n", b"")

    # when: the connection is not reused, so what follows is no second request
    status, _, _ = exchange(api, request + f"Transfer-Encoding: {coding}\r\n\r\n".encode() + CHUNKS)

    # then
    assert status == 501
    assert newest_order(api) == placed


@pytest.mark.parametrize(
    "hosts",
    [
        b"", b"Host: \r\n", b"Host: localhost\r\nHost: localhost\r\n", b"Host: localhost\r\nHost: evil.example\r\n",
        b"Host: localhost, localhost\r\n", b"Host: evil.example\r\n", b"Host: a@localhost\r\n",
    ],
)  # fmt: skip
def test_missing_repeated_malformed_or_foreign_host_is_400(api: Deployment, hosts: bytes) -> None:
    placed = api.client.post_order(headers=RESPOND_ASYNC).body
    request = POST.replace(b"Host: localhost\r\n", hosts) + b"Content-Length: 28\r\n\r\n" + BODY

    assert exchange(api, request)[0] == 400

    assert newest_order(api) == placed


@pytest.mark.parametrize(("target", "expected"), [
    (b"http://evil.example/orders", 400), (b"HTTP://evil.example:80/orders", 400), (b"http://a@localhost/orders", 400),
    (b"http://localhost/orders", 200),
])  # fmt: skip
def test_authority_of_the_target_is_checked_as_the_host_is(api: Deployment, target: bytes, expected: int) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    assert exchange(api, request)[0] == expected


def test_http_1_0_needs_no_host(api: Deployment) -> None:
    assert exchange(api, b"GET /readyz HTTP/1.0\r\n\r\n")[0] == 200


def newest_order(api: Deployment) -> object:
    return api.client.request("GET", "/orders?limit=1").body["orders"][0]


def test_complete_body_of_every_framing_is_accepted(api: Deployment) -> None:
    for framing in (b"Content-Length: 28\r\n\r\n" + BODY, b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS):
        assert exchange(api, POST + framing)[0] == 202
