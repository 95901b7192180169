"""One broker and one PostgreSQL server per test run, shared by its workers.

They belong to the process that was started as `pytest` (with xdist: the controller). A worker requests them through a
socket named in the environment, and the first request starts them. So `pytest tests/unit` starts neither.
"""

import contextlib
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TypeVar

import pytest

from sandbox.servers import broker, docker, postgres
from sandbox.servers.sources import Say, Unavailable

#: Tells the workers the socket of the controller and its password.
ADDRESS_VARIABLE = "ORDER_TEST_SERVERS"
#: `make test-containers` sets it: use testcontainers for both servers, or fail.
CONTAINERS_VARIABLE = "ORDER_TEST_CONTAINERS"

VAR = Path(__file__).parent.parent / "var" / "test"

Server = broker.Broker | postgres.Server
T = TypeVar("T", broker.Broker, postgres.Server)


class SharedServers:
    """Starts each server at its first request; `close` stops them."""

    def __init__(self, say: Say, uncaptured: Callable[[], AbstractContextManager[None]]) -> None:
        self._say, self._uncaptured = say, uncaptured
        self._stack = contextlib.ExitStack()
        self._locks = {name: threading.Lock() for name in _SERVERS}
        #: The server by name, or the reason why it is unavailable.
        self.results: dict[str, Server | str] = {}
        password = secrets.token_hex(16)
        self._listener = Listener(family="AF_UNIX", authkey=password.encode())
        os.environ[ADDRESS_VARIABLE] = f"{password}@{self._listener.address}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop the servers; wait first for one that is starting."""
        self._listener.close()
        with contextlib.ExitStack() as locks:
            for lock in self._locks.values():
                locks.enter_context(lock)
            self._stack.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                threading.Thread(target=self._serve, args=[self._listener.accept()], daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        with connection, contextlib.suppress(EOFError):
            name = connection.recv()
            with self._locks[name]:
                if name not in self.results:
                    self.results[name] = self._start(name)
            connection.send(self.results[name])

    def _start(self, name: str) -> Server | str:
        try:
            with self._uncaptured():
                directory = self._stack.enter_context(_directory(name))
                running = _SERVERS[name](
                    directory, docker_only=bool(os.environ.get(CONTAINERS_VARIABLE)), say=self._say
                )
                return self._stack.enter_context(running)
        except Unavailable as reason:
            self._say(str(reason))
            return str(reason)


@contextlib.contextmanager
def _directory(name: str) -> Iterator[Path]:
    """A directory of this run below var/, so that concurrent runs do not share one."""
    VAR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=VAR, ignore_cleanup_errors=True) as directory:
        yield Path(directory) / name


#: By name, a context manager that runs the server with its data in a directory.
_SERVERS: dict[str, Callable[..., AbstractContextManager[Server]]] = {
    "broker": partial(broker.running, docker=docker.throwaway_rabbitmq),
    "postgres": partial(postgres.running, fsync=False),
}


def _request(name: str) -> Server | str:
    """Have the controller start the server unless it runs; return it, or the reason why it is unavailable."""
    password, _, address = os.environ[ADDRESS_VARIABLE].partition("@")
    with Client(address, authkey=password.encode()) as connection:
        connection.send(name)
        result: Server | str = connection.recv()
        return result


def start(names: Collection[str]) -> None:
    """Start several servers concurrently."""
    if names:
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(_request, names))


def require(name: str, kind: type[T]) -> T:
    """Return the running server, or fail the test."""
    result = _request(name)
    if not isinstance(result, kind):
        pytest.fail(f"no {name} for the tests; the reasons are at the end of the run", pytrace=False)
    return result
