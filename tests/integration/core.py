"""What the tests of the messaging core share: orders and replies as they need them, the broker's side, threads."""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import pika
import psycopg
import sqlalchemy as sa
from pika.adapters.blocking_connection import BlockingChannel
from structlog.testing import CapturingLogger

from consumers.worker import Worker
from order_service import handlers
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.envelope import Rejection, Reply
from order_service.contract.outgoing import Outgoing
from order_service.domain import messages
from order_service.domain.messages import Item
from order_service.domain.order import Order
from order_service.domain.saga import Policy
from order_service.storage import bulk
from order_service.storage import orders as order_rows
from order_service.storage import outbox as outbox_module
from order_service.storage.database import Database
from order_service.storage.tables import compensations, outbox
from order_service.unit_of_work import UnitOfWork
from order_service.unit_of_work import unit_of_work as service_unit_of_work
from tests import builders

#: When the tests' orders are placed: long ago, so that whatever they wait for is due for a running process.
NOW = datetime(2025, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)
#: When everything they wait for is due.
LATER = NOW + timedelta(hours=1)
TRACE = builders.TRACE
SOTO, RENDANG = Item(1, "Soto", Decimal("18000"), 15), Item(2, "Rendang", Decimal("20000.5"), 7)
TOTAL = Decimal("38000.5")

Eventually = Callable[..., Any]

data, event, policy = builders.event_data, builders.event, builders.policy


@contextlib.contextmanager
def unit_of_work(database: Database, *, now: datetime = NOW, policy: Policy | None = None) -> Iterator[UnitOfWork]:
    with service_unit_of_work(database, policy or builders.policy(), now=now) as work:
        yield work


def settings(amqp_url: str, database_url: str, **more: Any) -> Settings:
    return Settings(rabbitmq_url=amqp_url, database_url=database_url, **more)


@contextlib.contextmanager
def opened(url: str, *, pool_size: int = 5) -> Iterator[Database]:
    database = Database(url, pool_size=pool_size)
    try:
        yield database
    finally:
        database.dispose()


def place(database: Database, count: int = 1, *, reminders: int = 3, now: datetime = NOW) -> list[int]:
    """Orders of one Soto and one Rendang each."""
    with unit_of_work(database, now=now, policy=policy(reminders=reminders)) as work:
        return [order.id for order in handlers.place_orders(work, [builders.placement()] * count)]


def place_sent(database: Database, count: int = 1, **more: Any) -> list[int]:
    """Orders as `place`, whose events have left."""
    ids = place(database, count, **more)
    clear_outbox(database)
    return ids


def clear_outbox(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(sa.delete(outbox))


def apply(database: Database, *replies: Reply, now: datetime = NOW) -> list[Rejection]:
    with unit_of_work(database, now=now) as work:
        return handlers.apply_replies(work, replies)


def add_to_outbox(database: Database, messages: Sequence[Outgoing], now: datetime = NOW) -> None:
    with database.writing() as connection:
        for part in outbox_module.inserts(messages, now):
            bulk.write(connection, part)


def reserved(order_id: int, reservation_id: str | None = "r1", *, id: str = "menu-1") -> Reply:
    return builders.reply(order_id, builders.menu_reserved(reservation_id, SOTO, RENDANG), id=id)


def rejected(order_id: int, *, id: str = "menu-1") -> Reply:
    return builders.reply(order_id, builders.menu_rejected(), id=id)


def completed(order_id: int, payment_id: str = "p1", amount: Decimal = TOTAL, *, id: str = "pay-1") -> Reply:
    return builders.reply(order_id, builders.payment_completed(payment_id, amount), id=id)


def released(order_id: int, release_id: str, *, id: str = "released-1") -> Reply:
    return builders.reply(order_id, messages.StockReleased(release_id), id=id)


def refunded(order_id: int, refund_id: str, *, id: str = "refunded-1") -> Reply:
    return builders.reply(order_id, messages.PaymentRefunded(refund_id), id=id)


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


def leaving(database: Database, *types: str) -> list[dict[str, Any]]:
    """The events in the outbox, dead letters apart, of these types or of all."""
    found = rows(database, outbox, outbox.c.exchange != "")
    return [json.loads(row.body) for row in found if not types or row.type in types]


def given_back(database: Database) -> list[sa.Row[Any]]:
    return rows(database, compensations)


ROUTING_KEYS = {
    "MenuReserved": "menu.reserved",
    "MenuRejected": "menu.rejected",
    "StockReleased": "menu.released",
    "PaymentCompleted": "payment.completed",
    "PaymentRefunded": "payment.refunded",
}


class Message(NamedTuple):
    routing_key: str
    properties: pika.BasicProperties
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


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
        """A sibling's queue."""
        with self.channel() as channel:
            channel.queue_declare(queue, durable=True, arguments=arguments)
            for routing_key in routing_keys:
                channel.queue_bind(queue, topology.EXCHANGE, routing_key)

    def take(self, queue: str = "listener") -> list[Message]:
        """Everything that waits in the queue now."""
        found = []
        with self.channel() as channel:
            while True:
                method, properties, body = channel.basic_get(queue, auto_ack=True)
                if method is None or properties is None or body is None:
                    return found
                found.append(Message(str(method.routing_key), properties, body))

    def send(self, *replies: Reply) -> None:
        """Publish replies as events, each confirmed: a busy broker may forget what it did not confirm."""
        with self.channel() as channel:
            for reply in replies:
                properties = pika.BasicProperties(type=reply.type, message_id=reply.message_id, delivery_mode=2)
                channel.basic_publish(topology.EXCHANGE, ROUTING_KEYS[reply.type], event(reply), properties)

    def send_raw(self, routing_key: str, body: bytes, **properties: Any) -> None:
        """Publish anything at all to the exchange."""
        with self.channel() as channel:
            made = pika.BasicProperties(**properties)
            channel.basic_publish(topology.EXCHANGE, routing_key, body, made, mandatory=True)


class Running:
    """Something with a `run` method, in a thread of its own."""

    def __init__(self, runnable: Any, stop: threading.Event) -> None:
        self.error: BaseException | None = None
        self.stopped = stop
        self._run = runnable.run
        self._thread = threading.Thread(target=self._guarded, name=type(runnable).__name__, daemon=True)
        self._thread.start()

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, *, seconds: float = 15) -> None:
        """Ask it to end, wait for it, and raise what it raised."""
        self.stopped.set()
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"{self._thread.name} did not stop within {seconds} s"
        if self.error:
            raise self.error

    def ended(self) -> BaseException | None:
        """What it ended with, once it has ended by itself."""
        return None if self._thread.is_alive() else self.error


@contextlib.contextmanager
def running(make: Callable[[threading.Event], Any]) -> Iterator[Running]:
    """Run `make(stop)` in a thread for the length of the block, at whose end it must stop without an error."""
    stop = threading.Event()
    process = Running(make(stop), stop)
    try:
        yield process
    except BaseException:
        stop.set()
        process._thread.join(15)
        raise
    process.stop()


def worker(settings: Settings, database: Database) -> Callable[[threading.Event], Worker]:
    return lambda stop: Worker(settings, database, topology.QUEUES, stop)


def recorded(module: str, monkeypatch: Any) -> CapturingLogger:
    """What a module logs from now on."""
    log = CapturingLogger()
    monkeypatch.setattr(f"{module}.log", log)
    return log


def said(log: CapturingLogger, text: str) -> int:
    """How often this was logged."""
    return sum(call.args[:1] == (text,) for call in log.calls)


def be_impatient(monkeypatch: Any) -> None:
    """A locked SQLite file shows within a moment, for databases opened from now on."""
    monkeypatch.setattr("order_service.storage.database.SQLITE_BUSY_MS", 100)


@contextlib.contextmanager
def database_away(url: str) -> Iterator[None]:
    """PostgreSQL lets nobody in; SQLite's file is locked by somebody who takes long."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(str(sa.make_url(url).database), isolation_level=None)) as somebody:
            somebody.execute("BEGIN IMMEDIATE")
            yield
            somebody.execute("ROLLBACK")
        return
    _allow_connections(url, "false")
    end_connections(url)
    try:
        yield
    finally:
        _allow_connections(url, "true")


def end_connections(url: str) -> None:
    """Cut off every client of a PostgreSQL database."""
    sessions = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s"
    with _administrator(url) as administrator:
        administrator.execute(sessions, [sa.make_url(url).database])


def _allow_connections(url: str, allowed: str) -> None:
    with _administrator(url) as administrator:
        administrator.execute(f'alter database "{sa.make_url(url).database}" allow_connections {allowed}')


def _administrator(url: str) -> psycopg.Connection[Any]:
    elsewhere = sa.make_url(url).set(drivername="postgresql", database="postgres")
    return psycopg.connect(elsewhere.render_as_string(hide_password=False), autocommit=True)
