"""Slow clients do not delay other clients, and are answered correctly; with gthread alone, they stop the service.

When the test of gthread alone fails for every kind of client, order_service/gunicorn_worker.py can go.
"""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

#: Answers with the thread that handles the request, with the CPU time of the process, with the request's body, with a
#: response that no socket buffer takes at once, or with one of two streams: /busy sends until it fails, and /idle waits
#: for this. Each request binds an id for its log lines.
APP = """
import threading, time
import structlog

LARGE = bytes(range(256)) * 65536
has_failed = threading.Event()

def busy():
    try:
        while True:
            yield LARGE[:100_000]
    finally:
        has_failed.set()

def idle():
    yield b"begin"
    has_failed.wait()
    yield b"end"

def app(environ, start_response):
    path, body = environ["PATH_INFO"], environ["wsgi.input"].read()
    structlog.contextvars.bind_contextvars(request_id="of a request that was read")
    if path == "/large":
        start_response("200 OK", [("Content-Length", str(len(LARGE)))])
        return [LARGE]
    if path in ("/busy", "/idle"):
        start_response("200 OK", [])
        return busy() if path == "/busy" else idle()
    if path == "/invalid":
        start_response("200 OK", [("X-Invalid", "a\\nb")])
    time.sleep(0.002)
    answer = body if path == "/echo" else b"%d" % threading.get_ident()
    if path == "/cpu":
        answer = b"%f" % time.process_time()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]
"""
THREADS, CONNECTIONS = 4, 12
PROJECT = Path(__file__).parents[2]
#: Shorter than in production, for short tests.
CONFIG = """
from order_service import client_socket, gunicorn_worker
gunicorn_worker.READ_SECONDS, client_socket.PIECE_SECONDS = {read_seconds}, 0.3
gunicorn_worker.CLOSE_SECONDS = gunicorn_worker.STOP_KEEPALIVE_LINGER = {close_seconds}
worker_class, threads, worker_connections = "{worker_class}", {threads}, {connections}
control_socket_disable, sendfile, keepalive, graceful_timeout = True, False, 75, 8
"""
OURS, GTHREAD = "order_service.gunicorn_worker.Worker", "gthread"
GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
LARGE = b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n"
LARGE_BYTES = 256 * 65536
POST = b"POST /echo HTTP/1.1\r\nHost: here\r\n"


@contextlib.contextmanager
def gunicorn(
    directory: Path,
    worker_class: str = OURS,
    *,
    connections: int = CONNECTIONS,
    read_seconds: float = 10,
    close_seconds: float = 2,
) -> Iterator[int]:
    """gunicorn with few threads and connections, and its port; its worker must not fail."""
    (directory / "slow_app.py").write_text(APP)
    config = CONFIG.format(
        worker_class=worker_class,
        threads=THREADS,
        connections=connections,
        read_seconds=read_seconds,
        close_seconds=close_seconds,
    )
    (directory / "gunicorn.conf.py").write_text(config)
    log = directory / "gunicorn.log"
    with socket.socket() as listener, log.open("w") as stderr, (directory / "lines.log").open("w") as stdout:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        os.set_inheritable(listener.fileno(), True)
        port: int = listener.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "--config", str(directory / "gunicorn.conf.py"),
                   "--bind", f"fd://{listener.fileno()}", "--pythonpath", str(directory), "slow_app:app"]  # fmt: skip
        server = subprocess.Popen(command, close_fds=False, stdout=stdout, stderr=stderr)
        try:
            assert b" 200 OK" in exchange(port, CLOSE)
            yield port
        finally:
            server.terminate()
            server.wait(30)
    if worker_class == OURS:
        text = log.read_text()
        assert text.count("Booting worker") == 1, text
        assert "Traceback" not in text, text


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[int]:
    """The port of one gunicorn for all tests that need no settings of their own."""
    with gunicorn(directory) as port:
        yield port


def connected(port: int, request: bytes = b"", *, seconds: float = 30) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=seconds)
    connection.sendall(request)
    return connection


def received(connection: socket.socket) -> bytes:
    """Return all data until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def exchange(port: int, request: bytes, *, seconds: float = 30) -> bytes:
    with connected(port, request, seconds=seconds) as connection:
        return received(connection)


#: What slow clients send.
SLOW_CLIENTS = {
    "stay connected after the last response": CLOSE,
    "send nothing": b"",
    "send nothing after a response": GET,
    "stop in the headers": GET[:-2],
    "stop in the body": POST + b"Content-Length: 9\r\n\r\n{",
    "stop in a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n9\r\n{",
    "do not read their responses": 8 * LARGE,
}


def others_are_answered(port: int, request: bytes) -> bool:
    """Tell whether clients are answered within 2 s beside slow ones: more than threads and connections."""
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(CONNECTIONS + THREADS):
                client = stack.enter_context(connected(port, request, seconds=2))
                if request in (GET, CLOSE):
                    assert client.recv(1)
            return all(b" 200 OK" in exchange(port, CLOSE, seconds=2) for _ in range(3))
        except TimeoutError:
            return False


@pytest.mark.parametrize("request_bytes", SLOW_CLIENTS.values(), ids=SLOW_CLIENTS)
def test_others_are_answered_while_clients(request_bytes: bytes, tmp_path: Path) -> None:
    with gunicorn(tmp_path) as port:
        assert others_are_answered(port, request_bytes)


@pytest.mark.field
@pytest.mark.parametrize("request_bytes", SLOW_CLIENTS.values(), ids=SLOW_CLIENTS)
def test_gthread_alone_answers_nobody_while_clients(request_bytes: bytes, tmp_path: Path) -> None:
    with gunicorn(tmp_path, GTHREAD) as port:
        assert not others_are_answered(port, request_bytes)


BODY = b'{"a": 1}'
BODIES = {
    "length": POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    "chunks": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\n" + BODY[:3] + b"\r\n5\r\n" + BODY[3:] + b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", BODIES.values(), ids=BODIES)
def test_request_that_arrives_one_byte_at_a_time_is_answered(request_bytes: bytes, tmp_path: Path) -> None:
    with gunicorn(tmp_path) as port, connected(port) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # when: a second request follows the first
        for byte in request_bytes:
            client.sendall(bytes([byte]))
        client.sendall(request_bytes + CLOSE)

        # then
        assert received(client).count(BODY) == 2


CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
MANY_HEADERS = b"".join(b"x%d: %b\r\n" % (number, 4000 * b"y") for number in range(90))
CHUNK, CHUNKS = b"2\r\n\r\n\r\n", 2_900
#: Large beginnings of requests, the pieces that then arrive, and the end.
DRIBBLED = {
    "headers": (POST + MANY_HEADERS + b"x: ", b"y", b"\r\nContent-Length: 0\r\n\r\n"),
    "length": (POST + MANY_HEADERS + b"Content-Length: 60300\r\n\r\n" + 60_000 * b" ", b" ", b""),
    "chunks": (CHUNKED + CHUNKS * CHUNK, CHUNK, b"0\r\n\r\n"),
    "a chunk": (CHUNKED + CHUNKS * CHUNK + b"12c\r\n", b" ", b"\r\n0\r\n\r\n"),
    "trailers": (CHUNKED + CHUNKS * CHUNK + b"0\r\nx: ", b"y", b"\r\n\r\n"),
}


@pytest.mark.parametrize(
    ("begin", "piece", "end"),
    [
        pytest.param(*DRIBBLED[name], marks=pytest.mark.field if name in ("length", "chunks") else ())
        for name in DRIBBLED
    ],
    ids=DRIBBLED,
)
def test_pieces_of_a_large_request_cost_as_much_as_their_bytes(
    begin: bytes, piece: bytes, end: bytes, tmp_path: Path
) -> None:
    with (
        gunicorn(tmp_path) as port,
        connected(port, begin) as client,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as other,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def cpu_seconds() -> float:
            other.request("GET", "/cpu")
            return float(other.getresponse().read())

        # when: each piece is received before the next is sent
        seconds = [cpu_seconds()]
        for _ in range(300):
            client.sendall(piece)
            seconds.append(cpu_seconds())
        client.sendall(end + CLOSE)

        # then
        assert received(client).count(b" 200 OK") == 2
        # about 0.3 s, and 3.6 s when each piece is parsed
        assert cpu_seconds() - seconds[0] < 1.5


#: More chunks, extensions and trailers than are accepted.
FRAMINGS = {
    "chunks": 20_000 * b"1\r\n \r\n",
    "extensions": 130 * (b"1;" + 8000 * b"x" + b"\r\n \r\n"),
    "an extension that does not end": b"1;" + 20_000 * b"x",
    "a size that does not end": 20_000 * b"0",
    "trailers": b"0\r\n" + 20_000 * b"x: y\r\n",
    "a trailer that does not end": b"0\r\nx: " + 20_000 * b"y",
}


@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
def test_body_with_more_framing_than_is_accepted_is_refused_and_the_connection_closed(
    framing: bytes, server: int
) -> None:
    # sooner than after a time in which the client sends nothing
    answer = exchange(server, CHUNKED + framing, seconds=5)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_others_are_answered_while_many_clients_send_tiny_chunks(tmp_path: Path) -> None:
    with gunicorn(tmp_path, connections=70) as port, ThreadPoolExecutor(60) as pool:
        refused = [pool.submit(exchange, port, CHUNKED + FRAMINGS["chunks"]) for _ in range(60)]
        slowest = 0.0
        while not all(each.done() for each in refused):
            began = time.monotonic()
            assert b" 200 OK" in exchange(port, CLOSE)
            slowest = max(slowest, time.monotonic() - began)

        # about 0.2 s, and more than 4 s when the chunks are parsed
        assert slowest < 1.5
        assert all(each.result().startswith(b"HTTP/1.1 400 ") for each in refused)


@pytest.mark.parametrize("size", [1000, 65536, 200_000])
def test_chunks_of_any_size_are_received(size: int, server: int) -> None:
    body = bytes(range(256)) * 240
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    answer = exchange(server, CHUNKED + chunks + b"0\r\nx: y\r\n\r\n" + CLOSE)

    assert answer.partition(b"\r\n\r\n")[2].startswith(body)
    assert answer.count(b"HTTP/1.1 200 OK") == 2


#: Requests that gunicorn cannot read, with the status and the code of the response.
UNREADABLE = {
    "request line": (b"GET /<script> HTTP/x\r\n\r\n", 400, "bad_request"),
    "method": (b"<script> / HTTP/1.1\r\n\r\n", 400, "bad_request"),
    "header name": (GET[:-2] + b"<script>: x\r\n\r\n", 400, "bad_request"),
    "chunk size": (CHUNKED + b"<script>\r\n", 400, "bad_request"),
    "chunk end": (CHUNKED + b"1\r\n<script>\r\n", 400, "bad_request"),
    "long target": (b"GET /<script>" + 9000 * b"x" + b" HTTP/1.1\r\n\r\n", 414, "uri_too_long"),
    "endless target": (b"GET /<script>" + 9000 * b"x", 414, "uri_too_long"),
    "long header": (GET[:-2] + b"x: <script>" + 9000 * b"x" + b"\r\n\r\n", 431, "header_fields_too_large"),
    "many headers": (GET[:-2] + 101 * b"x: <script>\r\n" + b"\r\n", 431, "header_fields_too_large"),
    "endless headers": (GET[:-2] + 60_000 * b"x: <script>\r\n", 431, "header_fields_too_large"),
    "coding": (POST + b"Transfer-Encoding: <script>\r\n\r\n", 501, "unsupported_transfer_encoding"),
    "expectation": (POST + b"Expect: <script>\r\n\r\n", 417, "expectation_failed"),
}


@pytest.mark.parametrize(("request_bytes", "status", "code"), UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_request_is_answered_with_a_problem_and_the_end_of_the_connection(
    request_bytes: bytes, status: int, code: str, server: int, directory: Path
) -> None:
    answer = exchange(server, request_bytes, seconds=5)

    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert first.startswith(f"HTTP/1.1 {status} ")
    assert headers["Content-Type"] == "application/problem+json"
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert (headers["Connection"], headers["Content-Length"]) == ("close", str(len(body)))
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["message"]
    assert b"script" not in answer
    assert "script" not in (directory / "gunicorn.log").read_text()


def test_log_line_of_an_unreadable_request_has_no_id_of_an_earlier_one(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as port:
        for _ in range(THREADS * 2):
            exchange(port, GET + b"<script> / HTTP/1.1\r\n\r\n")

    lines = [line for line in (tmp_path / "lines.log").read_text().splitlines() if "cannot be read" in line]
    assert len(lines) == THREADS * 2
    assert not any("request_id" in line for line in lines)


def test_failure_outside_the_application_is_a_problem_too(server: int) -> None:
    answer = exchange(server, b"GET /invalid HTTP/1.1\r\nHost: here\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 500 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "internal_error"


def test_client_is_told_once_to_continue_and_its_body_is_awaited(tmp_path: Path) -> None:
    head = POST + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    with gunicorn(tmp_path) as port, connected(port, head) as client:
        # when
        interim = client.recv(4096)
        for byte in BODY:
            client.sendall(bytes([byte]))
        final = received(client)

    # then
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert final.startswith(b"HTTP/1.1 200 OK")
    assert final.endswith(BODY)


def test_response_that_is_read_late_is_complete_and_the_next_request_is_answered(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as port, connected(port, LARGE + CLOSE) as client:
        # given: the kernel holds what it takes, and the thread is free
        assert b" 200 OK" in exchange(port, CLOSE)

        # when
        answers = received(client)

    # then
    first, _, rest = answers.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK")
    assert rest[:LARGE_BYTES] == bytes(range(256)) * 65536
    assert rest[LARGE_BYTES:].startswith(b"HTTP/1.1 200 OK")


def test_head_is_sent_with_the_body_in_one_piece_and_alone_without_one(server: int) -> None:
    with connected(server, POST + b"Content-Length: 4\r\n\r\nbody") as connection:
        # when: one call to the system receives what one call has sent
        piece = connection.recv(65536)
        assert piece.startswith(b"HTTP/1.1 200 OK")
        assert piece.endswith(b"\r\n\r\nbody")
        # and: on the same connection, a response without a body
        connection.sendall(b"HEAD / HTTP/1.1\r\nHost: here\r\n\r\n")
        piece = connection.recv(65536)
        assert piece.startswith(b"HTTP/1.1 200 OK")
        assert piece.endswith(b"\r\n\r\n")


def test_request_that_stops_is_answered_as_one_that_ends(tmp_path: Path) -> None:
    stopped = [b"", GET[:-2], SLOW_CLIENTS["stop in the body"]]
    with gunicorn(tmp_path, read_seconds=0.3) as port, ThreadPoolExecutor(3) as pool:
        silent, headers, body = pool.map(exchange, [port] * 3, stopped)

    assert silent == headers == b""
    assert body.startswith(b"HTTP/1.1 200 OK")
    assert b"Connection: close" in body
    assert body.endswith(b"{")


def test_stream_that_is_not_read_is_ended_and_an_idle_one_is_not(tmp_path: Path) -> None:
    get = b"GET %s HTTP/1.1\r\nHost: here\r\n\r\n"
    with contextlib.ExitStack() as stack, gunicorn(tmp_path, read_seconds=0.3, close_seconds=0.5) as port:
        # given
        idle = stack.enter_context(connected(port, get % b"/idle"))
        while b"begin" not in idle.recv(4096):
            pass

        # when: there are also more connections than the server keeps
        stack.enter_context(connected(port, get % b"/busy"))
        for _ in range(CONNECTIONS):
            stack.enter_context(connected(port))

        # then
        assert b"end" in idle.recv(4096)


def test_streams_that_are_not_read_keep_no_thread_even_if_further_requests_follow(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack, gunicorn(tmp_path) as port:
        for _ in range(THREADS):
            stack.enter_context(connected(port, 50 * b"GET /busy HTTP/1.1\r\nHost: here\r\n\r\n"))

        # then: far sooner than 50 streams of PIECE_SECONDS each
        assert b" 200 OK" in exchange(port, CLOSE, seconds=8)


def test_server_with_slow_clients_stops_within_its_grace_period(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack, gunicorn(tmp_path, close_seconds=0.5) as port:
        for request in SLOW_CLIENTS.values():
            stack.enter_context(connected(port, request))
        stopped_at = time.monotonic()

    # then: gunicorn would kill the worker after 8 s
    assert time.monotonic() - stopped_at < 7.5


def changes_of_thread(port: int, requests: int) -> int:
    """How often a request of one connection is handled by another thread than the request before."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        threads = []
        for _ in range(requests):
            connection.request("GET", "/")
            threads.append(connection.getresponse().read())
    return sum(before != after for before, after in pairwise(threads))


@pytest.mark.parametrize(("worker_class", "is_kept"), [(OURS, True), (GTHREAD, False)], ids=["ours", "gthread"])
def test_connection_stays_on_its_thread(tmp_path: Path, worker_class: str, is_kept: bool) -> None:
    with gunicorn(tmp_path, worker_class) as port, ThreadPoolExecutor(4) as pool:
        for _ in pool.map(changes_of_thread, [port] * 4, [20] * 4):
            pass  # Now there are several threads to choose from.
        changes = changes_of_thread(port, 100)

    assert (changes < 30) == is_kept, changes


def test_more_streams_than_the_process_may_have_open_files_are_refused() -> None:
    command = "ulimit -n 1024; exec python -m gunicorn --config deploy/gunicorn.conf.py 'api:create_app()'"
    directory = os.path.dirname(sys.executable)
    env = os.environ | {"ORDER_STREAMS": "1100", "PATH": f"{directory}:{os.environ['PATH']}"}

    done = subprocess.run(["bash", "-c", command], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60)

    assert done.returncode == 2, done.stderr
    assert "ORDER_STREAMS and ORDER_WAITERS need at least 1397 open files, and the limit is 1024" in done.stderr
