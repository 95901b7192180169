"""The HTTP clients: keep-alive connections that post orders, as fast as they are answered or at given times.

Raw sockets, one thread each: an HTTP library would take more of a two-core machine than the service does.
"""

import contextlib
import json
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

BODY = json.dumps({"user_id": 1, "menu_ids": [1, 2]}).encode()
#: Seconds without a response to a POST after which a run fails.
SILENCE_SECONDS = 30


class NoResponse(Exception):
    """The API stopped responding."""


@dataclass(frozen=True)
class Responses:
    """What the clients observed: the seconds that each POST took, and the number of responses by status."""

    began: float
    ended: float
    latencies: list[float]
    statuses: Counter[int]

    @property
    def accepted(self) -> int:
        """The number of orders that were stored."""
        return self.statuses[201] + self.statuses[202] + self.statuses[200]


def post_orders(port: int, due_times: Iterable[float], *, connections: int, prefer: str | None) -> Responses:
    """Post one order at each of these moments, in their order, as soon as a connection is free.

    A latency counts from the moment when the order was due; with 0, an order is due when a connection is free.
    """
    preference = f"Prefer: {prefer}\r\n" if prefer else ""
    head = (
        f"POST /orders HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n{preference}"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    )
    due, clients = deque(due_times), [_Client(port, head.encode() + BODY) for _ in range(connections)]
    began = time.monotonic()
    with ThreadPoolExecutor(connections) as threads:
        try:
            answers = [answer for answers in threads.map(lambda client: client.run(due), clients) for answer in answers]
        finally:
            due.clear()  # so that no thread posts another order after an interruption
    latencies = [seconds for _, seconds in answers]
    return Responses(began, time.monotonic(), latencies, Counter(status for status, _ in answers))


class _Client:
    """One keep-alive connection."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port, self._request = port, request
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=SILENCE_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self, due: deque[float]) -> list[tuple[int, float]]:
        """Post one order after the other until no more are due; the status and the seconds of each POST."""
        answers: list[tuple[int, float]] = []
        try:
            while due:
                with contextlib.suppress(IndexError):  # another thread took the last one
                    since = due.popleft() or time.monotonic()
                    time.sleep(max(0.0, since - time.monotonic()))
                    answers.append((self._post(), time.monotonic() - since))
        except OSError as error:
            due.clear()
            raise NoResponse(f"a POST without a response: {error}") from error
        finally:
            self._socket.close()
        return answers

    def _post(self) -> int:
        """The status of the response."""
        if select.select([self._socket], [], [], 0)[0]:  # the server closed the idle connection
            self._socket.close()
            self._connect()
        self._socket.sendall(self._request)
        received = b""
        while not _is_complete(received):
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the API closed the connection")
            received += data
        return int(received[9:12])


def _is_complete(response: bytes) -> bool:
    head, blank, body = response.partition(b"\r\n\r\n")
    if not blank:
        return False
    headers = head.lower()
    if b"transfer-encoding: chunked" in headers:
        return body.endswith(b"0\r\n\r\n")
    return len(body) >= int(headers.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
