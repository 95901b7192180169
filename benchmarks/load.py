"""The clients: keep-alive connections that post orders, as fast as they are answered or at a given rate.

Raw sockets in one thread, because an HTTP library would take more of a two-core machine than the service does.
"""

import collections
import contextlib
import itertools
import json
import math
import selectors
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

BODY = json.dumps({"user_id": 1, "menu_ids": [1, 2]}).encode()
#: Seconds without any answer after which a run is given up.
SILENCE_SECONDS = 30


class NoAnswer(Exception):
    """The API stopped answering."""


@dataclass
class Answers:
    """What the clients saw: the seconds that each POST took, and how often each status came (0: none came)."""

    began: float
    ended: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)

    @property
    def accepted(self) -> int:
        """How many orders were stored."""
        return self.statuses[201] + self.statuses[202] + self.statuses[200]

    @property
    def per_second(self) -> float:
        return self.accepted / (self.ended - self.began)


def as_fast_as_answered(port: int, *, orders: int, connections: int, prefer: str | None) -> Answers:
    """A closed loop: every connection posts its next order once the last one is answered."""
    return _Clients(port, connections, prefer).run(itertools.repeat(0.0, orders))


def at_rate(port: int, *, per_second: float, seconds: float, connections: int, prefer: str | None) -> Answers:
    """An open loop: orders come when they come. A latency counts from the moment the order should have been posted."""
    began = time.monotonic()
    return _Clients(port, connections, prefer).run(began + n / per_second for n in range(int(per_second * seconds)))


class _Connection:
    """One keep-alive connection, and the answer it waits for."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SILENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.since: float | None = None

    def status(self) -> int | None:
        """The status of the answer once all of it is here; the rest is forgotten."""
        head, blank, body = self.received.partition(b"\r\n\r\n")
        if not blank:
            return None
        lowered = head.lower()
        if b"transfer-encoding: chunked" in lowered:
            complete = body.endswith(b"0\r\n\r\n")
        else:
            length = lowered.partition(b"content-length:")[2].partition(b"\r\n")[0]
            complete = len(body) >= int(length or 0)
        if not complete:
            return None
        self.received = b""
        return int(head[9:12])


class _Clients:
    def __init__(self, port: int, connections: int, prefer: str | None) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._idle = collections.deque(self._open() for _ in range(connections))
        preference = f"Prefer: {prefer}\r\n" if prefer else ""
        self._request = (
            f"POST /orders HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n{preference}"
            f"Content-Length: {len(BODY)}\r\n\r\n"
        ).encode() + BODY

    def run(self, due_times: Iterable[float]) -> Answers:
        """Post one order for each of these moments, in their order."""
        due, answers, waiting = iter(due_times), Answers(time.monotonic()), 0
        upcoming = next(due, None)
        while upcoming is not None or waiting:
            now = time.monotonic()
            while upcoming is not None and upcoming <= now and self._idle:
                self._post(upcoming or now)
                waiting += 1
                upcoming = next(due, None)
            pause = max(0.0, upcoming - now) if upcoming is not None and self._idle else float(SILENCE_SECONDS)
            ready = self._selector.select(pause)
            if not ready and pause >= SILENCE_SECONDS:
                raise NoAnswer(f"{waiting} POSTs without an answer for {SILENCE_SECONDS} s")
            waiting -= sum(self._hear(key.data, answers) for key, _ in ready)
        answers.ended = time.monotonic()
        self._close()
        return answers

    def _open(self) -> _Connection:
        connection = _Connection(self._port)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def _post(self, since: float) -> None:
        connection = self._idle.popleft()
        try:
            connection.socket.sendall(self._request)
        except OSError:  # closed by the server for having been idle
            connection = self._replace(connection)
            connection.socket.sendall(self._request)
        connection.since = since

    def _hear(self, connection: _Connection, answers: Answers) -> int:
        """Take what has come; returns how many POSTs are answered by it."""
        data = b""
        with contextlib.suppress(OSError):
            data = connection.socket.recv(65536)
        connection.received += data
        status = connection.status() if data else 0
        if status is None:
            return 0
        since, connection.since = connection.since, None
        if since is not None:
            answers.latencies.append(time.monotonic() - since)
            answers.statuses[status] += 1
        if not data:
            was_idle = since is None
            if was_idle:
                self._idle.remove(connection)
            connection = self._replace(connection)
        self._idle.append(connection)
        return since is not None

    def _replace(self, connection: _Connection) -> _Connection:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        return self._open()

    def _close(self) -> None:
        for connection in self._idle:
            connection.socket.close()
        self._selector.close()


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that so many percent of all values do not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan
