"""The consumer's loop: whatever has arrived becomes one batch, one transaction, one ack."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import pika
import structlog
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

from consumers.batch import apply_batch, bury_one, is_databases_fault, try_suspect
from consumers.headers import tolerate_odd_headers
from order_service import process as startup
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.envelope import Delivery
from order_service.storage.database import Database

log = structlog.get_logger(__name__)
#: The longest the loop rests before it looks whether it should stop, in seconds.
IDLE_SECONDS = 0.5
#: A message that came back this often may be what ends the process, so it is taken alone.
#: https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
SUSPECT_AFTER = 3


class Cancelled(Exception):
    """The broker ended our subscription, for example because the queue was deleted."""


Arrived = tuple[int, Delivery, frozenset[str]]


class Worker:
    """Consumes until stopped, whatever happens to the broker or the database meanwhile."""

    def __init__(
        self, settings: Settings, database: Database, queues: Sequence[topology.Queue], stop: threading.Event
    ) -> None:
        self._settings, self._database, self._stop = settings, database, stop
        self._queues = queues
        self._arrived: list[Arrived] = []
        self._cancelled = self._away = False
        self._retries = startup.pauses()
        tolerate_odd_headers()

    def run(self) -> None:
        """Return once stopped, the batch in hand committed and acked. Exits with 2 if nothing is declared."""
        while not self._stop.is_set():
            try:
                self._consume()
            except topology.NotDeclared as error:
                startup.refuse(f"{error}: run `python -m order_service topology` first")
            except (*topology.UNREACHABLE, Cancelled) as error:
                if not self._away:
                    log.warning("the broker is away, waiting for it", error=startup.first_line(error))
                    pauses = startup.pauses()
                self._away = True
                self._stop.wait(next(pauses))
            except Exception:
                log.exception("the consumer failed, starting it anew")
                self._stop.wait(next(self._retries))

    def _consume(self) -> None:
        # Tags of an old channel mean nothing on a new one; the broker delivers those messages again.
        self._arrived, self._cancelled = [], False
        parameters = topology.connection_parameters(self._settings.rabbitmq_url, name="order-service consumer")
        connection = pika.BlockingConnection(parameters)
        try:
            channel = connection.channel()
            topology.check(channel, self._queues)
            self._subscribe(channel)
            log.info("consuming", queues=[queue.name for queue in self._queues])
            self._away = False
            while not self._stop.is_set():
                self._collect(connection)
                self._work_off(connection, channel)
        finally:
            with suppress(*topology.UNREACHABLE):
                connection.close()

    def _subscribe(self, channel: BlockingChannel) -> None:
        # Per consumer: RabbitMQ deprecates a limit shared by a channel.
        channel.basic_qos(prefetch_count=self._settings.batch_size)
        channel.add_on_cancel_callback(self._note_cancel)
        for queue in self._queues:
            channel.basic_consume(queue.name, self._keeper(queue), consumer_tag=f"order-service:{queue.name}")

    def _keeper(
        self, queue: topology.Queue
    ) -> Callable[[BlockingChannel, Basic.Deliver, BasicProperties, bytes], None]:
        """The callback only keeps: the work is done on the whole batch."""

        def keep(_: BlockingChannel, deliver: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
            count = (properties.headers or {}).get("x-delivery-count")
            returns = count if isinstance(count, int) else 0
            delivery = Delivery(queue.name, deliver.routing_key or "", body, _texts(properties), returns)
            self._arrived.append((deliver.delivery_tag or 0, delivery, queue.accepts))

        return keep

    def _note_cancel(self, _: object) -> None:
        self._cancelled = True

    def _collect(self, connection: pika.BlockingConnection) -> None:
        """Take what has arrived, up to a batch; rest only while there is nothing."""
        seen = len(self._arrived)
        connection.process_data_events(time_limit=0 if seen else IDLE_SECONDS)
        # pika hands over what one read of the socket brought, a dozen messages; a batch is worth a few reads.
        while seen < len(self._arrived) < self._settings.batch_size:
            seen = len(self._arrived)
            connection.process_data_events(time_limit=0)
        if self._cancelled:
            raise Cancelled("the broker cancelled our subscription; was the queue deleted?")

    def _work_off(self, connection: pika.BlockingConnection, channel: BlockingChannel) -> None:
        batch = self._arrived[: self._settings.batch_size]
        if not batch:
            return
        if any(delivery.returns >= SUSPECT_AFTER for _, delivery, _ in batch):
            self._isolate(connection, channel, batch)
            return
        try:
            apply_batch(self._database, self._settings, [(delivery, accepts) for _, delivery, accepts in batch])
        except Exception as error:
            if is_databases_fault(error):
                self._wait_for_database(connection, error)
                return
            log.exception("a batch failed, taking its messages one by one", messages=len(batch))
            self._isolate(connection, channel, batch)
        else:
            channel.basic_ack(batch[-1][0], multiple=True)
            del self._arrived[: len(batch)]
            self._retries = startup.pauses()

    def _isolate(self, connection: pika.BlockingConnection, channel: BlockingChannel, batch: list[Arrived]) -> None:
        """Find the message that breaks a batch and give up on it alone."""
        for tag, delivery, accepts in batch:
            try:
                self._apply_alone(delivery, accepts)
            except Exception as error:
                if not is_databases_fault(error):
                    raise
                self._wait_for_database(connection, error)
                return
            channel.basic_ack(tag)
            del self._arrived[0]

    def _apply_alone(self, delivery: Delivery, accepts: frozenset[str]) -> None:
        try:
            if delivery.returns >= SUSPECT_AFTER:
                try_suspect(self._database, self._settings, delivery, accepts)
                return
            apply_batch(self._database, self._settings, [(delivery, accepts)])
        except Exception as error:
            if is_databases_fault(error):
                raise
            log.exception("a message cannot be processed", queue=delivery.queue)
            bury_one(self._database, delivery, type(error).__name__)

    def _wait_for_database(self, connection: pika.BlockingConnection, error: Exception) -> None:
        """Nothing is acked and nothing dead-lettered for the database's sake; heartbeats go on meanwhile."""
        log.warning("the transaction failed, trying again", error=startup.first_line(error))
        connection.process_data_events(time_limit=next(self._retries))
        startup.wait_for_database(
            self._database, lambda seconds: connection.process_data_events(time_limit=seconds), self._stop.is_set
        )


def _texts(properties: BasicProperties) -> dict[str, str]:
    """The properties we use; pika leaves one that is not UTF-8 as bytes."""
    names = ("type", "message_id", "correlation_id", "app_id", "content_type")
    values = {name: getattr(properties, name) for name in names if getattr(properties, name) is not None}
    return {n: v.decode(errors="replace") if isinstance(v, bytes) else str(v) for n, v in values.items()}
