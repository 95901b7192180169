"""A real HTTP server for tests of clients: it answers with bytes as given, as slowly as given, or not at all."""

import contextlib
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable

from tests.serving import POLL_SECONDS

#: How long a dripping answer lasts at most, in seconds: longer than any deadline that a test waits for.
DRIP_SECONDS = 4.0

#: One answer; it may write to the connection anything, at any speed.
Answer = Callable[["StandIn", socket.socket], None]


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


class StandIn:
    """Gives its answers one after the other, and repeats the last one."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[str] = []
        self.closing = threading.Event()
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    while outer.answer_one(self.request):
                        pass

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[POLL_SECONDS])
        self._thread.start()

    def answer_one(self, connection: socket.socket) -> bool:
        request = b""
        while not _is_whole(request):
            received = connection.recv(4096)
            if not received:
                return False
            request += received
        self.asked.append(request.split(b"\r\n")[0].decode())
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        answer(self, connection)
        return True

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def says(data: bytes) -> Answer:
    return lambda _, connection: connection.sendall(data)


def drips(data: bytes, *, pause: float = 0.2, first: int = 0) -> Answer:
    """One byte at a time, so that no timeout per byte expires; after `DRIP_SECONDS` all the rest."""

    def answer(stand_in: StandIn, connection: socket.socket) -> None:
        sent, until = first, time.monotonic() + DRIP_SECONDS
        connection.sendall(data[:first])
        while time.monotonic() < until and sent < len(data) and not stand_in.closing.wait(pause):
            connection.sendall(data[sent : sent + 1])
            sent += 1
        connection.sendall(data[sent:])

    return answer


def silent(stand_in: StandIn, connection: socket.socket) -> None:
    stand_in.closing.wait(20)


def hangs_up(_: StandIn, connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)
