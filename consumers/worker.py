"""The batch consumer: the deliveries that have arrived become one batch, one transaction and one ack."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import pika
import structlog
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError
from pika.spec import Basic, BasicProperties

from consumers.batch import dead_letter_failed, process_batch, retry_poison_message
from order_service import vendor
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.dead_letters import original_routing_key
from order_service.contract.envelope import Delivery, shortened
from order_service.contract.headers import properties_of
from order_service.ops import Loop
from order_service.process import RECONNECT, StopFlag, first_line, supervise
from order_service.storage.database import Database
from order_service.storage.errors import is_transient
from order_service.storage.schema import wait_for_database

log = structlog.get_logger(__name__)
#: The longest wait for a delivery before the loop checks whether to stop, in seconds.
IDLE_SECONDS = 0.5
#: A message delivered this many times without an ack may end the process, and is processed alone.
#: https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
POISON_AFTER = 3
#: The most body bytes in one transaction, all of which may become dead letters. A body that is not oversized fits.
BATCH_BYTES = 16 * 1024 * 1024


class SubscriptionCancelled(AMQPError):
    """The broker cancelled the subscription, for example because the queue was deleted."""


class Worker:
    """Consumes queues until stopped, and reconnects after outages of the broker and the database."""

    def __init__(
        self, settings: Settings, database: Database, queues: Sequence[topology.Queue], stop: StopFlag
    ) -> None:
        self._settings, self._database, self._queues, self._stop = settings, database, queues, stop
        self._role = f"consumer of {', '.join(queue.name for queue in queues)}"
        self.loop = Loop(self._role, missing=f"{self._role}: not connected to the broker")
        #: Deliveries that are not acked yet, with their tags, in order of arrival.
        self._arrived: list[tuple[int, Delivery]] = []
        self._cancelled = False
        self._delays = RECONNECT.jittered()
        vendor.tolerate_unusual_headers()

    def run(self) -> None:
        """Return once stopped, after the current batch is committed and acked. Exits with 2 without the topology."""
        supervise(self._consume, self._stop, what="the broker", unreachable=topology.UNREACHABLE, restart=True)

    def _consume(self, working: Callable[[], None]) -> None:
        # The tags of an old channel are invalid on a new one; the broker delivers those messages again.
        self._arrived, self._cancelled = [], False
        with self.loop.session(), topology.connected(self._settings, role=self._role) as (connection, _):
            self._channel = connection.channel()
            topology.require(self._channel, self._queues)
            self._subscribe()
            self.loop.missing = ""
            log.info("consuming", queues=[queue.name for queue in self._queues])
            while not self._stop.is_set():
                self.loop.turn()
                self._collect()
                self._process()
                # Only now: an error in the first batch must not restart the consumer without a growing delay.
                working()

    def _subscribe(self) -> None:
        # Per consumer: RabbitMQ deprecates a prefetch limit that is shared by a channel.
        self._channel.basic_qos(prefetch_count=self._settings.batch_size)
        self._channel.add_on_cancel_callback(self._note_cancel)
        for queue in self._queues:
            note_arrival = partial(self._note_arrival, queue.name)
            self._channel.basic_consume(queue.name, note_arrival, consumer_tag=f"order-service:{queue.name}")

    def _note_arrival(
        self, queue: str, _: BlockingChannel, deliver: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        # Only the broker sets the flag, while any sender can set the header.
        count = (properties.headers or {}).get("x-delivery-count") if deliver.redelivered else 0
        redeliveries = count if isinstance(count, int) else 0
        routing_key = original_routing_key(queue, deliver.routing_key or "", properties.headers)
        delivery = Delivery(queue, routing_key, body, properties_of(properties), redeliveries)
        # Cut here, so that it takes little memory while it waits for the database.
        self._arrived.append((deliver.delivery_tag or 0, shortened(delivery)))

    def _note_cancel(self, _: object) -> None:
        self._cancelled = True

    def _collect(self) -> None:
        """Collect up to a batch of deliveries; wait only while there is none."""
        connection, count = self._channel.connection, len(self._arrived)
        connection.process_data_events(time_limit=0 if count else IDLE_SECONDS)
        # pika dispatches the messages of one socket read, about a dozen; keep reading until none is left.
        while count < len(self._arrived) < self._settings.batch_size:
            count = len(self._arrived)
            connection.process_data_events(time_limit=0)
        if self._cancelled:
            raise SubscriptionCancelled("the broker cancelled the subscription; was the queue deleted?")

    def _process(self) -> None:
        """Process and ack up to a batch of what has been collected, or wait for the database."""
        batch = self._batch()
        try:
            if batch:
                self._process_batch(batch)
        except Exception as error:
            if not is_transient(error):
                raise
            # Nothing is acked or dead-lettered while the database is unreachable.
            log.warning("the transaction failed, retrying", error=first_line(error))
            waiting = _ServingStop(self._channel.connection, self._stop, self.loop)
            waiting.wait(next(self._delays))
            wait_for_database(self._database, waiting)

    def _batch(self) -> Sequence[tuple[int, Delivery]]:
        """The first deliveries that have arrived, up to the limits of number and size."""
        batch = self._arrived[: self._settings.batch_size]
        sizes = accumulate(len(delivery.body) for _, delivery in batch)
        return batch[: sum(size <= BATCH_BYTES for size in sizes)]

    def _process_batch(self, batch: Sequence[tuple[int, Delivery]]) -> None:
        if any(delivery.redeliveries >= POISON_AFTER for _, delivery in batch):
            self._process_singly(batch)
            return
        try:
            process_batch(self._database, self._settings.policy, [delivery for _, delivery in batch])
        except Exception as error:
            if is_transient(error):
                raise
            log.exception("a batch failed, processing its messages one by one", messages=len(batch))
            self._process_singly(batch)
        else:
            self._channel.basic_ack(batch[-1][0], multiple=True)
            del self._arrived[: len(batch)]
            self._delays = RECONNECT.jittered()

    def _process_singly(self, batch: Sequence[tuple[int, Delivery]]) -> None:
        """Process each message of a batch alone, so that one that fails is dead-lettered alone."""
        for tag, delivery in batch:
            self.loop.turn()
            try:
                if delivery.redeliveries >= POISON_AFTER:
                    retry_poison_message(self._database, self._settings.policy, delivery)
                else:
                    process_batch(self._database, self._settings.policy, [delivery])
            except Exception as error:
                self._dead_letter_failed(delivery, error)
            self._channel.basic_ack(tag)
            del self._arrived[0]

    def _dead_letter_failed(self, delivery: Delivery, error: Exception) -> None:
        """Dead-letter a message that raised this error. Raises it again if it is transient."""
        if is_transient(error):
            raise error
        log.exception("a message cannot be processed", queue=delivery.queue)
        dead_letter_failed(self._database, self._settings.policy, delivery, type(error).__name__)


class _ServingStop:
    """The process's stop event for a wait that also serves the connection, so that its heartbeats continue."""

    def __init__(self, connection: pika.BlockingConnection, stop: StopFlag, loop: Loop) -> None:
        self._connection, self.is_set, self._loop = connection, stop.is_set, loop

    def wait(self, timeout: float, /) -> None:
        self._loop.turn()
        self._connection.process_data_events(time_limit=timeout)
