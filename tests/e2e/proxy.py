"""A TCP proxy that makes a server unreachable for the processes that connect through it."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit, urlunsplit

from tests.e2e.process import free_ports


class TcpProxy:
    """Forwards connections while open. While closed, its port refuses connections; closing breaks the existing ones."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._target = parts.hostname, parts.port
        (self._port,) = free_ports(1)
        login = parts.netloc.rpartition("@")[0]
        #: The URL of the server through the proxy.
        self.url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{self._port}"))
        self._is_discarding = False
        self.discarded_bytes = 0
        self._commits_to_cut = 0
        self._may_forward_commits = threading.Event()
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._connected: set[socket.socket] = set()

    def __enter__(self) -> "TcpProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        self._is_discarding = False
        self._listener = socket.create_server(("127.0.0.1", self._port), backlog=128)
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def discard(self) -> None:
        """Discard data sent to the server until the next `open` or `forward`, and acknowledge it."""
        self.discarded_bytes, self._is_discarding = 0, True

    def forward(self) -> None:
        """Forward data again."""
        self._is_discarding = False

    def cut_commits(self, count: int = 1, *, hold: bool = False) -> None:
        """Break the connections of the next COMMITs, then forward them; with `hold` at `forward_commits` only."""
        self._commits_to_cut = count
        self._may_forward_commits.clear()
        if not hold:
            self.forward_commits()

    def forward_commits(self) -> None:
        self._may_forward_commits.set()

    @property
    def has_cut(self) -> bool:
        return self._commits_to_cut <= 0

    def close(self) -> None:
        """Refuse new connections and break the existing ones. May be repeated."""
        listener, self._listener = self._listener, None
        if listener:
            _shut_down(listener)  # wakes accept()
            listener.close()
        with self._lock:
            for connected in self._connected:
                _shut_down(connected)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._forward, args=[client], daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target, timeout=5) as server:
            server.settimeout(None)
            with self._lock:
                self._connected |= {client, server}
            if self._listener is None:
                return
            responses = threading.Thread(target=self._copy, args=[server, client], daemon=True)
            responses.start()
            self._copy(client, server, to_server=True)
            responses.join()
            with self._lock:
                self._connected -= {client, server}

    def _copy(self, source: socket.socket, target: socket.socket, *, to_server: bool = False) -> None:
        """Copy data until either side ends, then end both."""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if to_server and self._is_discarding:
                    self.discarded_bytes += len(data)
                elif to_server and b"COMMIT" in data and self._takes_cut():
                    _shut_down(source)
                    if self._may_forward_commits.wait(60):
                        target.sendall(data)
                else:
                    target.sendall(data)
        _shut_down(source)
        _shut_down(target)

    def _takes_cut(self) -> bool:
        with self._lock:
            self._commits_to_cut -= 1
            return self._commits_to_cut >= 0


def _shut_down(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
