"""The service and its siblings as processes, with ports, a vhost and databases of their own."""

import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pika
import pytest

from order_service.contract import topology
from order_service.storage import migrate
from sandbox.processes import Logins, with_login
from sandbox.servers.broker_users import USERS
from tests.e2e.client import Client
from tests.e2e.process import PROCFILE, PROJECT_DIR, START_SECONDS, Process, free_ports
from tests.e2e.records import Records
from tests.polling import wait_until

T = TypeVar("T")

#: The setting of each process that names its HTTP port.
PORT_SETTINGS = {"api": "PORT", "users": "USERS_PORT", "menu": "MENU_PORT", "payment": "PAYMENT_PORT"}
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
#: For tests that take half a minute or more: on the other database with `make test-field` only.
MOSTLY_ON_SQLITE = pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.field)], indirect=True
)
MOSTLY_ON_POSTGRESQL = pytest.mark.parametrize(
    "database_url", [pytest.param("sqlite", marks=pytest.mark.field), "postgresql"], indirect=True
)


class Deployment:
    """Processes of the Procfile; leaving the `with` block stops all of them.

    With `logins`, the broker's URL for each of its users, each process has its own; else all have `amqp_url`.
    """

    def __init__(
        self, amqp_url: str, database_url: str, directory: Path, *, logins: Logins = None, **settings: str
    ) -> None:
        self.amqp_url, self.database_url, self.directory = amqp_url, database_url, directory
        self.logins = logins
        self.ports = dict(zip(PORT_SETTINGS, free_ports(len(PORT_SETTINGS)), strict=True))
        self.client = Client(self.ports)
        self.records = Records(amqp_url, database_url, directory / "sandbox")
        self.processes: list[Process] = []
        self.env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "RABBITMQ_URL": amqp_url,
            "DATABASE_URL": database_url,
            "SANDBOX_DIR": str(directory / "sandbox"),
            "USER_SERVICE_URL": f"http://127.0.0.1:{self.ports['users']}",
            "HOST": "127.0.0.1",
            # Reminders would hide the loss of a message.
            "ORDER_MENU_REPLY_SECONDS": "600",
            **{PORT_SETTINGS[name]: str(port) for name, port in self.ports.items()},
            **settings,
        }

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        for process in self.processes:
            if process.is_running:
                process.request_stop()
        for process in self.processes:
            process.close()

    def run(
        self, *command: str, seconds: float = 60, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in the environment of the processes, without a login of its own, or in this one."""
        return subprocess.run(
            command, env=env or self.env, cwd=PROJECT_DIR, capture_output=True, text=True, check=False, timeout=seconds
        )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = with_login(self.env, arguments[0], self.logins) if arguments[0] in USERS else self.env
        return self.run("python", "-m", "order_service", *arguments, env=env)

    def prepare(self) -> None:
        """Migrate the database and declare the topology, without the cost of two more processes."""
        migrate.upgrade(self.database_url)
        self.declare_topology()

    def declare_topology(self) -> None:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.amqp_url))) as connection:
            topology.declare(connection.channel())

    def start(self, *names: str, **settings: str) -> list[Process]:
        """Start these processes of the Procfile; a name may be repeated."""
        return [self.start_command(name, PROCFILE[name], **settings) for name in names]

    def start_command(self, name: str, command_line: str, **settings: str) -> Process:
        log_file = self.directory / "logs" / f"{name}.{len(self.processes)}.log"
        env = {**with_login(self.env, name, self.logins), **settings}
        self.processes.append(Process(name, command_line, env, log_file))
        return self.processes[-1]

    def start_all(self, **settings: str) -> dict[str, Process]:
        """Prepare, start every process of the Procfile, and wait until all are healthy."""
        self.prepare()
        started = dict(zip(PROCFILE, self.start(*PROCFILE, **settings), strict=True))
        self.wait_until_healthy()
        return started

    def log_tails(self) -> str:
        return "\n".join(process.log_tail() for process in self.processes)

    def wait_until(self, check: Callable[[], T | None], what: str, *, seconds: float = START_SECONDS) -> T:
        """Return the first truthy result of `check()`; after `seconds`, fail with the logs."""
        return wait_until(check, what, seconds=seconds, details=self.log_tails)

    def wait_until_healthy(self, *names: str) -> None:
        """Wait for these processes, by default all that serve HTTP."""
        names = names or tuple(PORT_SETTINGS)
        self.wait_until(lambda: all(map(self.client.is_healthy, names)), f"{names} to be healthy")

    def wait_until_paid(self, ids: Iterable[int], *, seconds: float = 60) -> None:
        """Wait until these orders, and any others, are paid and every outbox is empty."""
        accepted = set(ids)

        def is_settled() -> bool:
            states = self.records.order_states()
            return accepted <= states.keys() and set(states.values()) <= {"paid"} and not self.records.outbox_types()

        def progress() -> str:
            states, unpublished = self.records.order_states(), Counter(self.records.outbox_types())
            lost = accepted - states.keys()
            depths = self.records.queue_depths()
            return f"{Counter(states.values())}, {lost=}, {unpublished=}, {depths=}\n{self.log_tails()}"

        wait_until(is_settled, "all orders to be paid", seconds=seconds, details=progress)

    def wait_until_more_are_paid(self, count: int) -> None:
        """Wait until `count` more orders are paid than now."""
        wanted = self.records.count("paid") + count
        self.wait_until(lambda: self.records.count("paid") >= wanted, f"{count} more orders to be paid")

    def assert_all_running(self) -> None:
        assert all(process.is_running for process in self.processes), self.log_tails()

    def assert_stops_with_empty_queues(self) -> None:
        """Assert that every process ends with status 0, and that no message is left, unacknowledged ones included."""
        running = [process for process in self.processes if process.is_running]
        with ThreadPoolExecutor(len(running)) as pool:
            assert set(pool.map(Process.terminate, running)) == {0}, self.log_tails()
        assert set(self.records.queue_depths().values()) == {0}


@contextlib.contextmanager
def api_alone(database_url: str, directory: Path, **settings: str) -> Iterator[Deployment]:
    """The API without users, siblings and broker: it needs only the database."""
    with Deployment(
        "amqp://127.0.0.1:1", database_url, directory, logins=None, USER_SERVICE_URL="", **settings
    ) as deployment:
        migrate.upgrade(database_url)
        deployment.start("api")
        deployment.wait_until_healthy("api")
        yield deployment
