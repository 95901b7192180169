"""The HTTP clients: keep-alive connections that post orders, as fast as they are answered or at given times.

Raw sockets in one thread: an HTTP library or a thread for each would take a share of the machine from the service.
"""

import contextlib
import json
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

from benchmarks.system import User

#: Seconds without any response after which a run fails.
SILENCE_SECONDS = 30.0


class NoResponse(Exception):
    """The API stopped responding."""


@dataclass(frozen=True)
class Responses:
    """What the clients observed: the seconds that each POST took, and the number of responses by status."""

    began: float
    ended: float
    latencies: list[float]
    statuses: Counter[int]


def post_orders(
    port: int, due_times: Iterable[float], *, connections: int, prefer: str | None, users: Sequence[User]
) -> Responses:
    """Post an order of the next user at each of these moments, in their order, as soon as a connection is free.

    A latency counts from the moment when the order was due; with 0, an order is due when a connection is free.
    """
    with _Clients(port, connections, [_request(port, prefer, user) for user in users]) as clients:
        return clients.run(deque(due_times))


def _request(port: int, prefer: str | None, user: User) -> bytes:
    body = json.dumps({"user_id": user.id, "menu_ids": [1, 2]})
    headers = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", "Content-Length": len(body)}
    headers |= {"Prefer": prefer} if prefer else {}
    headers |= {"Authorization": user.authorization} if user.authorization else {}
    lines = ["POST /orders HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", body]
    return "\r\n".join(lines).encode()


class _Client:
    """One keep-alive connection, and the response that it waits for."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SILENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.since = 0.0
        self.received = b""

    def status(self) -> int | None:
        """The status of the response once it is complete."""
        head, blank, body = self.received.partition(b"\r\n\r\n")
        if not blank:
            return None
        headers = head.lower()
        if b"transfer-encoding: chunked" in headers:
            complete = body.endswith(b"0\r\n\r\n")
        else:
            complete = len(body) >= int(headers.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        return int(head[9:12]) if complete else None


class _Clients(contextlib.ExitStack):
    def __init__(self, port: int, connections: int, requests: Sequence[bytes]) -> None:
        super().__init__()
        self._port, self._requests, self._connections = port, cycle(requests), connections
        self._selector = self.enter_context(selectors.DefaultSelector())
        self._idle: deque[_Client] = deque()
        for _ in range(connections):
            self._open()

    def _open(self) -> None:
        client = _Client(self._port)
        self.enter_context(client.socket)
        self._selector.register(client.socket, selectors.EVENT_READ, client)
        self._idle.append(client)

    def run(self, due: deque[float]) -> Responses:
        began, latencies, statuses = time.monotonic(), list[float](), Counter[int]()
        while due or len(self._idle) < self._connections:
            now = time.monotonic()
            while due and self._idle and due[0] <= now:
                client = self._idle.popleft()
                client.since = due.popleft() or now
                client.socket.sendall(next(self._requests))
            pause = max(0.0, due[0] - now) if due and self._idle else SILENCE_SECONDS
            ready = self._selector.select(pause)
            if not ready and pause >= SILENCE_SECONDS:
                raise NoResponse(f"no response for {SILENCE_SECONDS:.0f} s")
            for key, _ in ready:
                if status := self._receive(key.data):
                    latencies.append(time.monotonic() - key.data.since)
                    statuses[status] += 1
        return Responses(began, time.monotonic(), latencies, statuses)

    def _receive(self, client: _Client) -> int | None:
        """The status of the response if this completes it."""
        if data := client.socket.recv(65536):
            client.received += data
            if status := client.status():
                client.received = b""
                self._idle.append(client)
            return status
        if client not in self._idle:
            raise NoResponse("the API closed a connection before it answered")
        self._selector.unregister(client.socket)
        self._idle.remove(client)
        self._open()
        return None
