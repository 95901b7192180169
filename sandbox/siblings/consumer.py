"""Broker -> service: takes what lies in the queue, answers it in one transaction, then acknowledges it."""

import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pika
import structlog
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError
from pika.exchange_type import ExchangeType
from pika.spec import Basic, BasicProperties

from sandbox.siblings.events import EXCHANGE, ROUTING_KEYS, Envelope, Event, enqueue, parse_json
from sandbox.siblings.faults import Faults
from sandbox.siblings.link import Link, parameters
from sandbox.siblings.store import connect, transaction

log = structlog.get_logger()

#: Messages held at a time, and so the largest batch: from 100 to 300 the throughput of small ones levels out.
PREFETCH = 100
#: Nothing collects dead letters here, so at the limit (20 by default from RabbitMQ 4.0) the broker would drop
#: what a few crashes of ours brought back. Out of reach instead: 3.10 has no word for unlimited.
DELIVERY_LIMIT = 1_000_000
#: How long one look at the connection lasts, in seconds; deliveries end it at once.
LOOK_SECONDS = 0.2

#: Reads the data of one event, changes the rows it must, says what there is to answer. Runs in a transaction.
Handler = Callable[[sqlite3.Connection, dict[str, Any]], list[Event]]


@dataclass(frozen=True)
class Service:
    """One sibling as the broker knows it."""

    name: str
    queue: str
    handlers: Mapping[str, Handler]
    database: Path
    #: What it does wrong on purpose, and by fault and event type the handlers that do.
    faults: Faults = field(default_factory=Faults)
    faulty: Mapping[tuple[str, str], Handler] = field(default_factory=dict)


@dataclass(frozen=True)
class Delivery:
    """A message as it came in."""

    tag: int
    properties: BasicProperties
    body: bytes

    @property
    def traceparent(self) -> str | None:
        """The trace it belongs to, which its answers continue."""
        value = (self.properties.headers or {}).get("traceparent")
        return value if isinstance(value, str) else None


def answer(db: sqlite3.Connection, service: Service, deliveries: Sequence[Delivery]) -> None:
    """Handle the deliveries in one transaction, answers in the outbox.

    One that cannot be read is logged and left behind: the sandbox has no dead-letter queue. Trouble with the
    database is no message's fault and is raised, nothing of the batch done.
    """
    with transaction(db):
        for delivery in deliveries:
            db.execute("SAVEPOINT delivery")
            try:
                answers = handle(db, service, delivery)
                enqueue(db, service.name, answers, delivery.traceparent, service.faults.departures)
            except sqlite3.Error:
                raise
            except Exception as error:
                db.execute("ROLLBACK TO delivery")
                log.warning(
                    "message dropped",
                    message_id=delivery.properties.message_id,
                    correlation_id=delivery.properties.correlation_id,
                    error=str(error),
                    exc_info=not isinstance(error, ValueError),
                )
            db.execute("RELEASE delivery")


def handle(db: sqlite3.Connection, service: Service, delivery: Delivery) -> list[Event]:
    """What the service answers to one delivery. Raises ValueError when it cannot be read."""
    envelope = Envelope.model_validate(parse_json(delivery.body))
    handler = service.handlers.get(envelope.type)
    if handler is None:
        raise ValueError(f"unknown type {envelope.type}")
    return service.faults.choose(envelope.type, handler, service.faulty)(db, envelope.data)


class Consumer:
    """Runs in a thread and over a connection of its own until stopped, however often the broker goes."""

    def __init__(self, service: Service, amqp_url: str, answered: Callable[[], None]) -> None:
        self._service = service
        self._amqp_url = amqp_url
        self._answered = answered
        self._stopping = threading.Event()
        self.link = Link(f"{service.name} consumer")

    def stop(self) -> None:
        """Finish the batch in hand and end. What is not acknowledged goes back to the queue."""
        self._stopping.set()

    def run(self) -> None:
        """Consume until stopped."""
        with closing(connect(self._service.database)) as db:
            while not self._stopping.is_set():
                try:
                    self._consume(db)
                except (AMQPError, OSError, sqlite3.Error) as error:
                    self._stopping.wait(self.link.broke(error))
                except Exception as error:
                    log.exception("consumer failed", connection=self.link.connection_name)
                    self._stopping.wait(self.link.broke(error))

    def _consume(self, db: sqlite3.Connection) -> None:
        chosen = parameters(self._amqp_url, self.link.connection_name)
        connection = pika.BlockingConnection(chosen)
        try:
            channel = connection.channel()
            batch = self._subscribe(channel)
            while not self._stopping.is_set():
                connection.process_data_events(time_limit=LOOK_SECONDS)
                self._settle(db, channel, batch)
        finally:
            with suppress(AMQPError):
                connection.close()

    def _subscribe(self, channel: BlockingChannel) -> list[Delivery]:
        """Declare what is ours and start consuming. Returns the list that deliveries are appended to."""
        batch: list[Delivery] = []

        def take(_: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
            batch.append(Delivery(cast(int, method.delivery_tag), properties, body))

        declare(channel, self._service)
        channel.basic_qos(prefetch_count=PREFETCH)
        channel.basic_consume(self._service.queue, take, consumer_tag=self._service.name)
        return batch

    def _settle(self, db: sqlite3.Connection, channel: BlockingChannel, batch: list[Delivery]) -> None:
        if batch:
            answer(db, self._service, batch)
            channel.basic_ack(batch[-1].tag, multiple=True)
            batch.clear()
            self._answered()
        if not channel.consumer_tags:
            # The queue was deleted, say. pika returns from its loop as if nothing had happened.
            raise ConnectionError("the broker cancelled the consumer")
        self.link.works()


def declare(channel: BlockingChannel, service: Service) -> None:
    """Our queue with its bindings, and the exchange, which may be missing: services start in any order."""
    channel.exchange_declare(EXCHANGE, ExchangeType.topic, durable=True)
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
    channel.queue_declare(service.queue, durable=True, arguments=arguments)
    for event_type in service.handlers:
        channel.queue_bind(service.queue, EXCHANGE, ROUTING_KEYS[event_type])
