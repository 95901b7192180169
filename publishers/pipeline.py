"""One connection of the relay: claims outbox rows, publishes them without waiting for each confirm, settles them."""

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import pika
import psycopg
import sqlalchemy as sa
import structlog
from pika import DeliveryMode
from pika.adapters.select_connection import IOLoop, PollEvents
from pika.channel import Channel
from pika.exceptions import AMQPError
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from order_service.contract.envelope import APP_ID, CONTENT_TYPE
from order_service.process import StopFlag, first_line, utc_now
from order_service.storage.database import Database
from order_service.storage.outbox import Claim, is_mandatory
from order_service.vendor import GatheringConnection

log = structlog.get_logger(__name__)
#: A connection without a confirm for this long, in seconds, is closed: only a new channel works after a queue has
#: lost its leader.
CONFIRM_SECONDS = 8.0
#: How long the closing handshake may take.
CLOSE_SECONDS = 2.0
#: The polling interval, in seconds, even with notifications: one may be lost, and delayed rows become due.
POLL_SECONDS = 0.5
#: The polling interval on SQLite, which has no notifications, in seconds.
SQLITE_POLL_SECONDS = 0.02
#: The most rows that are claimed and published together.
WINDOW = 500
#: With fewer rows in flight, new rows are claimed at once; with more, waiting for confirms makes larger batches.
FEW = 20
#: How many batches may be in flight; each holds a database connection.
BATCHES = 4


@dataclass
class _Batch:
    """Rows claimed and published together, and settled together once each is confirmed, returned or refused."""

    claim: Claim
    #: The start of the wait for its confirms, on the monotonic clock.
    since: float
    sent: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return len(self.sent) + len(self.failed) == len(self.claim.rows)


class Pipeline:
    """One connection and channel with up to BATCHES claims in flight; pika calls these methods from its loop."""

    def __init__(
        self, node: pika.URLParameters, database: Database, stop: StopFlag, *, on_first_confirm: Callable[[], None]
    ) -> None:
        self._database, self._stop, self._on_first_confirm = database, stop, on_first_confirm
        self._error: BaseException | None = None
        self._batches: list[_Batch] = []
        # On SQLite reading rows claims them: a second claim would read the same ones.
        self._most_batches = 1 if database.is_sqlite else BATCHES
        self._in_flight: dict[int, tuple[_Batch, sa.Row[Any]]] = {}
        self._returned: Counter[tuple[str | None, str | None, bytes]] = Counter()
        self._nacked = self._blocked = self._confirmed = False
        self._last_tag = 0
        self._listener: psycopg.Connection[Any] | None = None
        self._connection = GatheringConnection(
            node,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._prepare),
            on_open_error_callback=lambda _, error: self._end(error),
            on_close_callback=lambda _, error: self._end(error),
        )
        self._connection.add_on_connection_blocked_callback(lambda *_: self._note_blocked(True))
        self._connection.add_on_connection_unblocked_callback(lambda *_: self._note_blocked(False))
        self._loop: IOLoop = self._connection.ioloop

    def run(self) -> None:
        """Publish until stopped. Raises the error that ended the connection."""
        try:
            self._loop.start()
        finally:
            for batch in list(self._batches):
                self._settle(batch)
            if self._listener:
                self._listener.close()
            # Otherwise its poller and socket pair stay open until they are garbage collected.
            self._loop.close()
        if self._error and not self._stop.is_set():
            raise self._error

    def _end(self, error: BaseException) -> None:
        self._error = self._error or error
        self._loop.stop()

    def _prepare(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_close_callback(lambda _, error: self._close(error))
        channel.add_on_return_callback(self._note_return)
        channel.confirm_delivery(self._note_confirm, callback=lambda _: self._poll())
        log.info("relaying")

    def _close(self, error: BaseException) -> None:
        """Close the connection, waiting CLOSE_SECONDS at most for the broker's answer."""
        self._error = self._error or error
        self._loop.call_later(CLOSE_SECONDS, self._loop.stop)
        if self._connection.is_open:
            self._connection.close()

    def _poll(self) -> None:
        """Check the outbox and the confirm timeout, and schedule the next check."""
        pause = POLL_SECONDS if self._listen() else SQLITE_POLL_SECONDS
        self._check_confirm_timeout()
        if not self._publish_due():
            pause = POLL_SECONDS
        if not self._error:
            self._loop.call_later(pause, self._poll)

    def _listen(self) -> bool:
        """Listen for notifications if not listening yet; return whether notifications arrive."""
        if self._listener is None and not self._database.is_sqlite:
            with suppress(sa.exc.SQLAlchemyError, psycopg.Error):
                self._listener = self._database.listen()
                self._loop.add_handler(self._listener.fileno(), self._notified, PollEvents.READ | PollEvents.ERROR)
        return self._listener is not None

    def _notified(self, fileno: int, _events: int) -> None:
        assert self._listener is not None  # noqa: S101 - the loop calls this for the listener's socket only
        try:
            for _ in self._listener.notifies(timeout=0):
                pass
        except psycopg.Error:
            with suppress(OSError):  # libpq may have closed the socket already
                self._loop.remove_handler(fileno)
            self._listener = None
        self._publish_due()

    def _publish_due(self) -> bool:
        """Claim and publish due rows, unless enough are in flight; return False if the outbox cannot be read."""
        if self._error:
            return True
        if self._stop.is_set() or self._nacked:
            if not self._batches:
                # A channel whose queue lost its leader still refuses long after a new one would be accepted.
                self._close(AMQPError("the broker refused messages" if self._nacked else "stopped"))
            return True
        if len(self._in_flight) >= FEW or len(self._batches) >= self._most_batches:
            return True
        try:
            claim = Claim(self._database, WINDOW, utc_now())
        except sa.exc.SQLAlchemyError as error:
            log.warning("the outbox cannot be read, retrying", error=first_line(error))
            return False
        if claim.rows:
            self._publish_claim(claim)
        return True

    def _publish_claim(self, claim: Claim) -> None:
        batch = _Batch(claim, time.monotonic())
        self._batches.append(batch)
        with self._connection.gathering():
            for row in claim.rows:
                self._last_tag += 1
                self._in_flight[self._last_tag] = batch, row
                self._channel.basic_publish(
                    row.exchange, row.routing_key, row.body, _properties(row), mandatory=is_mandatory(row)
                )

    def _note_blocked(self, blocked: bool) -> None:
        if blocked:
            log.warning("the broker blocks publishers because of a memory or disk alarm")
        self._blocked = blocked

    def _check_confirm_timeout(self) -> None:
        """After CONFIRM_SECONDS without a confirm, postpone the rows in flight and close the connection.

        Their outcome is unknown, so they are published again under the same ids. They are postponed, so that rows for
        other queues are published first.
        """
        now = time.monotonic()
        if self._blocked and not self._stop.is_set():
            # A new connection would be blocked as well, and every row would be enqueued again.
            for batch in self._batches:
                batch.since = now
        elif not self._error and any(now - batch.since > CONFIRM_SECONDS for batch in self._batches):
            log.warning("no confirm in time, closing the connection", rows=len(self._in_flight))
            for batch, row in self._in_flight.values():
                batch.failed.append(row.id)
            self._in_flight.clear()
            self._close(AMQPError("no confirm in time"))

    def _note_return(self, _: Channel, method: Basic.Return, properties: BasicProperties, body: bytes) -> None:
        """Record a message for which no queue is bound; the broker returns it before it confirms it."""
        self._returned[properties.message_id, method.routing_key, body] += 1

    def _note_confirm(self, frame: Method[Basic.Ack | Basic.Nack]) -> None:
        if not self._confirmed:
            self._confirmed = True
            self._on_first_confirm()
        tag, is_ack = frame.method.delivery_tag, isinstance(frame.method, Basic.Ack)
        # The tags in flight are in ascending order.
        tags = list(takewhile(lambda known: known <= tag, self._in_flight)) if frame.method.multiple else [tag]
        for confirmed in tags:
            if confirmed in self._in_flight:  # Otherwise it has timed out.
                self._note_outcome(*self._in_flight.pop(confirmed), is_ack=is_ack)

    def _note_outcome(self, batch: _Batch, row: sa.Row[Any], *, is_ack: bool) -> None:
        if is_ack and not self._take_return(row):
            batch.sent.append(row.id)
        else:
            batch.failed.append(row.id)
            self._nacked = self._nacked or not is_ack
            problem = "returned: no queue is bound for it" if is_ack else "refused by the broker"
            log.warning("message not delivered, retrying", type=row.type, order_id=row.order_id,
                        message_id=row.message_id, routing_key=row.routing_key, problem=problem,
                        attempts=row.attempts + 1)  # fmt: skip
        if batch.is_complete:
            self._settle(batch)
            self._publish_due()

    def _take_return(self, row: sa.Row[Any]) -> bool:
        """Remove one return of this row from those noted; return whether there was one."""
        message = row.message_id, row.routing_key, row.body
        if not self._returned or message not in self._returned:
            return False
        # Counted, because a reminder may be in flight twice.
        self._returned -= Counter([message])
        return True

    def _settle(self, batch: _Batch) -> None:
        self._batches.remove(batch)
        try:
            batch.claim.settle(sent=batch.sent, failed=batch.failed, now=utc_now())
        except sa.exc.SQLAlchemyError as error:
            log.warning("sent rows could not be deleted and will be published again", error=first_line(error))


def _properties(row: sa.Row[Any]) -> BasicProperties:
    """The AMQP properties of an outbox row; a dead letter keeps its own, and its headers contain the reason."""
    original: dict[str, Any] = json.loads(row.properties) if row.properties else {}
    headers = original.get("headers") or ({"traceparent": row.traceparent} if row.traceparent else None)
    order_id = None if row.order_id is None else str(row.order_id)
    return BasicProperties(
        type=row.type,
        message_id=row.message_id,
        correlation_id=original.get("correlation_id") or order_id,
        app_id=original.get("app_id") if row.properties else APP_ID,
        content_type=original.get("content_type") if row.properties else CONTENT_TYPE,
        timestamp=int(row.created_at.timestamp()),
        delivery_mode=DeliveryMode.Persistent,
        headers=headers,
    )
