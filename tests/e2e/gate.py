"""A TCP gate in front of a server, so that a test can take the server away from those who go through it."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit, urlunsplit

from tests.e2e.house import free_ports


class Gate:
    """Passes connections on while it is open; while it is closed, its port refuses them and all are cut."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._target = parts.hostname, parts.port
        (self._port,) = free_ports(1)
        login = parts.netloc.rpartition("@")[0]
        #: The same URL, through the gate.
        self.url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{self._port}"))
        #: While it swallows, what is sent to the server vanishes, as in a network that is gone without a word.
        self.swallows = False
        self.swallowed_bytes = 0
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._open_sockets: set[socket.socket] = set()

    def open(self) -> None:
        self.swallows = False
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        listener.listen(128)
        self._listener = listener
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()

    def close(self) -> None:
        """Refuse whoever comes, and cut off whoever is inside. May be repeated."""
        listener, self._listener = self._listener, None
        if listener:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            listener.close()
        with self._lock:
            for each in self._open_sockets:
                _cut(each)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                inside, _ = listener.accept()
                threading.Thread(target=self._join, args=[inside], daemon=True).start()

    def _join(self, inside: socket.socket) -> None:
        with inside, contextlib.suppress(OSError), socket.create_connection(self._target, timeout=5) as outside:
            outside.settimeout(None)
            with self._lock:
                self._open_sockets |= {inside, outside}
            if self._listener is None:
                return
            back = threading.Thread(target=self._pump, args=[outside, inside], daemon=True)
            back.start()
            self._pump(inside, outside, to_server=True)
            back.join()
            with self._lock:
                self._open_sockets -= {inside, outside}

    def _pump(self, source: socket.socket, target: socket.socket, *, to_server: bool = False) -> None:
        """Pass everything on until either side ends, and then end both."""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if to_server and self.swallows:
                    self.swallowed_bytes += len(data)
                else:
                    target.sendall(data)
        _cut(source)
        _cut(target)


def _cut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
