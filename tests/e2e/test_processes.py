"""How the processes start, wait, refuse to start and stop."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from order_service.config import ANSWERING_THREADS
from tests.e2e.client import order_of, repeating
from tests.e2e.deployment import MOSTLY_ON_POSTGRESQL, MOSTLY_ON_SQLITE, ON_POSTGRESQL, ON_SQLITE, Deployment, api_alone
from tests.e2e.process import PROCFILE, Process
from tests.e2e.proxy import TcpProxy


@MOSTLY_ON_POSTGRESQL
def test_every_process_exits_with_0_on_sigterm_under_load(deployment: Deployment) -> None:
    # given
    processes = deployment.start_all()
    body = order_of(deployment.client.add_menu())

    def post(preference: str) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            deployment.client.post_order(body, headers={"Prefer": preference})

    with repeating(lambda: post("wait=1"), threads=8), repeating(lambda: post("wait=30"), threads=1):
        # when: consumers and siblings stop first, so that POSTs wait while the API stops
        deployment.wait_until_more_are_paid(20)
        order = ["consumers", "publishers", "menu", "payment", "api", "users"]
        statuses = {name: processes[name].terminate() for name in order}

    # then
    assert statuses == dict.fromkeys(order, 0), deployment.log_tails()
    assert not [name for name in order if "Traceback" in processes[name].log], deployment.log_tails()


def assert_refuse_to_start(processes: list[Process], *, naming: str) -> None:
    for process in processes:
        assert process.exit_status() == 2
        assert naming in process.log
        assert "Traceback" not in process.log


@MOSTLY_ON_SQLITE
def test_processes_refuse_to_start_before_migrate_and_topology_and_name_the_command(deployment: Deployment) -> None:
    unmigrated = deployment.start("api", "consumers", "publishers")
    assert_refuse_to_start(unmigrated, naming="python -m order_service migrate")

    assert deployment.command("migrate").returncode == 0

    undeclared = deployment.start("consumers", "publishers")
    assert_refuse_to_start(undeclared, naming="python -m order_service topology")


@pytest.mark.parametrize("command_line", [PROCFILE["api"], pytest.param("python api.py", marks=pytest.mark.field)])
def test_api_exits_with_2_and_names_the_address_where_it_cannot_listen(command_line: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        in_use = f"PORT: another program listens on {port} of 127.0.0.1; stop it or set another PORT"
        foreign = (
            "HOST: cannot listen on 192.0.2.1: Cannot assign requested address; set it to an address of this machine"
        )
        for host, problem in (("127.0.0.1", in_use), ("192.0.2.1", foreign)):
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
            env = os.environ | {"HOST": host, "PORT": port, "PATH": path, "ORDER_AUTH": "none"}
            process = Process("api", command_line, env, tmp_path / f"{host}.log")
            with contextlib.closing(process):
                assert process.exit_status() == 2
            assert [line for line in process.log.splitlines() if '"level":"info"' not in line] == [problem]


@ON_SQLITE
def test_invalid_settings_are_named_without_their_secrets(deployment: Deployment) -> None:
    # when
    processes = deployment.start(
        "api", "consumers", "publishers", ORDER_BATCH_SIZE="many", DATABASE_URL="mysql://x:secret@y"
    )

    # then
    assert_refuse_to_start(processes, naming="ORDER_BATCH_SIZE")
    assert all("DATABASE_URL" in process.log and "secret" not in process.log for process in processes)


def all_logged(processes: list[Process], *texts: str) -> bool:
    """Tell whether the log of each process has one of the texts."""
    return all(any(text in process.log for text in texts) for process in processes)


@MOSTLY_ON_SQLITE
def test_processes_wait_for_a_broker_that_is_unreachable_at_their_start(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    with TcpProxy(amqp_url) as proxy, Deployment(proxy.url, database_url, tmp_path) as deployment:
        # given
        Deployment(amqp_url, database_url, tmp_path).prepare()
        client = deployment.client

        # when: siblings start first
        processes = deployment.start(*reversed(PROCFILE))
        workers = [process for process in processes if process.name in ("consumers", "publishers")]
        deployment.wait_until(lambda: all_logged(workers, "is unreachable"), "both to wait for the broker")
        deployment.wait_until_healthy("api", "users")
        posted = client.post_order(headers={"Prefer": "wait=0"})

        # then
        assert posted.status == 202
        assert client.request("GET", "/readyz").status == 200
        deployment.assert_all_running()

        # and: SIGTERM ends a process that waits; on SQLite, a second relay waits for the first instead
        more = deployment.start("consumers", "publishers")
        deployment.wait_until(
            lambda: all_logged(more, "is unreachable", "uses this SQLite database, waiting"), "two more to wait"
        )
        assert [process.terminate() for process in more] == [0, 0]

        # and: the order is paid once the broker is reachable
        proxy.open()
        deployment.wait_until_paid([posted.body["id"]])
        assert all(process.is_running for process in processes), deployment.log_tails()


@ON_POSTGRESQL
def test_processes_wait_for_a_database_that_is_unreachable_at_their_start(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    with TcpProxy(database_url) as proxy, Deployment(amqp_url, proxy.url, tmp_path) as deployment:
        # given
        Deployment(amqp_url, database_url, tmp_path).prepare()

        # when
        names = ["api", "consumers", "publishers"]
        waiting, stopped = deployment.start(*names), deployment.start(*names)
        deployment.start("users", "menu", "payment")
        deployment.wait_until(lambda: all_logged(waiting + stopped, "is unreachable"), "all to wait for the database")

        # then: SIGTERM ends a process that waits
        assert [process.terminate() for process in stopped] == [0, 0, 0], deployment.log_tails()

        # and: the others work once the database is reachable
        assert all(process.is_running for process in waiting)
        proxy.open()
        deployment.wait_until_healthy()
        deployment.wait_until_paid([deployment.client.post_order().body["id"]])


@pytest.mark.field
def test_an_api_on_host_colon_colon_answers_over_ipv4_and_ipv6(tmp_path: Path) -> None:
    with api_alone(f"sqlite:///{tmp_path}/orders.db", tmp_path, HOST="::", ORDER_AUTH="none") as deployment:
        for address in ("127.0.0.1", "::1"):
            with contextlib.closing(http.client.HTTPConnection(address, deployment.ports["api"])) as connection:
                connection.request("GET", "/healthz")
                assert connection.getresponse().status == 200


def test_metrics_of_each_worker_include_the_counts_of_all_workers(tmp_path: Path) -> None:
    # given
    settings = {"ORDER_API_WORKERS": "2", "TMPDIR": str(tmp_path)}
    with api_alone(f"sqlite:///{tmp_path}/orders.db", tmp_path, **settings) as deployment:

        def get(path: str) -> str:
            """Request over a new connection, which either worker may accept."""
            with contextlib.closing(deployment.client.connect()) as connection:
                connection.request("GET", path)
                return connection.getresponse().read().decode()

        # when
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(get, ["/orders/1"] * 40))
            scrapes = list(pool.map(get, ["/metrics"] * 20))

        # then
        count = 'http_requests_total{method="GET",route="/orders/<int:order_id>",status="404"} 40.0'
        assert [scrape for scrape in scrapes if count not in scrape] == []

        # and: the files of the metrics are removed at the end
        assert list(tmp_path.glob("order-service-metrics-*"))
        assert deployment.processes[0].terminate() == 0
        assert not list(tmp_path.glob("order-service-metrics-*"))


def test_process_that_replaces_the_first_one_serves_after_its_end(tmp_path: Path) -> None:
    # given
    settings = {"ORDER_API_WORKERS": "2", "TMPDIR": str(tmp_path)}
    with api_alone(f"sqlite:///{tmp_path}/orders.db", tmp_path, **settings) as deployment:
        [api] = deployment.processes

        def first_processes() -> list[int]:
            return [int(pid) for pid in re.findall(r"Listening at: \S+ \((\d+)\)", api.log)]

        def wait_until_started(workers: int) -> None:
            deployment.wait_until(lambda: api.log.count("Booting worker") == workers, f"{workers} workers to start")

        # when: after a reload, the new process inherits the environment as the first one has changed it
        [old] = first_processes()
        os.kill(old, signal.SIGHUP)
        wait_until_started(4)
        os.kill(old, signal.SIGUSR2)
        wait_until_started(6)
        assert api.terminate() == 0
        _, new = first_processes()
        os.kill(new, signal.SIGHUP)
        wait_until_started(8)

        # then
        with ThreadPoolExecutor(8) as pool:
            paths = ["/healthz", "/metrics"] * 20
            statuses = list(pool.map(lambda path: status_over_new_connection(deployment, path), paths))
        assert set(statuses) == {200}

        # and: it removes its files at its end, too
        assert list(tmp_path.glob("order-service-metrics-*"))
        os.kill(new, signal.SIGTERM)
        deployment.wait_until(lambda: not list(tmp_path.glob("order-service-metrics-*")), "the files to be removed")


def status_over_new_connection(deployment: Deployment, path: str) -> int:
    with contextlib.closing(deployment.client.connect()) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


@pytest.fixture(scope="module")
def small_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An API with only ANSWERING_THREADS threads, whose tests neither stop it nor leave a traceback in its log."""
    directory = tmp_path_factory.mktemp("api")
    settings = {"ORDER_WAITERS": "0", "ORDER_STREAMS": "0"}
    with api_alone(f"sqlite:///{directory}/orders.db", directory, **settings) as deployment:
        yield deployment
        [api] = deployment.processes
        assert api.terminate() == 0
        assert "Traceback" not in api.log, api.log


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connected(deployment: Deployment) -> socket.socket:
    return socket.create_connection(("127.0.0.1", deployment.ports["api"]), timeout=30)


def received(connection: socket.socket) -> bytes:
    """Return all data until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(4096), b""))


def exchange(deployment: Deployment, request: bytes, *, disconnect: bool = False) -> bytes:
    """Return the response to these bytes; with `disconnect`, the client closes its side after them."""
    with connected(deployment) as connection:
        connection.sendall(request)
        if disconnect:
            connection.shutdown(socket.SHUT_WR)
        return received(connection)


def test_clients_that_stop_in_the_middle_of_a_request_release_their_threads(small_api: Deployment) -> None:
    # given: as many clients as threads, which stop in the body or in the headers
    partial = [(POST + b"Content-Length: 99\r\n\r\n{", b"HTTP/1.1 400 "), (POST, b"")] * (ANSWERING_THREADS // 2)
    with ThreadPoolExecutor(len(partial)) as pool:
        stopped = [(pool.submit(exchange, small_api, request), answer) for request, answer in partial]

        # when
        small_api.wait_until(small_api.client.is_healthy, "a free thread")

    # then
    assert all(response.result().startswith(answer) for response, answer in stopped)
    assert small_api.client.request("GET", "/healthz").status == 200


def test_request_is_served_while_more_clients_than_threads_never_pause(small_api: Deployment) -> None:
    # given: each sends its next requests long before it gets their responses
    answered, is_served = threading.Semaphore(0), threading.Event()

    def send_until_served() -> None:
        with connected(small_api) as connection, connection.makefile("rb") as lines:
            connection.sendall(200 * (HEALTH + b"\r\n"))
            lines.readline()
            answered.release()
            for line in lines:
                if is_served.is_set():
                    return
                if b"HTTP/1.1 200" in line:
                    connection.sendall(HEALTH + b"\r\n")
            pytest.fail("the API closed the connection of a client that never pauses")

    with ThreadPoolExecutor(ANSWERING_THREADS + 8) as pool:
        busy = [pool.submit(send_until_served) for _ in range(ANSWERING_THREADS + 8)]
        try:
            assert all(answered.acquire(timeout=30) for _ in range(ANSWERING_THREADS))

            # when, then
            assert small_api.client.request("GET", "/healthz").status == 200
        finally:
            is_served.set()
        for client in busy:
            client.result()


BUNDLE = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: here\r\n\r\n"
#: What clients send that then stay connected and read nothing.
SLOW_CLIENTS = {
    "close": HEALTH + b"Connection: close\r\n\r\n", "silent": b"", "idle": HEALTH + b"\r\n", "unread": 8 * BUNDLE,
    "headers": HEALTH, "body": POST + b"Content-Length: 99\r\n\r\n{",
}  # fmt: skip


@contextlib.contextmanager
def slow_clients(deployment: Deployment, request: bytes, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(deployment)) for _ in range(count)]
        for client in clients:
            client.sendall(request)
        yield clients


def seconds_to_answer(deployment: Deployment) -> float:
    """Request /healthz over a new connection, which the server closes; return the seconds until its end."""
    start = time.monotonic()
    assert b" 200 OK" in exchange(deployment, SLOW_CLIENTS["close"])
    return time.monotonic() - start


@pytest.mark.parametrize("request_bytes", SLOW_CLIENTS.values(), ids=SLOW_CLIENTS)
def test_more_slow_clients_than_threads_do_not_delay_others(small_api: Deployment, request_bytes: bytes) -> None:
    with slow_clients(small_api, request_bytes, ANSWERING_THREADS + 8):
        assert max(seconds_to_answer(small_api) for _ in range(3)) < 2


@pytest.mark.field
@pytest.mark.parametrize("request_bytes", SLOW_CLIENTS.values(), ids=SLOW_CLIENTS)
def test_slow_clients_beyond_all_limits_do_not_delay_others(tmp_path: Path, request_bytes: bytes) -> None:
    with api_alone(f"sqlite:///{tmp_path}/orders.db", tmp_path) as deployment:
        # given: more clients than connections; or of those whose responses fill the kernel's memory, than threads
        count = 320 if request_bytes == SLOW_CLIENTS["unread"] else 1400
        with slow_clients(deployment, request_bytes, count) as clients:
            # when: those in the middle of a request continue it, byte by byte
            end, slowest = time.monotonic() + 15, 0.0
            while time.monotonic() < end:
                if request_bytes in (SLOW_CLIENTS["headers"], SLOW_CLIENTS["body"]):
                    for client in clients:
                        with contextlib.suppress(OSError):
                            client.sendall(b"a")
                slowest = max(slowest, seconds_to_answer(deployment))

        # then
        assert slowest < 3
        assert deployment.processes[0].terminate() == 0
        assert "Traceback" not in deployment.processes[0].log


def test_malformed_requests_are_answered_and_do_not_stop_the_api(small_api: Deployment) -> None:
    def send(method: str, path: str, body: Any = None, **options: Any) -> tuple[int, str | None]:
        with contextlib.closing(small_api.client.connect()) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, {"Content-Type": "application/json"}, **options)
            answer = connection.getresponse()
            json.loads(answer.read())
            return answer.status, answer.headers["Content-Type"]

    def chunks(size: int) -> Iterator[bytes]:
        return (b"{}".ljust(size)[at : at + 8192] for at in range(0, size, 8192))

    # bodies that are too large or invalid, and unknown paths and methods
    problem = "application/problem+json"
    assert send("POST", "/orders", b" " * 70_000) == (413, problem)
    assert send("POST", "/orders", chunks(100), encode_chunked=True) == (422, problem)
    assert send("POST", "/orders", chunks(300_000), encode_chunked=True) == (413, problem)
    assert send("GET", "/nothing") == (404, problem)
    assert send("DELETE", "/healthz") == (405, problem)
    assert send("GET", "/orders/" + "9" * 3000) == (404, problem)

    # bytes that are no HTTP
    assert b" 400 " in exchange(small_api, b"\x16\x03\x01 nonsense\r\n\r\n")
    assert send("GET", "/healthz")[0] == 200

    # malformed chunks and truncated bodies
    for body in (b"zz\r\n", b"2\r\n{}\r\n0\r\nno trailer\r\n\r\n", b"2\r\n{}zz"):
        answer = exchange(small_api, POST + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert b'"code": "bad_request"' in answer
    for framing in (b"Content-Length: 99\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"):
        exchange(small_api, POST + framing, disconnect=True)
