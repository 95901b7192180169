"""The API behind a proxy with a path prefix, the proxies' headers that it believes, and HTTPS with and without one."""

import contextlib
import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest

from order_service.storage import migrate
from tests.certificates import Authority
from tests.e2e.client import EXAMPLE, RESPOND_ASYNC
from tests.e2e.deployment import ON_SQLITE, Deployment, api_alone
from tests.e2e.nginx import PROGRAM, nginx, serving
from tests.e2e.process import free_ports
from tests.integration.core import UNREACHABLE_BROKER
from tests.polling import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "rest.md"


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


@pytest.mark.field
@pytest.mark.skipif(PROGRAM is None, reason="needs nginx (apt-get install nginx-light)")
@ON_SQLITE
@pytest.mark.parametrize(("directive", "hosts", "foreign"), [
    ("", "", 200),  # nginx sends the address of the API
    ("proxy_set_header Host $host;", "shop.example", 400),
])  # fmt: skip
def test_name_that_a_proxy_passes_on_is_checked_and_every_address_is_relative(
    database_url: str, tmp_path: Path, directive: str, hosts: str, foreign: int
) -> None:
    own = {"Host": "shop.example"}
    with (
        api_alone(database_url, tmp_path, ORDER_HOSTS=hosts, ORDER_TRUSTED_PROXIES="1") as deployment,
        nginx(tmp_path / "nginx", deployment.ports["api"], "/shop/", directive) as address,
    ):
        for headers in (own, own | {"X-Forwarded-Host": "evil.example"}):
            with response_of(f"{address}orders", "POST", EXAMPLE, RESPOND_ASYNC | headers) as response:
                assert response.status == 202
                assert re.fullmatch("orders/[0-9]+", response.headers["Location"])
        with response_of(f"{address}openapi.json", headers=own) as response:
            assert json.load(response)["servers"] == [{"url": "."}]
        for headers in ({"Host": "evil.example"}, {"Host": "evil.example", "X-Forwarded-Host": "shop.example"}):
            assert status(f"{address}openapi.json", headers=headers) == foreign


@pytest.mark.field
@pytest.mark.skipif(PROGRAM is None, reason="needs nginx (apt-get install nginx-light)")
@ON_SQLITE
def test_the_documented_nginx_serves_https(database_url: str, tmp_path: Path) -> None:
    [port], authority = free_ports(1), Authority(tmp_path / "ca")
    certificate = authority.issue("orders.example", "orders.pem", key_file="orders.key")
    context = ssl.create_default_context(cafile=authority.file)
    [server] = re.findall(r"^```\n(server \{.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)

    def get(path: str) -> bytes:
        request = f"GET {path} HTTP/1.1\r\nHost: orders.example\r\nConnection: close\r\n\r\n"
        with (
            socket.create_connection(("127.0.0.1", port), 20) as plain,
            context.wrap_socket(plain, server_hostname="orders.example") as connection,
        ):
            connection.sendall(request.encode())
            return b"".join(iter(lambda: connection.recv(65536), b""))

    with api_alone(database_url, tmp_path, ORDER_HOSTS="orders.example", ORDER_TRUSTED_PROXIES="1") as deployment:
        server = server.replace("listen 443", f"listen 127.0.0.1:{port}").replace("5003", str(deployment.ports["api"]))
        server = server.replace("/etc/nginx", str(certificate.parent))
        with serving(tmp_path / "nginx", server, port):
            assert b" 200 OK" in get("/healthz").splitlines()[0]
            # A route that requires an accepted Host.
            assert b"Pemesanan tidak ditemukan." in get("/orders/1")


@ON_SQLITE
@pytest.mark.parametrize("trusted", ["0", "1"])
def test_forwarded_name_does_not_replace_the_host(database_url: str, tmp_path: Path, trusted: str) -> None:
    """A proxy that does not set it passes on what the client wrote."""
    forwarded = {"X-Forwarded-Host": "localhost", "X-Forwarded-Prefix": "/shop", "X-Forwarded-Proto": "https"}
    with api_alone(database_url, tmp_path, ORDER_TRUSTED_PROXIES=trusted) as deployment:
        address, foreign = f"http://127.0.0.1:{deployment.ports['api']}/openapi.json", {"Host": "shop.example"}

        assert status(address, headers=foreign) == 400
        assert status(address, headers=foreign | forwarded) == 400
        assert status(address, headers={"X-Forwarded-Host": "shop.example"}) == 200
        # gunicorn alone lets a local client name another path, such as one that accepts every Host
        assert status(address, headers=foreign | {"PATH_INFO": "/healthz"}) == 400


@ON_SQLITE
def test_gunicorns_own_worker_serves_the_api_over_https_and_ours_refuses(database_url: str, tmp_path: Path) -> None:
    """The command of docs/rest.md; our worker, which protects from slow clients, has no TLS."""
    authority = Authority(tmp_path / "ca")
    certificate = authority.issue("localhost", "api.pem", key_file="api.key")
    files = f"--certfile {certificate} --keyfile {certificate.with_suffix('.key')}"
    context = ssl.create_default_context(cafile=authority.file)

    with Deployment(UNREACHABLE_BROKER, database_url, tmp_path, USER_SERVICE_URL="") as deployment:
        migrate.upgrade(database_url)
        [refused] = deployment.start("api", GUNICORN_CMD_ARGS=files)
        assert refused.exit_status() == 2
        assert "--worker-class gthread" in refused.log

        deployment.start("api", GUNICORN_CMD_ARGS=f"--worker-class gthread {files}")

        def status(method: str, path: str, body: str | None = None) -> int:
            connection = http.client.HTTPSConnection("localhost", deployment.ports["api"], context=context, timeout=20)
            headers = {"Content-Type": "application/json", "Prefer": "respond-async"}
            with contextlib.closing(connection), contextlib.suppress(ConnectionError):
                connection.request(method, path, body, headers)
                return connection.getresponse().status
            return 0

        deployment.wait_until(lambda: status("GET", "/readyz") == 200, "the API to be ready")
        assert status("POST", "/orders", json.dumps(EXAMPLE)) == 202
