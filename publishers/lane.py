"""A lane: the messages of one exchange and routing key, on a channel of their own.

The broker closes the channel of a message that it refuses, and confirms nothing that goes to a queue without a leader.
With one channel for each route, this delays the messages of that route alone.
https://www.rabbitmq.com/docs/channels#error-handling
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, takewhile
from typing import Any

import sqlalchemy as sa
import structlog
from pika import DeliveryMode
from pika.channel import Channel
from pika.exceptions import AMQPError, ChannelClosedByBroker, ChannelWrongStateError, ConnectionClosedByBroker
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from order_service.backoff import Backoff
from order_service.contract.envelope import APP_ID, CONTENT_TYPE
from order_service.process import first_line
from order_service.storage.outbox import Claim, Outcomes, Route, is_mandatory
from order_service.vendor import GatheringConnection

log = structlog.get_logger(__name__)
#: How long a message may be unconfirmed, in seconds. Then its channel is closed: only a new one works after a queue
#: has lost its leader.
CONFIRM_SECONDS = 3.0
#: Rows of a lane that has waited this long for a confirm, in seconds, are claimed apart from all others.
SLOW_SECONDS = 0.5
#: The most rows that are claimed and published together.
WINDOW = 500
#: The most rows of a lane whose last messages were not confirmed.
SLOW_WINDOW = 50
#: How long unconfirmed rows wait until they are published again, and a refused lane until its next attempt.
LANE_BACKOFF = Backoff(first=1, longest=15)
#: How long a lane waits after a nack, in seconds.
NACK_SECONDS = 1.0
#: The broker's reply codes that concern every message of a lane: no permission, no such exchange.
#: https://www.rabbitmq.com/amqp-0-9-1-reference.html#constants
ACCESS_REFUSED, NOT_FOUND = 403, 404
#: The reply code of a connection that the broker closes because of a shutdown or an operator, not of a message.
CONNECTION_FORCED = 320


@dataclass(eq=False)
class Batch:
    """Rows claimed together, and settled together once the outcome of each is known."""

    claim: Claim
    #: How many of its rows have no outcome yet, by lane.
    waiting: Counter["Lane"]
    #: The start of the wait for confirms, on the monotonic clock.
    since: float = field(default_factory=time.monotonic)
    outcomes: Outcomes = field(default_factory=Outcomes)


Entry = tuple[Batch, sa.Row[Any]]


@dataclass
class Health:
    """The last failures of a lane; they outlive its connection."""

    window: int = WINDOW
    failures: int = 0
    #: When the next attempt may start, on the monotonic clock.
    resumes_at: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.window >= WINDOW and not self.failures

    def note_failure(self, *, pause: float | None = None) -> float:
        """Record a failure, and pause the lane if asked to; return the delay for the rows concerned, in seconds."""
        self.failures += 1
        delay = LANE_BACKOFF.delay(self.failures)
        self.resumes_at = time.monotonic() + (delay if pause is None else pause)
        return delay

    def note_success(self) -> None:
        self.window, self.failures = min(self.window * 2, WINDOW), 0


class Lane:
    """One route's channel and its messages without an outcome; pika calls these methods from its loop."""

    def __init__(
        self, route: Route, health: Health, connection: GatheringConnection, on_outcomes: Callable[[set[Batch]], None]
    ) -> None:
        """`on_outcomes` receives the batches of which rows were sent or failed."""
        self.route, self.health = route, health
        self._connection, self._on_outcomes = connection, on_outcomes
        self._channel: Channel | None = None
        #: When the channel was requested, on the monotonic clock; None once it is open.
        self._opening_since: float | None = None
        self._queued: list[Entry] = []
        self._in_flight: dict[int, Entry] = {}
        self._returned: Counter[tuple[str | None, bytes]] = Counter()
        self._last_tag = 0
        self._nacked = False

    @property
    def size(self) -> int:
        return len(self._queued) + len(self._in_flight)

    def is_set_aside(self, now: float) -> bool:
        """Whether its rows are claimed apart from those of the other lanes, which then do not wait for it."""
        return not self.health.is_good or (self.size > 0 and now - self._oldest().since > SLOW_SECONDS)

    def _oldest(self) -> Batch:
        batch, _ = next(chain(self._in_flight.values(), self._queued))
        return batch

    def publish(self, batch: Batch, rows: Sequence[sa.Row[Any]]) -> None:
        """Publish rows once the channel is open; `batch.waiting` counts them already."""
        self._queued += [(batch, row) for row in rows]
        if self._channel is None:
            self._opening_since = time.monotonic()
            self._channel = self._connection.channel(on_open_callback=self._prepare)
            self._channel.add_on_close_callback(self._note_close)
        elif self._opening_since is None:
            self._send()

    def _prepare(self, channel: Channel) -> None:
        self._opening_since = None
        channel.add_on_return_callback(self._note_return)
        channel.confirm_delivery(partial(self._note_confirm, channel))
        self._send()

    def _send(self) -> None:
        assert self._channel is not None  # noqa: S101 - both callers have one that is open
        entries, self._queued = self._queued, []
        invalid: list[Entry] = []
        with self._connection.gathering():
            for batch, row in entries:
                try:
                    self._channel.basic_publish(
                        row.exchange, row.routing_key, row.body, _properties(row), mandatory=is_mandatory(row)
                    )
                except Exception as error:
                    # pika encodes the whole message before it sends any of it.
                    invalid.append((batch, row))
                    self._warn([(batch, row)], f"cannot be encoded: {first_line(error)}")
                else:
                    self._last_tag += 1
                    self._in_flight[self._last_tag] = batch, row
        self._fail(invalid)

    def check_timeout(self, now: float, *, is_blocked: bool) -> None:
        """Give up on a channel without a confirm for CONFIRM_SECONDS.

        Raises AMQPError if the broker does not even open a channel. A blocked connection restarts the wait: a new one
        would be blocked as well, and every message would be enqueued again.
        """
        if is_blocked:
            for batch, _ in chain(self._in_flight.values(), self._queued):
                batch.since = now
            self._opening_since = self._opening_since and now
        elif self._opening_since is not None:
            if now - self._opening_since > CONFIRM_SECONDS:
                raise AMQPError("no channel in time")
        elif self._in_flight and now - self._oldest().since > CONFIRM_SECONDS:
            entries = self._abandon_channel()
            self.health.window = min(self.health.window, SLOW_WINDOW)
            self._warn(entries, "no confirm in time")
            self._postpone(entries, self.health.note_failure(pause=0))

    def _abandon_channel(self) -> list[Entry]:
        """Close the channel, if it is not, and return the messages without an outcome."""
        channel, self._channel, self._opening_since = self._channel, None, None
        entries = [*self._in_flight.values(), *self._queued]
        self._in_flight, self._queued, self._last_tag, self._nacked = {}, [], 0, False
        self._returned.clear()
        if channel is not None:
            with suppress(ChannelWrongStateError):
                channel.close()
        return entries

    def _note_close(self, channel: Channel, error: Exception) -> None:
        """Find the message that the broker refuses by publishing ever fewer together, until it is alone."""
        if channel is not self._channel:
            return
        entries = self._abandon_channel()
        if not isinstance(error, ChannelClosedByBroker | ConnectionClosedByBroker):
            return
        if error.reply_code == CONNECTION_FORCED or not entries:
            return
        if error.reply_code in (ACCESS_REFUSED, NOT_FOUND):
            self.health.note_failure()
        else:
            self.health.window = max(1, min(len(entries), WINDOW) // 2)
            if len(entries) > 1:
                self._postpone(entries, 0)
                return
        remedy = " (run `python -m order_service topology`)" if error.reply_code == NOT_FOUND else ""
        self._warn(entries, f"refused by the broker: {error.reply_code} {error.reply_text}{remedy}")
        self._fail(entries)

    def _note_return(self, _: Channel, method: Basic.Return, properties: BasicProperties, body: bytes) -> None:
        """Record a message for which no queue is bound; the broker returns it before it confirms it."""
        self._returned[properties.message_id, body] += 1

    def _note_confirm(self, channel: Channel, frame: Method[Basic.Ack | Basic.Nack]) -> None:
        if channel is not self._channel:
            return
        tag, is_ack = frame.method.delivery_tag, isinstance(frame.method, Basic.Ack)
        # The tags in flight are in ascending order.
        tags = list(takewhile(lambda known: known <= tag, self._in_flight)) if frame.method.multiple else [tag]
        entries = [self._in_flight.pop(each) for each in tags if each in self._in_flight]
        if is_ack:
            self._note_acked(entries)
        else:
            self._note_nacked(entries)
        if not self.size:
            if self._nacked:
                # The channel of a queue that has lost its leader still refuses long after a new one would be accepted.
                self._abandon_channel()
            elif not self.health.is_good:
                self.health.note_success()
        self._finish(entries)

    def _note_acked(self, entries: Sequence[Entry]) -> None:
        for batch, row in entries:
            if self._take_return(row):
                self._warn([(batch, row)], "returned: no queue is bound for it")
                batch.outcomes.failed.append(row.id)
            else:
                batch.outcomes.sent.append(row.id)

    def _note_nacked(self, entries: Sequence[Entry]) -> None:
        if entries and not self._nacked:
            self._nacked = True
            self.health.window = min(self.health.window, SLOW_WINDOW)
            self.health.note_failure(pause=NACK_SECONDS)
            self._warn(entries, "refused by a queue")
        for batch, row in entries:
            batch.outcomes.failed.append(row.id)
            batch.outcomes.nacked.append(row.id)

    def _take_return(self, row: sa.Row[Any]) -> bool:
        """Remove one return of this row from those noted; return whether there was one."""
        message = row.message_id, row.body
        if not self._returned or message not in self._returned:
            return False
        # Counted, because a reminder may be in flight twice.
        self._returned -= Counter([message])
        return True

    def _fail(self, entries: Sequence[Entry]) -> None:
        for batch, row in entries:
            batch.outcomes.failed.append(row.id)
        self._finish(entries)

    def _postpone(self, entries: Sequence[Entry], delay: float) -> None:
        for batch, row in entries:
            batch.outcomes.postponed[row.id] = delay
        self._finish(entries)

    def _finish(self, entries: Sequence[Entry]) -> None:
        """Report the batches of rows whose outcome is recorded."""
        for batch, _ in entries:
            batch.waiting[self] -= 1
        if entries:
            self._on_outcomes({batch for batch, _ in entries})

    def _warn(self, entries: Sequence[Entry], problem: str) -> None:
        _, row = entries[0]
        exchange, routing_key = self.route
        log.warning("message not delivered, retrying", type=row.type, order_id=row.order_id, message_id=row.message_id,
                    exchange=exchange, routing_key=routing_key, problem=problem, attempts=row.attempts + 1,
                    rows=len(entries))  # fmt: skip


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
