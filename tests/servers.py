"""One broker and one PostgreSQL server for a whole test run, however many workers it has.

They live in the process that was started as `pytest` (with xdist: the controller). A worker asks it for them through a
socket named in the environment; the first to ask has them started. So `pytest tests/unit` starts neither.
"""

import contextlib
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

import pytest

from sandbox.servers import broker, postgres
from sandbox.servers import docker as containers
from sandbox.servers.sources import Say, Unavailable

#: Names the controller's socket and its password to the workers.
ADDRESS_VARIABLE = "ORDER_TEST_SERVERS"
#: `make test-containers` sets it: testcontainers for both servers, or a failure.
CONTAINERS_VARIABLE = "ORDER_TEST_CONTAINERS"

VAR = Path(__file__).parent.parent / "var" / "test"

#: A started server's value object, or, as text, why it cannot be had.
Answer = broker.Broker | postgres.Server | str


class Keeper:
    """Starts servers when they are first asked for, and stops them at the end of the run."""

    def __init__(self, say: Say, uncaptured: Callable[[], AbstractContextManager[None]]) -> None:
        self._say, self._uncaptured = say, uncaptured
        self._stack = contextlib.ExitStack()
        self._locks = {name: threading.Lock() for name in ("broker", "postgres")}
        self.answers: dict[str, Answer] = {}
        password = secrets.token_hex(16)
        self._listener = Listener(family="AF_UNIX", authkey=password.encode())
        os.environ[ADDRESS_VARIABLE] = f"{password}@{self._listener.address}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop what was started, after any start that is still going on."""
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
                if name not in self.answers:
                    self.answers[name] = self._start(name)
            connection.send(self.answers[name])

    def _start(self, name: str) -> Answer:
        try:
            with self._uncaptured():
                return self._stack.enter_context(_SERVERS[name](self._say))
        except Unavailable as reason:
            self._say(str(reason))
            return str(reason)


@contextlib.contextmanager
def _directory(name: str) -> Iterator[Path]:
    """A directory of this run's own below var/, so that two runs do not meet."""
    VAR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=VAR, ignore_cleanup_errors=True) as directory:
        yield Path(directory) / name


@contextlib.contextmanager
def _broker(say: Say) -> Iterator[broker.Broker]:
    docker_only = bool(os.environ.get(CONTAINERS_VARIABLE))
    with (
        _directory("broker") as data_dir,
        broker.running(data_dir, docker=containers.throwaway_rabbitmq, docker_only=docker_only, say=say) as found,
    ):
        yield found


@contextlib.contextmanager
def _postgres(say: Say) -> Iterator[postgres.Server]:
    docker_only = bool(os.environ.get(CONTAINERS_VARIABLE))
    with (
        _directory("postgres") as data_dir,
        postgres.running(data_dir, fsync=False, docker_only=docker_only, say=say) as found,
    ):
        yield found


_SERVERS: dict[str, Callable[[Say], AbstractContextManager[broker.Broker | postgres.Server]]] = {
    "broker": _broker,
    "postgres": _postgres,
}


def ask(name: str) -> Answer:
    """Have the controller start the server if it does not run yet, and return it. May be repeated."""
    password, _, address = os.environ[ADDRESS_VARIABLE].partition("@")
    with Client(address, authkey=password.encode()) as connection:
        connection.send(name)
        answer: Answer = connection.recv()
        return answer


def ask_ahead(names: Iterable[str]) -> None:
    """Have several servers started side by side."""
    threads = [threading.Thread(target=ask, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def broker_or_fail() -> broker.Broker:
    answer = ask("broker")
    if not isinstance(answer, broker.Broker):
        pytest.fail("no RabbitMQ for the tests; the reasons are at the end of the run", pytrace=False)
    return answer


def postgres_or_fail() -> postgres.Server:
    answer = ask("postgres")
    if not isinstance(answer, postgres.Server):
        pytest.fail("no PostgreSQL for the tests; the reasons are at the end of the run", pytrace=False)
    return answer
