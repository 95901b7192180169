"""The API behind a proxy with a path prefix, and the proxies' headers that it believes."""

import contextlib
import http.client
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest

from tests.e2e.client import EXAMPLE, RESPOND_ASYNC
from tests.e2e.deployment import ON_SQLITE, api_alone
from tests.e2e.nginx import PROGRAM, nginx
from tests.polling import wait_until


@contextlib.contextmanager
def response_of(
    url: str, method: str = "GET", body: object = None, headers: Mapping[str, str] | None = None
) -> Iterator[http.client.HTTPResponse]:
    parts = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(parts.netloc, timeout=20)) as connection:
        text = None if body is None else json.dumps(body)
        connection.request(method, parts.path, text, {"Content-Type": "application/json", **(headers or {})})
        with contextlib.closing(connection.getresponse()) as response:
            yield response


def status(url: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> int:
    """The status of the response, or 0 without one."""
    with contextlib.suppress(OSError), response_of(url, method, headers=headers) as response:
        return response.status
    return 0


def post(address: str) -> str:
    """Place an order; return its address."""
    with response_of(f"{address}orders", "POST", EXAMPLE, RESPOND_ASYNC) as response:
        assert response.status == 202
        return urljoin(f"{address}orders", response.headers["Location"])


@pytest.mark.field
@pytest.mark.skipif(PROGRAM is None, reason="needs nginx (apt-get install nginx-light)")
@ON_SQLITE
@pytest.mark.parametrize("prefix", ["/", "/shop/"])
def test_location_streams_and_pages_work_behind_nginx(database_url: str, tmp_path: Path, prefix: str) -> None:
    with (
        api_alone(database_url, tmp_path, ORDER_STREAMS="1") as deployment,
        nginx(tmp_path / "nginx", deployment.ports["api"], prefix) as address,
    ):
        # an event arrives at once
        order = post(address)
        with response_of(f"{order}/events") as stream:
            assert stream.readline() == b"event: status\n"
            assert status(f"{order}/events") == 503
            assert status(order, "DELETE") == 200
            assert b'"status": "cancelled"' in stream.read()

        # the place of a stream is free after its client has left nginx
        order = post(address)
        with response_of(f"{order}/events") as stream:
            stream.readline()
        wait_until(lambda: status(f"{order}/events") == 200, "the place to be free", seconds=5)

        # every link of the pages has a target
        for page in (f"{address}docs", f"{address}asyncapi"):
            with response_of(page) as response:
                links = re.findall(r'(?:href|src)="([^"#:]+)"', response.read().decode())
            assert links
            assert {link: status(urljoin(page, link)) for link in links} == dict.fromkeys(links, 200)
        with response_of(f"{address}openapi.json") as response:
            [server] = json.load(response)["servers"]
        assert urljoin(f"{address}openapi.json", server["url"]) == address


@ON_SQLITE
@pytest.mark.parametrize(("trusted", "expected"), [("0", 400), ("1", 200)])
def test_headers_of_a_proxy_are_believed_only_by_the_setting(
    database_url: str, tmp_path: Path, trusted: str, expected: int
) -> None:
    forwarded = {"X-Forwarded-Host": "localhost", "X-Forwarded-Prefix": "/shop", "X-Forwarded-Proto": "https"}
    with api_alone(database_url, tmp_path, ORDER_TRUSTED_PROXIES=trusted) as deployment:
        address, foreign = f"http://127.0.0.1:{deployment.ports['api']}/openapi.json", {"Host": "shop.example"}

        assert status(address, headers=foreign) == 400
        assert status(address, headers=foreign | forwarded) == expected
        # gunicorn alone lets a local client name another path, such as one that accepts every Host
        assert status(address, headers=foreign | {"PATH_INFO": "/healthz"}) == 400
