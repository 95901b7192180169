"""Messaging for a service: a transaction per batch of messages, an outbox, publishing with confirms."""

import json
import logging
import os
import random
import sqlite3
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker, UnroutableError

#: The exchange of the Order Service's events. A service publishes its replies to its own, `<name>.events`.
EXCHANGE = "restaurant.events"
ROUTING_KEYS = {
    "OrderCreated": "order.created",
    "StockReleaseRequested": "menu.release_requested",
    "MenuReserved": "menu.reserved",
    "MenuRejected": "menu.rejected",
    "StockReleased": "menu.released",
    "PaymentRequested": "payment.requested",
    "RefundRequested": "payment.refund_requested",
    "PaymentCompleted": "payment.completed",
    "PaymentFailed": "payment.failed",
    "PaymentRefunded": "payment.refunded",
}
OUTBOX = """
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, message_id TEXT NOT NULL, type TEXT NOT NULL, order_id INTEGER NOT NULL,
    body TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due_at REAL NOT NULL DEFAULT 0
);
"""
#: The headers of a message that its reply repeats: https://www.w3.org/TR/trace-context/
TRACE_HEADERS = ("traceparent", "tracestate")
#: Unacknowledged messages, and so the most in one transaction.
PREFETCH = 100
#: Seconds between two polls of the outbox. A delivery ends the wait at once.
POLL_SECONDS = 0.2

log = logging.getLogger(__name__)

#: The type and the data of a reply.
Event = tuple[str, dict[str, Any]]
#: Reads the data of an event, changes rows in the caller's transaction, and returns the reply, if there is one.
Handler = Callable[[sqlite3.Connection, dict[str, Any]], Event | None]


class Service:
    """Consumes the queue `<name>.orders` and publishes the outbox, with one connection in one thread.

    REPLY_EXCHANGE=restaurant.events publishes there instead of on `<name>.events`, for an older Order Service.
    """

    def __init__(self, name: str, database: Path, schema: str, handlers: Mapping[str, Handler]) -> None:
        self.name, self.database, self.handlers = name, database, handlers
        self.queue = f"{name}.orders"
        self.exchange = os.environ.get("REPLY_EXCHANGE") or f"{name}.events"
        self.amqp_url = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/"
        self.connected = False
        create(database, OUTBOX + schema)

    def run(self, stopping: threading.Event | None = None) -> None:
        """Serve until stopped. After a failure, reconnect: unacknowledged messages are delivered again."""
        stopping = stopping or threading.Event()
        logging.getLogger("pika").setLevel(logging.CRITICAL)  # it logs every failed attempt
        failures = 0
        with closing(connect(self.database)) as db:
            while not stopping.is_set():
                try:
                    self._serve(db, stopping)
                except Exception as error:
                    failures = 1 if self.connected else failures + 1
                    # pika turns the OSError of a reset just after the broker accepted the connection into a ValueError.
                    cause = error.__context__ if isinstance(error, ValueError) else error
                    expected = isinstance(cause, AMQPError | OSError | sqlite3.Error)
                    if is_reported(failures) or not expected:
                        log.warning("%s: not consuming, trying again: %r", self.name, error, exc_info=not expected)
                    self.connected = False
                    stopping.wait(backoff_seconds(failures))

    def _serve(self, db: sqlite3.Connection, stopping: threading.Event) -> None:
        parameters = connection_parameters(self.amqp_url)
        parameters.heartbeat = parameters.blocked_connection_timeout = 30
        parameters.client_properties = {"connection_name": self.name}
        deliveries: list[tuple[Any, ...]] = []
        with pika.BlockingConnection(parameters) as connection:
            channel = self._declare(connection)
            channel.basic_consume(self.queue, lambda *delivery: deliveries.append(delivery))
            self.connected = True
            log.info("%s: consuming", self.name)
            while not stopping.is_set():
                connection.process_data_events(time_limit=POLL_SECONDS)
                if deliveries:
                    self.handle(db, [(properties, body) for _, _, properties, body in deliveries])
                    # After a crash before this line, the messages are delivered again.
                    channel.basic_ack(deliveries[-1][1].delivery_tag, multiple=True)
                    deliveries.clear()
                self._publish_outbox(db, channel)
                if not channel.consumer_tags:
                    raise ConnectionError("the broker cancelled the consumer")  # its queue was deleted, for example

    def _declare(self, connection: pika.BlockingConnection) -> BlockingChannel:
        for exchange in (EXCHANGE, self.exchange):
            # Refused on a broker with rights, where only the Order Service declares exchanges.
            with suppress(ChannelClosedByBroker):
                connection.channel().exchange_declare(exchange, "topic", durable=True)
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_qos(prefetch_count=PREFETCH)
        # RabbitMQ 4 drops a message after 20 deliveries, unless the queue sets a limit.
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
        channel.queue_declare(self.queue, durable=True, arguments=arguments)
        for event_type in self.handlers:
            channel.queue_bind(self.queue, EXCHANGE, ROUTING_KEYS[event_type])
        return channel

    def handle(self, db: sqlite3.Connection, messages: Sequence[tuple[pika.BasicProperties, bytes]]) -> None:
        """Handle the messages in one transaction. One that cannot be handled changes nothing and is dropped.

        An error of the database rolls all of them back and is raised.
        """
        with transaction(db):
            for properties, body in messages:
                db.execute("SAVEPOINT message")
                try:
                    event = json.loads(body)
                    if reply := self.handlers[event["type"]](db, event["data"]):
                        self.enqueue(db, reply, trace_context(properties.headers or {}))
                except sqlite3.Error:
                    raise
                except Exception as error:
                    db.execute("ROLLBACK TO message")
                    log.warning("%s: message dropped: %r: %r", self.name, body[:200], error)
                db.execute("RELEASE message")

    def enqueue(
        self,
        db: sqlite3.Connection,
        reply: Event,
        trace: Mapping[str, str] | None = None,
        message_id: str = "",
        due_at: float = 0,
    ) -> None:
        """Put an event into the outbox, in the caller's transaction. It is published at `due_at` (Unix time)."""
        event_type, data = reply
        message_id, order_id = message_id or str(uuid.uuid4()), data["order_id"]
        event = {
            "specversion": "1.0",
            "id": message_id,
            "source": f"/{self.name}",
            "type": event_type,
            "subject": str(order_id),
            "time": datetime.now(UTC).isoformat(),
            "datacontenttype": "application/json",
            "correlationid": str(order_id),
            **(trace or {}),
            "data": data,
        }
        db.execute(
            "INSERT INTO outbox (message_id, type, order_id, body, due_at) VALUES (?, ?, ?, ?, ?)",
            [message_id, event_type, order_id, json.dumps(event), due_at],
        )

    def _publish_outbox(self, db: sqlite3.Connection, channel: BlockingChannel) -> None:
        """Publish what is due. A row is deleted after its confirm; without a queue for it, it is published later."""
        now, changes = time.time(), list[tuple[str, list[Any]]]()
        query = "SELECT * FROM outbox WHERE due_at <= ? ORDER BY seq LIMIT ?"
        for row in db.execute(query, [now, 2 * PREFETCH]).fetchall():
            properties = pika.BasicProperties(
                type=row["type"],
                message_id=row["message_id"],
                correlation_id=str(row["order_id"]),
                app_id=self.name,
                timestamp=int(now),
                content_type="application/cloudevents+json",
                delivery_mode=2,
                headers=trace_context(json.loads(row["body"])),
            )
            key = ROUTING_KEYS[row["type"]]
            try:
                channel.basic_publish(self.exchange, key, row["body"].encode(), properties, mandatory=True)
                changes.append(("DELETE FROM outbox WHERE seq = ?", [row["seq"]]))
            except UnroutableError:
                if is_reported(row["attempts"] + 1):
                    log.warning("%s: no queue is bound to %s, trying again", self.name, key)
                later = [now + backoff_seconds(row["attempts"] + 1), row["seq"]]
                changes.append(("UPDATE outbox SET attempts = attempts + 1, due_at = ? WHERE seq = ?", later))
        if changes:
            with transaction(db):
                for statement, values in changes:
                    db.execute(statement, values)


def trace_context(headers: Mapping[str, Any]) -> dict[str, str]:
    """The trace context among the headers of a message or the attributes of an event."""
    return {name: headers[name] for name in TRACE_HEADERS if isinstance(headers.get(name), str)}


def connection_parameters(amqp_url: str) -> pika.URLParameters:
    """How to connect. amqps:// checks the broker's certificate and name, with the CAs of the system or your own."""
    parameters = pika.URLParameters(amqp_url)
    if parameters.ssl_options:
        context = ssl.create_default_context(cafile=os.environ.get("RABBITMQ_CA_FILE") or None)
        if certificate := os.environ.get("RABBITMQ_CERT_FILE"):
            context.load_cert_chain(certificate, os.environ.get("RABBITMQ_KEY_FILE") or None)
        parameters.ssl_options = pika.SSLOptions(context, parameters.host)
    return parameters


def backoff_seconds(attempts: int) -> float:
    """The time to wait after this many failed attempts: up to 5 s, and random to spread reconnects."""
    return random.uniform(0.1, min(5.0, 0.1 * 2 ** min(attempts, 10)))  # noqa: S311


def is_reported(failures: int) -> bool:
    """Whether this failure of several in a row is logged: the first, then at growing intervals up to ten minutes."""
    return failures in (1, 10, 30, 100) or failures % 250 == 0


def connect(database: Path) -> sqlite3.Connection:
    """A connection for one thread. A commit is on disk when it returns."""
    db = sqlite3.connect(database, timeout=10, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA synchronous = FULL")
    return db


def create(database: Path, schema: str) -> None:
    """Create the file and its tables. May be repeated."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(connect(database)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(schema)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Commit the block, or roll it back. IMMEDIATE because a write after a read fails if another writer was first."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
