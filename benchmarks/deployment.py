"""A system that is deployed for one run: a fresh vhost and database, its processes, and the stubs of its siblings."""

import contextlib
import math
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker

from benchmarks import load, servers, usage
from benchmarks.ours import PROJECT_DIR
from benchmarks.servers import Servers
from benchmarks.system import STUB_QUEUES, Message, System
from benchmarks.usage import Usage
from sandbox.servers import broker, process_group
from sandbox.servers.process_group import Command

#: Orders that are processed before a measure begins, to fill caches, open connections and prepare statements.
WARM_UP_ORDERS = 100
#: A run fails when the count that it waits for has not changed for this many seconds.
STALL_SECONDS = 30
POLL_SECONDS = 0.05
#: All clients send this header; systems that do not support it ignore it.
PREFER = "respond-async"
STUBS = "stubs"

SECONDS_TO_PAID = {
    "postgresql": "extract(epoch from paid_at - created_at)",
    "sqlite": "(julianday(paid_at) - julianday(created_at)) * 86400",
}


class RunFailed(Exception):
    """A run has no result; the text says why."""


@dataclass
class Deployment:
    """A system with its database and vhost, and the processes that were started."""

    system: System
    servers: Servers
    database_url: str
    amqp_url: str
    channel: BlockingChannel
    database: Any
    #: Orders up to this id were there before and are not counted as paid: counting millions would itself be a load.
    last_old_id: int
    running: dict[str, Popen[bytes]] = field(default_factory=dict)

    def count(self, sql: str) -> int:
        return int(self.database.execute(sql).fetchone()[0])

    def reserved(self) -> int:
        """The number of orders that the menu has reserved, in any later state too."""
        return self.count("select count(*) from orders where items is not null")

    def paid(self) -> int:
        return self.count(f"select count(*) from orders where {self._is_paid()}")

    def seconds_to_paid(self) -> list[float]:
        """The time from POST to paid of every paid order, in the order of the ids."""
        expression = SECONDS_TO_PAID[self.database_url.partition(":")[0]]
        rows = self.database.execute(f"select {expression} from orders where {self._is_paid()} order by id")
        return [float(seconds) for (seconds,) in rows]

    def _is_paid(self) -> str:
        return "state = 'paid'" + (f" and id > {self.last_old_id}" if self.last_old_id else "")

    def usage(self, *names: str) -> Usage:
        """The usage of these processes; without names, of all processes of the system."""
        wanted = names or tuple(name for name in self.running if name != STUBS)
        return usage.of_tree(*(self.running[name].pid for name in wanted))

    def database_cpu(self) -> float:
        """CPU seconds of the PostgreSQL server so far; NaN if it runs on another machine, and for SQLite."""
        if self.database_url.startswith(servers.SQLITE):
            return math.nan
        return usage.cpu_of_server("postgres", self.count("select pg_backend_pid()"))

    def wait_until(self, count: Callable[[], int], goal: int, *, what: str) -> float:
        """Return the moment at which the count has reached the goal. Raises RunFailed when progress stops before."""
        best, since = -1, time.monotonic()
        while True:
            now, reached = time.monotonic(), count()
            if reached >= goal:
                return now
            if reached > best:
                best, since = reached, now
            elif now - since > STALL_SECONDS:
                raise RunFailed(f"{reached} of {goal} {what}, and no progress for {STALL_SECONDS} s")
            self.require_alive()
            time.sleep(POLL_SECONDS)

    def require_alive(self) -> None:
        """Raise RunFailed when a process has ended."""
        for name, process in self.running.items():
            if process.poll() is not None:
                raise RunFailed(f"{name} ended with status {process.returncode}:\n{process_group.tail(self.log(name))}")

    def log(self, name: str) -> Path:
        return self.servers.out / "logs" / self.system.name / f"{name}.log"

    def start(self, name: str, stack: contextlib.ExitStack, *, copies: int = 1) -> list[str]:
        """Start this many processes of this name, which end with the stack; returns a name for each of them."""
        processes = {STUBS: ("{python}", "-m", "benchmarks.stubs", self.system.name), **self.system.processes}
        port = str(self.servers.port)
        argv = [part.replace("{python}", sys.executable).replace("{port}", port) for part in processes[name]]
        names = [name if copy == 1 else f"{name}-{copy}" for copy in range(1, copies + 1)]
        for each in names:
            command = Command(argv, self._environment(), self.log(each), cwd=PROJECT_DIR, stop_seconds=15)
            self.running[each] = stack.enter_context(process_group.serving(command))
            stack.callback(self.running.pop, each)
        return names

    def _environment(self) -> dict[str, str]:
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": str(PROJECT_DIR),
            "DATABASE_URL": self.database_url,
            "RABBITMQ_URL": self.amqp_url,
            "PORT": str(self.servers.port),
            "LOG_LEVEL": "WARNING",
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORDER_")}
        return inherited | own | dict(self.system.environment)

    def publish(self, messages: Iterable[Message]) -> None:
        """Publish these messages, and wait until all of them are in the reply queues, which were empty before."""
        published = 0
        for message in messages:
            self.channel.basic_publish(*message)
            published += 1
        self.wait_until(self._ready_replies, published, what="preloaded replies")

    def _ready_replies(self) -> int:
        queues = self.system.protocol.reply_queues
        return sum(self.channel.queue_declare(queue, passive=True).method.message_count for queue in queues)

    def wait_ready(self) -> None:
        """Wait until the API serves, and until all queues have consumers."""
        queues = (*STUB_QUEUES, *self.system.protocol.reply_queues)

        def ready() -> int:
            return self._is_serving() + sum(self._has_consumer(queue) for queue in queues)

        self.wait_until(ready, 1 + len(queues), what="endpoints and queues ready")

    def _is_serving(self) -> bool:
        url = f"http://127.0.0.1:{self.servers.port}/healthz"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
        return False

    def _has_consumer(self, queue: str) -> bool:
        try:
            return self.channel.queue_declare(queue, passive=True).method.consumer_count > 0
        except ChannelClosedByBroker:  # the queue is not declared yet: the broker closes the channel
            self.channel = self.channel.connection.channel()
            return False


@contextlib.contextmanager
def prepared(system: System, shared: Servers, database_url: str) -> Iterator[Deployment]:
    """Create the system's tables and queues, and those of the stubs; start no process."""
    shutil.rmtree(shared.out / "logs" / system.name, ignore_errors=True)
    with broker.fresh_vhost(shared.broker, "bench") as amqp_url:
        system.prepare(database_url, amqp_url)
        parameters = pika.URLParameters(amqp_url)
        parameters.heartbeat = 0  # the harness does not serve this connection for minutes
        connection = pika.BlockingConnection(parameters)
        channel = connection.channel()
        for queue, routing_key in STUB_QUEUES.items():
            channel.queue_declare(queue, durable=True)
            channel.queue_bind(queue, system.protocol.exchange, routing_key)
        with contextlib.closing(servers.connect(database_url)) as database:
            last_old_id = database.execute("select coalesce(max(id), 0) from orders").fetchone()[0]
            yield Deployment(system, shared, database_url, amqp_url, channel, database, last_old_id)
        with contextlib.suppress(AMQPError):
            connection.close()


@contextlib.contextmanager
def started(system: System, shared: Servers, database_url: str) -> Iterator[Deployment]:
    """Start all processes, and process the first orders to their end."""
    with prepared(system, shared, database_url) as deployment, contextlib.ExitStack() as stack:
        for name in (STUBS, *system.processes):
            deployment.start(name, stack)
        deployment.wait_ready()
        before = deployment.paid()
        due_times = [0.0] * WARM_UP_ORDERS
        load.post_orders(shared.port, due_times, connections=16, prefer=PREFER, users=system.users())
        deployment.wait_until(deployment.paid, before + WARM_UP_ORDERS, what="paid orders")
        servers.settle(database_url)
        yield deployment
