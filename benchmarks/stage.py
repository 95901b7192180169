"""A system on its stage: a fresh vhost and database, its processes, and the stubs of its siblings."""

import contextlib
import math
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from benchmarks import database, load, usage
from benchmarks.system import Publish, System
from benchmarks.usage import Usage
from sandbox.processes import PROJECT_DIR
from sandbox.servers import broker, postgres
from sandbox.servers import process_group as lifeline
from sandbox.servers.process_group import Command

#: Orders that go through everything before a measure begins: caches, connections and prepared statements are there.
WARM_UP = 100
READY_SECONDS = 60
#: Without one more paid order for so long, a run is given up.
STALL_SECONDS = 30
POLL_SECONDS = 0.05
#: Every system logs what is wrong, and nothing else.
LOG_LEVEL = "WARNING"


class Failed(Exception):
    """A run has no result; the text says why."""


@dataclass(frozen=True)
class House:
    """What all runs share: the servers, and where logs and results go."""

    broker: broker.Broker
    postgres: postgres.Server
    out: Path
    #: The port of the APIs; one system runs at a time.
    port: int


@dataclass
class Stage:
    """A running system. What it counts and uses can be asked at any moment."""

    system: System
    house: House
    database_url: str
    amqp_url: str
    channel: BlockingChannel
    run: Callable[[str], database.Rows]
    running: dict[str, Popen[bytes]] = field(default_factory=dict)
    stubs: Popen[bytes] | None = None

    @property
    def prefer(self) -> str:
        """All clients ask alike; who does not know the header ignores it."""
        return "respond-async"

    def count(self, sql: str) -> int:
        return int(self.run(sql)[0][0])

    def paid(self) -> int:
        return self.count(self.system.count_paid)

    def seconds_to_paid(self) -> list[float]:
        """Of every paid order, by its id, the time from the POST on."""
        kind = "sqlite" if self.database_url.startswith("sqlite") else "postgresql"
        return [float(row[0]) for row in self.run(self.system.times[kind])]

    def usage(self, *names: str) -> Usage:
        """What the system's processes use; with names, those alone."""
        return usage.of_tree(*(each.pid for name, each in self.running.items() if not names or name in names))

    def database_cpu(self) -> float:
        """CPU seconds of the whole PostgreSQL server so far; NaN where it is not on this machine, or not PostgreSQL."""
        if self.database_url.startswith("sqlite"):
            return math.nan
        return usage.of_server("postgres", self.count("select pg_backend_pid()"))

    def stubs_cpu(self) -> float:
        return usage.of_tree(self.stubs.pid).cpu_seconds if self.stubs else 0.0

    def wait_paid(self, orders: int) -> float:
        """Return the moment at which so many orders are paid. Raises Failed when there is no progress any more."""
        return self.wait_until(self.paid, orders, what="paid orders")

    def wait_until(self, count: Callable[[], int], goal: int, *, what: str) -> float:
        """Return the moment at which the count has reached the goal. Raises Failed when it stands still before."""
        best, since = -1, time.monotonic()
        while True:
            now, reached = time.monotonic(), count()
            if reached >= goal:
                return now
            if reached > best:
                best, since = reached, now
            elif now - since > STALL_SECONDS:
                raise Failed(f"{reached} of {goal} {what} after {STALL_SECONDS} s without one more")
            self.require_alive()
            time.sleep(POLL_SECONDS)

    def require_alive(self) -> None:
        """Raise Failed when a process has ended by itself."""
        for name, process in self.running.items():
            if process.poll() is not None:
                raise Failed(f"{name} ended with status {process.returncode}:\n{lifeline.tail(self.log(name))}")
        if self.stubs and self.stubs.poll() is not None:
            raise Failed(f"the stubs ended:\n{lifeline.tail(self.log('stubs'))}")

    def log(self, name: str) -> Path:
        return self.house.out / "logs" / self.system.name / f"{name}.log"

    def start(self, name: str, stack: contextlib.ExitStack, *, copy: int = 1) -> str:
        """Start one more process of this name; returns the name of this very one."""
        values = {"python": sys.executable, "port": str(self.house.port)}
        argv = [_filled(part, values) for part in self.system.processes[name]]
        own_name = name if copy == 1 else f"{name}-{copy}"
        command = Command(argv, _environment(self), self.log(own_name), cwd=PROJECT_DIR, stop_seconds=15)
        self.running[own_name] = stack.enter_context(lifeline.serving(command))
        return own_name

    def start_stubs(self, stack: contextlib.ExitStack) -> None:
        argv = [sys.executable, "-m", "benchmarks.stubs", self.system.name]
        command = Command(argv, _environment(self), self.log("stubs"), cwd=PROJECT_DIR, stop_seconds=5)
        self.stubs = stack.enter_context(lifeline.serving(command))

    def waiting(self, *queues: str) -> int:
        """Messages ready in these queues."""
        return sum(self.channel.queue_declare(queue, passive=True).method.message_count for queue in queues)

    def fill(self, messages: Iterator[Publish], queues: tuple[str, ...]) -> int:
        """Publish these and return how many they were, once all of them wait in the queues."""
        count = 0
        for message in messages:
            self.channel.basic_publish(message.exchange, message.routing_key, message.body, message.properties)
            count += 1
        self.wait_until(lambda: self.waiting(*queues), count, what="preloaded messages")
        return count


@contextlib.contextmanager
def prepared(system: System, house: House, database_url: str) -> Iterator[Stage]:
    """The system's tables and queues, and those of the stubs; nothing runs yet."""
    shutil.rmtree(house.out / "logs" / system.name, ignore_errors=True)
    with broker.fresh_vhost(house.broker, "bench") as amqp_url:
        system.prepare(database_url, amqp_url)
        parameters = pika.URLParameters(amqp_url)
        parameters.heartbeat = 0  # the harness is busy elsewhere for minutes
        connection = pika.BlockingConnection(parameters)
        with database.reader(database_url) as run:
            stage = Stage(system, house, database_url, amqp_url, connection.channel(), run)
            _declare(stage)
            yield stage
        with contextlib.suppress(AMQPError):
            connection.close()


@contextlib.contextmanager
def complete(
    system: System, house: House, database_url: str, *, copies: Mapping[str, int] | None = None
) -> Iterator[Stage]:
    """Everything runs and has brought its first orders to their end. More copies of a process can be asked for."""
    with prepared(system, house, database_url) as stage, contextlib.ExitStack() as stack:
        stage.start_stubs(stack)
        for name in system.processes:
            for copy in range(1, (copies or {}).get(name, 1) + 1):
                stage.start(name, stack, copy=copy)
        _wait_ready(stage)
        before = stage.paid()
        load.as_fast_as_answered(house.port, orders=WARM_UP, connections=16, prefer=stage.prefer)
        stage.wait_paid(before + WARM_UP)
        database.settle(database_url)
        yield stage


def _declare(stage: Stage) -> None:
    for queue, exchange, routing_key in stage.system.wire.queues:
        stage.channel.queue_declare(queue, durable=True)
        if exchange:
            stage.channel.queue_bind(queue, exchange, routing_key)


def _wait_ready(stage: Stage) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not (_answers(stage) and _heard(stage)):
        stage.require_alive()
        if time.monotonic() > deadline:
            raise Failed(f"{stage.system.name} was not ready after {READY_SECONDS} s; see {stage.log('*')}")
        time.sleep(POLL_SECONDS)


def _answers(stage: Stage) -> bool:
    url = f"http://127.0.0.1:{stage.house.port}{stage.system.ready_path}"
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def _heard(stage: Stage) -> bool:
    """Whether somebody consumes from every queue."""
    queues = [queue for queue, _, _ in stage.system.wire.queues] + list(stage.system.wire.reply_queues)
    try:
        return all(stage.channel.queue_declare(queue, passive=True).method.consumer_count for queue in queues)
    except pika.exceptions.ChannelClosedByBroker:  # not declared yet: the channel ends with the question
        stage.channel = stage.channel.connection.channel()
        return False


def _filled(part: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        part = part.replace(f"{{{name}}}", value)
    return part


def _environment(stage: Stage) -> dict[str, str]:
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(PROJECT_DIR),
        "DATABASE_URL": stage.database_url,
        "RABBITMQ_URL": stage.amqp_url,
        "PORT": str(stage.house.port),
        "LOG_LEVEL": LOG_LEVEL,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORDER_")}
    return inherited | own | dict(stage.system.environment)
