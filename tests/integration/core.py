"""What the tests of the messaging core share: orders and replies, what the database holds, the broker, threads."""

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pika
import psycopg
import pytest
import sqlalchemy as sa
from pika.adapters.blocking_connection import BlockingChannel
from structlog.testing import CapturingLogger

from consumers.worker import Worker
from order_service import handlers
from order_service import unit_of_work as service
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.envelope import Rejection, Reply
from order_service.contract.events import EVENTS, INCOMING
from order_service.contract.outgoing import Outgoing
from order_service.domain import messages
from order_service.domain.order import Order
from order_service.domain.saga import Policy
from order_service.storage import bulk, history
from order_service.storage import orders as order_rows
from order_service.storage import outbox as outbox_rows
from order_service.storage.bulk import Take
from order_service.storage.database import Database
from order_service.storage.tables import compensations, outbox
from order_service.unit_of_work import UnitOfWork
from tests import builders
from tests.builders import NOW, REQUEST_TOTAL

#: When everything is due that orders placed at NOW wait for; with microseconds, which both databases keep.
LATER = NOW + timedelta(hours=1, microseconds=678901)
#: The exchange of the publisher of each event, by routing key.
PUBLISHED_ON = {model.routing_key: topology.published_on(name) for name, model in EVENTS.items()}
#: A broker that cannot be reached.
UNREACHABLE_BROKER = "amqp://guest:guest@127.0.0.1:1/"
#: Marks for what exists on one kind of database only, or does not depend on the database.
POSTGRESQL_ONLY = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
SQLITE_ONLY = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

Eventually = Callable[..., Any]


# Orders and replies.


@contextlib.contextmanager
def unit_of_work(database: Database, *, now: datetime = NOW, policy: Policy | None = None) -> Iterator[UnitOfWork]:
    with service.unit_of_work(database, policy or builders.policy(), now=now) as work:
        yield work


def settings(amqp_url: str, database_url: str, **more: Any) -> Settings:
    return Settings(rabbitmq_url=amqp_url, database_url=database_url, **more)


@contextlib.contextmanager
def opened(url: str, *, pool_size: int = 15) -> Iterator[Database]:
    database = Database(url, pool_size=pool_size)
    try:
        yield database
    finally:
        database.dispose()


def place(
    database: Database, count: int = 1, *, reminders: int = 3, now: datetime = NOW, **placement: Any
) -> list[int]:
    """Orders of one portion of dish 1 and one of dish 2 each, placed long ago: all they wait for is due by now."""
    with unit_of_work(database, now=now, policy=builders.policy(reminders=reminders)) as work:
        return [order.id for order in handlers.place_orders(work, [builders.placement(**placement)] * count)]


def place_sent(database: Database, count: int = 1, **more: Any) -> list[int]:
    """Orders as `place`, whose events were published."""
    ids = place(database, count, **more)
    clear_outbox(database)
    return ids


def clear_outbox(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(sa.delete(outbox))


def apply(database: Database, *replies: Reply, now: datetime = NOW) -> list[Rejection]:
    with unit_of_work(database, now=now) as work:
        return handlers.apply_replies(work, replies)


def cancel(database: Database, order_id: int, *, now: datetime = NOW) -> None:
    with unit_of_work(database, now=now) as work:
        handlers.change_order(work, order_id, messages.Cancel())


def pass_deadlines(database: Database, now: datetime = LATER, *, limit: int = 100) -> int:
    with unit_of_work(database, now=now) as work:
        return handlers.pass_deadlines(work, Take(limit))


def note_returned(database: Database) -> None:
    """The broker returned each event in the outbox once."""
    with database.writing() as connection:
        connection.execute(sa.update(outbox).values(attempts=1))


def add_to_outbox(database: Database, messages: Sequence[Outgoing], now: datetime = NOW) -> None:
    with database.writing() as connection:
        for part in outbox_rows.inserts(messages, now):
            bulk.write(connection, part)


def reserved(order_id: int, reservation_id: str | None = "R1", *, id: str | None = None) -> Reply:
    return builders.reply(order_id, builders.menu_reserved(reservation_id), id=id)


def rejected(order_id: int) -> Reply:
    return builders.reply(order_id, builders.menu_rejected())


def completed(
    order_id: int, payment_id: str = "P1", amount: Decimal = REQUEST_TOTAL, *, id: str | None = None
) -> Reply:
    return builders.reply(order_id, builders.payment_completed(payment_id, amount), id=id)


def released(order_id: int, release_id: str, *, id: str | None = None) -> Reply:
    return builders.reply(order_id, messages.StockReleased(release_id), id=id)


def refunded(order_id: int, refund_id: str) -> Reply:
    return builders.reply(order_id, messages.PaymentRefunded(refund_id))


# What the database holds.


def get(database: Database, order_id: int) -> Order:
    with database.reading() as connection:
        return order_rows.read_orders(connection, [order_id])[order_id]


def states(database: Database, ids: Sequence[int]) -> set[str]:
    with database.reading() as connection:
        return {found.state.value for found in order_rows.read_orders(connection, ids).values()}


def rows(database: Database, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> list[sa.Row[Any]]:
    with database.reading() as connection:
        return list(connection.execute(sa.select(table).where(*conditions).order_by(table.c.id)))


def count(database: Database, table: sa.Table) -> int:
    with database.reading() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def history_of(database: Database, order_id: int) -> list[tuple[str, str | None]]:
    """Type and message id of each entry in the order's history, without the placing."""
    with database.reading() as connection:
        order = order_rows.read_orders(connection, [order_id])[order_id]
        found = history.read_history(connection, order, after=0, limit=10_000)
        return [(entry.type, entry.message_id) for _, entry in found]


def unsent_events(database: Database, *types: str) -> list[dict[str, Any]]:
    """The events in the outbox, dead letters apart, of these types or of all."""
    found = rows(database, outbox, outbox.c.exchange == topology.EXCHANGE)
    return [json.loads(row.body) for row in found if not types or row.type in types]


def compensation_rows(database: Database) -> list[sa.Row[Any]]:
    return rows(database, compensations)


# The broker.


class Message(NamedTuple):
    routing_key: str
    properties: pika.BasicProperties
    body: bytes

    @property
    def event(self) -> Any:
        return json.loads(self.body)


class RawHeader(NamedTuple):
    """The value of a message header as AMQP bytes, which clients in other languages may send."""

    encoded: bytes


class Wire:
    """The siblings' and the operator's side of the broker. A connection for each call: tests cut them all off."""

    def __init__(self, amqp_url: str) -> None:
        self._parameters = pika.URLParameters(amqp_url)

    @contextlib.contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        with contextlib.closing(pika.BlockingConnection(self._parameters)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            yield channel

    def declare(self) -> None:
        with self.channel() as channel:
            topology.declare(channel)

    def listen(self, *routing_keys: str, queue: str = "listener", **arguments: Any) -> None:
        """Declare a sibling's queue and bind it."""
        with self.channel() as channel:
            channel.queue_declare(queue, durable=True, arguments=arguments)
            for routing_key in routing_keys:
                channel.queue_bind(queue, topology.EXCHANGE, routing_key)
                if (exchange := PUBLISHED_ON.get(routing_key)) and exchange != topology.EXCHANGE:
                    channel.queue_bind(queue, exchange, routing_key)

    def take(self, queue: str = "listener") -> list[Message]:
        """Remove all messages from the queue."""
        found: list[Message] = []
        with self.channel() as channel:
            while True:
                method, properties, body = channel.basic_get(queue, auto_ack=True)
                if method is None or properties is None or body is None:
                    return found
                found.append(Message(str(method.routing_key), properties, body))

    def send(self, *replies: Reply) -> None:
        """Publish replies as events, each confirmed."""
        with self.channel() as channel:
            for reply in replies:
                properties = pika.BasicProperties(type=reply.type, message_id=reply.message_id, delivery_mode=2)
                channel.basic_publish(
                    topology.EXCHANGE, INCOMING[reply.type].routing_key, builders.event(reply), properties
                )

    def depth(self, *queues: topology.Queue) -> int:
        """Messages ready in these queues, or in all of the service's."""
        with self.channel() as channel:
            found = [channel.queue_declare(queue.name, passive=True) for queue in queues or topology.QUEUES]
            return sum(queue.method.message_count for queue in found)

    def send_raw(self, routing_key: str, body: bytes, **properties: Any) -> None:
        """Publish any bytes to the exchange; they must be routed to a queue."""
        with self.channel() as channel:
            made = pika.BasicProperties(**properties)
            channel.basic_publish(topology.EXCHANGE, routing_key, body, made, mandatory=True)


# Threads.


class Running:
    """A function that runs in a thread."""

    def __init__(self, run: Callable[[], object], stop: threading.Event) -> None:
        self.error: BaseException | None = None
        self._run, self._stop = run, stop
        self._thread = threading.Thread(target=self._keep_error, daemon=True)
        self._thread.start()

    def _keep_error(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, *, seconds: float = 15) -> None:
        """Set the stop event, wait for the end, and raise what `run` raised."""
        self._stop.set()
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"{self._run} did not stop within {seconds} s"
        if self.error:
            raise self.error

    def ended(self) -> BaseException | None:
        """What it ended with, once it has ended without being stopped."""
        return None if self._thread.is_alive() else self.error


@contextlib.contextmanager
def running(make: Callable[[threading.Event], Any]) -> Iterator[Running]:
    """Run `make(stop)` in a thread for the length of the block, at whose end it must stop without an error."""
    process = started(make)
    try:
        yield process
    except BaseException:
        with contextlib.suppress(BaseException):
            process.stop()
        raise
    process.stop()


def started(make: Callable[[threading.Event], Any]) -> Running:
    """Run `make(stop)` in a thread that is expected to end by itself."""
    stop = threading.Event()
    return Running(make(stop).run, stop)


#: `with start(batch_size=10):` runs a process with these settings for the length of the block.
Start = Callable[..., AbstractContextManager[Running]]


def worker(settings: Settings, database: Database) -> Callable[[threading.Event], Worker]:
    return lambda stop: Worker(settings, database, topology.QUEUES, stop)


def run_in_threads(*runs: Callable[[], object]) -> None:
    """Run all of these at the same time, and raise the first error."""
    threads = [Running(run, threading.Event()) for run in runs]
    for thread in threads:
        thread.stop(seconds=60)


# What is logged.


class Log(CapturingLogger):
    """Log records in memory."""

    def count(self, message: str) -> int:
        """How often this was logged."""
        return sum(call.args[:1] == (message,) for call in self.calls)

    def errors(self) -> list[dict[str, Any]]:
        """The fields of each record of level error, with its message as `event`."""
        return [{"event": call.args[0], **call.kwargs} for call in self.calls if call.method_name == "error"]


#: The modules whose records the fixture `log` captures.
LOGGING = (
    "consumers.worker", "consumers.menu_http.reservation", "publishers.relay", "publishers.pipeline",
    "publishers.deadlines", "order_service.process", "order_service.web.placing",
)  # fmt: skip


# Faults and costs of the database.


def shorten_lock_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a transaction fail soon on a locked SQLite file, for databases opened from now on."""
    monkeypatch.setattr("order_service.storage.database.SQLITE_BUSY_MS", 100)


@contextlib.contextmanager
def database_unreachable(url: str) -> Iterator[None]:
    """PostgreSQL refuses all connections; SQLite's file is locked by another writer."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(str(sa.make_url(url).database), isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            yield
            writer.execute("ROLLBACK")
        return
    _allow_connections(url, "false")
    end_connections(url)
    try:
        yield
    finally:
        _allow_connections(url, "true")


def end_idle_transactions(url: str) -> None:
    """End every client's connection whose transaction waits for its next statement."""
    idle = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s and state like 'idle in%%'"
    with _administrator(url) as administrator:
        administrator.execute(idle, [sa.make_url(url).database])


def end_connections(url: str) -> None:
    """End every client's connection to a PostgreSQL database."""
    sessions = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s"
    with _administrator(url) as administrator:
        administrator.execute(sessions, [sa.make_url(url).database])


@contextlib.contextmanager
def database_read_only(url: str) -> Iterator[None]:
    """New connections to a PostgreSQL database may only read, as to a server that became a standby."""
    name = sa.make_url(url).database
    with _administrator(url) as administrator:
        administrator.execute(f'alter database "{name}" set default_transaction_read_only to on')
        end_connections(url)
        try:
            yield
        finally:
            administrator.execute(f'alter database "{name}" reset default_transaction_read_only')


def _allow_connections(url: str, allowed: str) -> None:
    with _administrator(url) as administrator:
        administrator.execute(f'alter database "{sa.make_url(url).database}" allow_connections {allowed}')


def _administrator(url: str) -> psycopg.Connection[Any]:
    elsewhere = sa.make_url(url).set(drivername="postgresql", database="postgres")
    return psycopg.connect(elsewhere.render_as_string(hide_password=False), autocommit=True)


class RoundTrips:
    """Counts how often clients waited for PostgreSQL, BEGIN and COMMIT included, by libpq's trace."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def trace(self, connection: psycopg.Connection[Any]) -> None:
        connection.pgconn.trace(self._file)

    def count(self) -> int:
        """The round trips since the last call: each ends with the server's ReadyForQuery."""
        lines = self._path.read_text().splitlines()
        os.truncate(self._path, 0)
        return sum("ReadyForQuery" in line for line in lines)

    def close(self) -> None:
        os.close(self._file)
