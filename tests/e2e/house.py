"""The Procfile's processes with everything of their own, what they are asked over HTTP, and what they leave behind."""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pika
import pytest
import sqlalchemy as sa

from order_service import schema, topology
from order_service.tables import orders, outbox
from sandbox.servers import process_group as lifeline
from sandbox.servers.process_group import Command

PROJECT_DIR = Path(__file__).parent.parent.parent
#: What each line of the Procfile runs, by its name.
PROCFILE = dict(line.split(": ", 1) for line in (PROJECT_DIR / "Procfile").read_text().splitlines())
#: The settings that say where a process with an HTTP side listens.
PORT_SETTINGS = {"api": "PORT", "users": "USERS_PORT", "menu": "MENU_PORT", "payment": "PAYMENT_PORT"}
EXAMPLE = {"user_id": 1, "menu_ids": [1, 2]}
#: Seconds for processes to be up, on two busy cores.
START_SECONDS = 40
#: Seconds that a process may take to end after SIGTERM, by the design.
STOP_SECONDS = 10


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: Any


class Process:
    """One running line of the Procfile."""

    def __init__(self, name: str, env: dict[str, str], log: Path) -> None:
        self.name, self.log = name, log
        self._stack = contextlib.ExitStack()
        line = ["/bin/sh", "-c", f"exec {PROCFILE[name]}"]
        self._shell = self._stack.enter_context(lifeline.serving(Command(line, env, log, cwd=PROJECT_DIR)))

    @property
    def is_running(self) -> bool:
        return self._shell.poll() is None

    def terminate(self, *, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM; returns the exit status, or fails when there is none in time."""
        lifeline.let_go(self._shell)
        return self.exit_status(seconds=seconds)

    def exit_status(self, *, seconds: float) -> int:
        """Of a process that ends by itself."""
        try:
            return self._shell.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end within {seconds:g} s; the end of its log:\n{lifeline.tail(self.log)}")

    def kill(self) -> None:
        """kill -9, its children included: nothing gets to tidy up."""
        os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()

    def close(self) -> None:
        self._stack.close()

    def cpu_seconds(self) -> float:
        """User and system time so far, of children too."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self._shell.pid:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


class House:
    """Processes on free ports, at one vhost and one database, with the siblings' databases in `directory`."""

    def __init__(self, amqp_url: str, database_url: str, directory: Path, **settings: str) -> None:
        self.amqp_url, self.database_url, self.directory = amqp_url, database_url, directory
        self.ports = dict(zip(PORT_SETTINGS, free_ports(len(PORT_SETTINGS)), strict=True))
        programs = Path(sys.executable).parent
        self.env = os.environ | {
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "RABBITMQ_URL": amqp_url,
            "DATABASE_URL": database_url,
            "SANDBOX_DIR": str(directory / "sandbox"),
            "USER_SERVICE_URL": f"http://127.0.0.1:{self.ports['users']}",
            "HOST": "127.0.0.1",
            # Reminders would hide that a message was lost.
            "ORDER_MENU_REPLY_SECONDS": "600",
            **{PORT_SETTINGS[name]: str(port) for name, port in self.ports.items()},
            **settings,
        }
        self.processes: list[Process] = []
        self._connections = threading.local()
        self._opened: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        for connection in self._opened:
            connection.close()
        for each in self.processes:
            if each.is_running:
                lifeline.let_go(each._shell)
        for each in self.processes:
            each.close()

    # Starting.

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -m order_service ...`."""
        command = [sys.executable, "-m", "order_service", *arguments]
        return subprocess.run(command, env=self.env, cwd=PROJECT_DIR, capture_output=True, text=True, check=False)

    def prepare(self) -> None:
        """What the commands `migrate` and `topology` do, without two more processes."""
        schema.upgrade(self.database_url)
        self.declare()

    def declare(self) -> None:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.amqp_url))) as connection:
            topology.declare(connection.channel())

    def start(self, *names: str, **settings: str) -> list[Process]:
        """Start these lines of the Procfile; a name may be given twice."""
        started = []
        for name in names:
            log = self.directory / "logs" / f"{name}.{len(self.processes)}.log"
            started.append(Process(name, self.env | settings, log))
            self.processes.append(started[-1])
        return started

    def start_all(self) -> dict[str, Process]:
        """Everything, up and at the broker."""
        started = dict(zip(PROCFILE, self.start(*PROCFILE), strict=True))
        self.wait_healthy()
        return started

    def wait_healthy(self, *names: str) -> None:
        """Return once these (or all with an HTTP side) are well, and at the broker where they tell."""
        waited_for = names or tuple(PORT_SETTINGS)
        self.until(lambda: all(map(self._is_healthy, waited_for)), f"{waited_for} to be well")

    def until(self, check: Callable[[], Any], what: str, *, seconds: float = START_SECONDS) -> None:
        """Return once `check()` is true; fail with the ends of all logs if it does not become so."""
        deadline = time.monotonic() + seconds
        while not check():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {seconds:g} s for {what}\n{self.logs()}")
            threading.Event().wait(0.05)

    def _is_healthy(self, name: str) -> bool:
        """At the broker too, where the process tells."""
        return self.is_answering(name) and self.ask("GET", "/healthz", to=name).body.get("broker") != "absent"

    def is_answering(self, name: str = "api") -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask("GET", "/healthz", to=name).status == 200
        return False

    def logs(self) -> str:
        return "\n".join(f"{each.log.name}:\n{lifeline.tail(each.log, 25)}" for each in self.processes)

    # Asking.

    def ask(
        self, method: str, path: str, body: Any = None, *, to: str = "api", headers: dict[str, str] | None = None
    ) -> Answer:
        """One request over this thread's own connection. Raises OSError or HTTPException without an answer."""
        kept: dict[str, http.client.HTTPConnection] = self._connections.__dict__
        connection = kept.pop(to, None) or self._connect(to)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"} | (headers or {}))
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, json.loads(response.read()))
        except BaseException:
            connection.close()
            raise
        kept[to] = connection
        return answer

    def _connect(self, name: str) -> http.client.HTTPConnection:
        self._opened.append(http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=40))
        return self._opened[-1]

    def post(self, body: Any = EXAMPLE, **more: Any) -> Answer:
        return self.ask("POST", "/orders", body, **more)

    def posts(self, count: int, body: Any = EXAMPLE, *, threads: int = 16) -> list[int]:
        """Post so many orders side by side, each until it is acknowledged; returns the acknowledged ids."""
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda _: self.post_until_acknowledged(body), range(count)))

    def post_until_acknowledged(self, body: Any = EXAMPLE, *, seconds: float = 30) -> int:
        """As a stubborn client does. What was recorded without an answer is nobody's order, but an order."""
        deadline = time.monotonic() + seconds
        answer: Answer | Exception | None = None
        while time.monotonic() < deadline:
            try:
                answer = self.post(body)
            except (OSError, http.client.HTTPException) as error:
                answer = error
            else:
                if answer.status in (201, 202):
                    order_id: int = answer.body["id"]
                    return order_id
                if answer.status != 503:
                    break
            threading.Event().wait(0.1)
        pytest.fail(f"no order could be placed: {answer}")

    def add_menu(self, *, price: float = 1250.5, stock: int = 1_000_000) -> int:
        """A dish of which there is plenty."""
        new = {"name": "Es Teh", "price": price, "stock": stock}
        menu_id: int = self.ask("POST", "/menus", new, to="menu").body["id"]
        return menu_id

    # Looking.

    def states(self) -> dict[int, str]:
        """Every order's state, from our own database."""
        with _engine(self.database_url) as engine, engine.connect() as connection:
            return {row.id: row.state for row in connection.execute(sa.select(orders.c.id, orders.c.state))}

    def outbox_rows(self) -> list[str]:
        """The types of what has not left yet, from our database and both siblings'."""
        with _engine(self.database_url) as engine, engine.connect() as connection:
            found = [str(type) for type in connection.execute(sa.select(outbox.c.type)).scalars()]
        return found + [row["type"] for name in ("menu", "payment") for row in self.sandbox(name, "outbox")]

    def sandbox(self, name: str, table: str) -> list[sqlite3.Row]:
        """All rows of a table of the Menu or the Payment Service."""
        path = self.directory / "sandbox" / f"{name}.db"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            return db.execute(f"SELECT * FROM {table}").fetchall()

    def depths(self) -> dict[str, int]:
        """Ready messages of every queue of ours and the siblings'."""
        names = [name for queue in topology.QUEUES for name in (queue.name, queue.dead_letters)]
        names += ["menu-service.orders", "payment-service.orders"]
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.amqp_url))) as connection:
            channel = connection.channel()
            return {name: channel.queue_declare(name, passive=True).method.message_count for name in names}

    def wait_until_paid(self, ids: Iterable[int] = (), *, seconds: float = 60) -> None:
        """Return once these orders, and any others there are, are paid and everything has left; else fail."""
        acknowledged = set(ids)

        def settled() -> bool:
            states = self.states()
            paid = set(states.values()) <= {"paid"} and acknowledged <= states.keys()
            return paid and not self.outbox_rows()

        try:
            self.until(settled, "all orders to be paid", seconds=seconds)
        except pytest.fail.Exception as error:
            states = self.states()
            left = f"{Counter(states.values())}, lost: {acknowledged - states.keys()}, queues: {self.depths()}"
            pytest.fail(f"{left}, outbox: {Counter(self.outbox_rows())}\n{error}")

    def wait_until_some_paid(self, count: int = 20) -> None:
        """Return once the work is in full flow."""
        self.until(lambda: Counter(self.states().values())["paid"] >= count, f"{count} orders to be paid")

    def require_books_in_order(self, menu_id: int, *, quantity: int, stock: int = 1_000_000) -> None:
        """Every order is paid, with exactly one reservation and one payment of its total at the siblings."""
        ids = sorted(self.states())
        reserved = self.sandbox("menu", "orders")
        assert sorted(row["order_id"] for row in reserved) == ids
        assert {(row["answer"], row["released"]) for row in reserved} == {("MenuReserved", 0)}
        menu = next(row for row in self.sandbox("menu", "menus") if row["id"] == menu_id)
        assert menu["stock"] == stock - quantity * len(ids)
        payments = self.sandbox("payment", "payments")
        assert sorted(row["order_id"] for row in payments) == ids
        assert {row["status"] for row in payments} == {"paid"}
        assert {float(row["amount"]) for row in payments} == {float(menu["price"]) * quantity}

    def stop_all(self) -> dict[str, int]:
        """SIGTERM to everything that runs; the exit statuses."""
        running = [each for each in self.processes if each.is_running]
        with ThreadPoolExecutor(len(running)) as pool:
            statuses = list(pool.map(partial(Process.terminate, seconds=STOP_SECONDS), running))
        return {each.log.name: status for each, status in zip(running, statuses, strict=True)}


@contextlib.contextmanager
def _engine(url: str) -> Iterator[sa.Engine]:
    """A plain engine: a look from outside."""
    more = {} if url.startswith("sqlite") else {"connect_args": {"client_encoding": "utf8"}}
    engine = sa.create_engine(url, **more)
    try:
        yield engine
    finally:
        engine.dispose()


def free_ports(count: int) -> list[int]:
    """From below the range that the kernel gives to outgoing connections, one of which could take a port first."""
    with contextlib.ExitStack() as held:  # all held at once, so that they differ
        ports: list[int] = []
        for port in random.sample(range(20_000, 32_000), 1000):
            if len(ports) == count:
                break
            with contextlib.suppress(OSError):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
        return ports
