"""One connection of the relay: claims outbox rows, publishes them without waiting for each confirm, settles them.

The broker closes the channel of a message that it refuses, and confirms nothing that goes to a queue without a leader.
So a route (an exchange and a routing key) that fails gets a channel of its own until it works again.
https://www.rabbitmq.com/docs/channels#error-handling
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pika
import psycopg
import sqlalchemy as sa
import structlog
from pika.adapters.select_connection import IOLoop, PollEvents
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker

from order_service import metrics
from order_service.backoff import Backoff, Postponed
from order_service.ops import Loop
from order_service.process import REPORTS, StopFlag, first_line
from order_service.storage import claims
from order_service.storage.claims import Claim, Outcomes, Position, Route
from order_service.storage.database import Database
from order_service.vendor import GatheringConnection, early_reset_as_lost_connection
from publishers.confirms import NOT_SENT, Answer, Batch, ConfirmChannel, Entry, route_of
from publishers.health import WINDOW, Health

log = structlog.get_logger(__name__)
#: How long a message may be unconfirmed, in seconds. Then its route gets a new channel: only a new one works after a
#: queue has lost its leader.
CONFIRM_SECONDS = 3.0
#: Rows of a route that has waited this long for a confirm, in seconds, are claimed apart from all others.
SLOW_SECONDS = 0.5
#: How long a route waits after a nack, in seconds.
NACK_SECONDS = 1.0
#: The broker's reply codes that concern every message of a route: no permission, no such exchange.
#: https://www.rabbitmq.com/amqp-0-9-1-reference.html#constants
ACCESS_REFUSED, NOT_FOUND = 403, 404
#: The reply code of a connection that the broker closes because of a shutdown or an operator, not of a message.
CONNECTION_FORCED = 320
#: How long the closing handshake may take, in seconds.
CLOSE_SECONDS = 2.0
#: The polling interval, in seconds, even with notifications: one may be lost, and delayed rows become due.
POLL_SECONDS = 0.5
#: The polling interval on SQLite, which has no notifications, in seconds.
SQLITE_POLL_SECONDS = 0.02
#: The pause between two attempts to write to the database.
SETTLE_BACKOFF = Backoff(first=0.5, longest=15)
#: How long a row that cannot be decoded is left out.
UNREADABLE_BACKOFF = Backoff(first=1, longest=300)
#: With fewer rows in flight, new rows are claimed at once; with more, waiting for confirms makes larger batches.
FEW = 20
#: How many batches may be in flight, not counting those that wait for slow routes.
BATCHES = 4
#: How many batches may be in flight in all; each holds a database connection.
MOST_BATCHES = 12


@dataclass
class Memory:
    """What the relay keeps from one connection to the next."""

    health: defaultdict[Route, Health] = field(default_factory=lambda: defaultdict(Health))
    position: Position = field(default_factory=Position)
    #: The batches that could not be settled; until they are, nothing is claimed.
    unsettled: set[Batch] = field(default_factory=set)
    #: The failed attempts in a row to settle them, and when to try again, on the monotonic clock.
    failures: int = 0
    settles_at: float = 0.0
    #: None, or the outage of the database as it is logged, at growing intervals.
    outage: Postponed[str] | None = None
    #: The rows that cannot be decoded.
    unreadable: Postponed[int] = field(default_factory=lambda: Postponed(UNREADABLE_BACKOFF))


class Pipeline:
    """One connection with its channels; pika calls these methods from its loop."""

    def __init__(
        self,
        node: pika.URLParameters,
        database: Database,
        stop: StopFlag,
        memory: Memory,
        *,
        loop: Loop,
        on_first_confirm: Callable[[], None],
    ) -> None:
        self._database, self._stop, self._memory, self._on_first_confirm = database, stop, memory, on_first_confirm
        self._turning = loop
        self._error: BaseException | None = None
        self._batches: set[Batch] = set()
        # On SQLite reading rows claims them: a second claim would read the same ones.
        self._most_batches = 1 if database.is_sqlite else BATCHES
        #: The channels of the routes that fail; None: the channel of all others.
        self._channels: dict[Route | None, ConfirmChannel] = {}
        #: All channels with messages in flight, also retired ones.
        self._open: set[ConfirmChannel] = set()
        self._blocked = self._confirmed = False
        self._listener: psycopg.Connection[Any] | None = None
        self._connection = GatheringConnection(
            node,
            on_open_callback=lambda _: self._start(),
            on_open_error_callback=lambda _, error: self._end(error),
            on_close_callback=lambda _, error: self._end(error),
        )
        self._connection.add_on_connection_blocked_callback(lambda *_: self._note_blocked(True))
        self._connection.add_on_connection_unblocked_callback(lambda *_: self._note_blocked(False))
        self._loop: IOLoop = self._connection.ioloop

    def run(self) -> None:
        """Publish until stopped. Raises the error that ended the connection."""
        try:
            with early_reset_as_lost_connection():
                self._loop.start()
        finally:
            for batch in self._batches:
                # They may have been published, so they must not count as unsent.
                decided = {*batch.outcomes.sent, *batch.outcomes.failed, *batch.outcomes.postponed}
                batch.outcomes.postponed |= {row.id: 0.0 for row in batch.claim.rows if row.id not in decided}
                self._settle(batch)
            if self._listener:
                self._listener.close()
            # Otherwise its poller and socket pair stay open until they are garbage collected.
            self._loop.close()
        if self._error and not self._stop.is_set():
            raise self._error

    def _start(self) -> None:
        log.info("relaying")
        self._turning.missing = ""
        self._poll()

    def _end(self, error: BaseException) -> None:
        self._error = self._error or error
        self._loop.stop()

    def _close(self, error: BaseException) -> None:
        """Close the connection, waiting CLOSE_SECONDS at most for the broker's answer."""
        self._error = self._error or error
        self._loop.call_later(CLOSE_SECONDS, self._loop.stop)
        if self._connection.is_open:
            self._connection.close()

    def _poll(self) -> None:
        """Check the outbox and the confirm timeouts, and schedule the next check."""
        self._turning.turn()
        pause = POLL_SECONDS if self._listen() else SQLITE_POLL_SECONDS
        self._check_timeouts()
        if not self._publish_due():
            pause = POLL_SECONDS
        if not self._error:
            self._loop.call_later(pause, self._poll)

    def _listen(self) -> bool:
        """Listen for notifications if not listening yet; return whether notifications arrive."""
        if self._listener is None and not self._database.is_sqlite:
            with suppress(sa.exc.SQLAlchemyError, psycopg.Error):
                self._listener = self._database.listen()
                if self._listener:
                    events = PollEvents.READ | PollEvents.ERROR
                    self._loop.add_handler(self._listener.fileno(), self._notified, events)
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
        """Claim and publish due rows, unless enough are in flight; return False if the database is not usable."""
        if self._error or not self._connection.is_open:
            return True
        if self._stop.is_set():
            if not self._batches:
                self._close(AMQPError("stopped"))
            return True
        try:
            if not self._settle_again():
                return False
            self._claim()
            self._memory.outage = None
        except (sa.exc.SQLAlchemyError, ValueError, TypeError, ArithmeticError) as error:
            return self._leave_out_unreadable(error)
        return True

    def _leave_out_unreadable(self, error: Exception) -> bool:
        """Find and postpone the rows that cannot be decoded; return whether a failed claim was due to them."""
        unreadable = self._memory.unreadable
        try:
            found = claims.unreadable_rows(self._database, WINDOW, known=unreadable.current())
        except sa.exc.SQLAlchemyError:
            found = {}
        if not found:
            self._memory.outage = self._memory.outage or Postponed(REPORTS)
            if self._memory.outage.add("outbox"):
                log.warning("the outbox cannot be read, retrying", error=first_line(error))
        for row_id, problem in found.items():
            unreadable.add(row_id)
            log.error("an outbox row cannot be decoded and is left out", outbox_id=row_id, error=first_line(problem))
        return bool(found)

    def _claim(self) -> None:
        """Claim the rows of each failing route, then those of all routes that neither fail nor are slow."""
        now, unreadable = time.monotonic(), sorted(self._memory.unreadable.current())
        failing = {route: health for route, health in self._memory.health.items() if not health.is_good}
        for route, health in failing.items():
            if now >= health.resumes_at and not self._waiting()[route] and len(self._batches) < MOST_BATCHES:
                claim = Claim(self._database, health.window, only=route, unreadable=unreadable)
                if not claim.rows:
                    health.resumes_at = now + POLL_SECONDS
                self._publish(claim, route)
        apart = {*failing, *(r for b in self._batches if now - b.since > SLOW_SECONDS for r in +b.waiting)}
        held_up = {batch for batch in self._batches if apart.issuperset(+batch.waiting)}
        if self._database.is_sqlite:
            # Its rows would be read again, because reading claims them.
            for batch in held_up:
                self._settle(batch)
        in_flight = sum(count for route, count in self._waiting().items() if route not in apart)
        has_place = len(self._batches - held_up) < self._most_batches and len(self._batches) < MOST_BATCHES
        if in_flight < FEW and has_place and not self._memory.unsettled:
            position = self._memory.position
            claim = position.claim(self._database, WINDOW, without=sorted(apart), unreadable=unreadable)
            self._publish(claim, None)

    def _waiting(self) -> Counter[Route]:
        """How many rows have no outcome yet, by route."""
        return sum((batch.waiting for batch in self._batches), Counter())

    def _publish(self, claim: Claim, route: Route | None) -> None:
        if not claim.rows:
            return
        batch = Batch(claim, Counter(map(route_of, claim.rows)))
        self._batches.add(batch)
        channel = self._channels.get(route)
        if channel is None or channel.is_retired:
            channel = ConfirmChannel(self._connection, on_answers=self._note_answers, on_close=self._note_close)
            self._channels[route] = channel
            self._open.add(channel)
        channel.publish((batch, row) for row in claim.rows)

    def _note_blocked(self, blocked: bool) -> None:
        if blocked:
            log.warning("the broker blocks publishers because of a memory or disk alarm")
        else:
            log.info("the broker accepts messages again")
        self._blocked = blocked

    def _check_timeouts(self) -> None:
        """Give up on confirms that are overdue, and on the connection if the broker does not even open a channel."""
        now = time.monotonic()
        if self._blocked and not self._stop.is_set():
            # A new connection would be blocked as well, and every message would be enqueued again.
            for batch in self._batches:
                batch.since = now
            for channel in self._open:
                channel.opening_since = channel.opening_since and now
            return
        if any(now - (channel.opening_since or now) > CONFIRM_SECONDS for channel in self._open):
            log.warning("the broker does not answer, closing the connection")
            self._close(AMQPError("the broker does not answer"))
            return
        overdue = {r for batch in self._batches if now - batch.since > CONFIRM_SECONDS for r in +batch.waiting}
        for route in overdue:
            self._give_up(route)

    def _give_up(self, route: Route) -> None:
        """Postpone the messages of a route without a confirm; the next ones get a new channel."""
        entries: list[Entry] = []
        for channel in list(self._open):
            if dropped := channel.drop(route):
                entries += dropped
                channel.retire()
        _count(entries, "unconfirmed")
        self._warn(entries, "no confirm in time")
        delay = self._memory.health[route].note_slowness(pause=0)
        self._postpone(entries, delay)

    def _note_answers(self, channel: ConfirmChannel, entries: list[Entry], answer: Answer) -> None:
        _count(entries, answer.name.lower())
        if answer is Answer.ACCEPTED:
            now = time.monotonic()
            metrics.CONFIRM_SECONDS.observe_all([now - batch.published_at for batch, _ in entries])
        if not self._confirmed and answer not in NOT_SENT:
            self._confirmed = True
            self._on_first_confirm()
        if answer is not Answer.ACCEPTED:
            self._warn(entries, answer.value)
        if answer is Answer.NACKED:
            # The channel of a queue that has lost its leader refuses long after a new one would be accepted.
            channel.retire()
            for route in {route_of(row) for _, row in entries}:
                health = self._memory.health[route]
                if not health.is_nacked:
                    health.note_slowness(pause=NACK_SECONDS)
                health.is_nacked = True
        for batch, row in entries:
            (batch.outcomes.sent if answer is Answer.ACCEPTED else batch.outcomes.failed).append(row.id)
            if answer is Answer.NACKED:
                batch.outcomes.nacked.append(row.id)
        self._finish(entries)

    def _note_close(self, channel: ConfirmChannel, entries: list[Entry], error: Exception) -> None:
        """Find the message that the broker refuses by publishing ever fewer together, until it is alone."""
        self._open.discard(channel)
        for route, known in list(self._channels.items()):
            if known is channel:
                del self._channels[route]
        if not isinstance(error, ChannelClosedByBroker | ConnectionClosedByBroker):
            return
        if error.reply_code == CONNECTION_FORCED or not entries:
            return
        counts = Counter(route_of(row) for _, row in entries)
        for route, count in counts.items():
            self._memory.health[route].shrink(count)
        if len(counts) > 1 or (len(entries) > 1 and error.reply_code not in (ACCESS_REFUSED, NOT_FOUND)):
            self._postpone(entries, 0)
            return
        if error.reply_code in (ACCESS_REFUSED, NOT_FOUND):
            self._memory.health[route_of(entries[0][1])].note_failure()
        _count(entries, "refused")
        remedy = " (run `python -m order_service topology`)" if error.reply_code == NOT_FOUND else ""
        self._warn(entries, f"refused by the broker: {error.reply_code} {error.reply_text}{remedy}")
        for batch, row in entries:
            batch.outcomes.failed.append(row.id)
        self._finish(entries)

    def _postpone(self, entries: list[Entry], delay: float) -> None:
        for batch, row in entries:
            batch.outcomes.postponed[row.id] = delay
        self._finish(entries, is_attempt=False)

    def _finish(self, entries: list[Entry], *, is_attempt: bool = True) -> None:
        """Settle the batches whose rows all have an outcome now, and go on."""
        routes: set[Route] = set()
        for batch, row in entries:
            route = route_of(row)
            routes.add(route)
            batch.waiting[route] -= 1
        failing = {route for route in routes if is_attempt and not self._memory.health[route].is_good}
        if failing:
            waiting = self._waiting()
            for route in failing:
                if not waiting[route]:
                    self._memory.health[route].note_idle()
        complete = {batch for batch in {batch for batch, _ in entries} if not batch.waiting.total()}
        self._batches -= complete
        for batch in complete:
            self._settle(batch)
        if complete:
            self._publish_due()

    def _warn(self, entries: list[Entry], problem: str) -> None:
        """Name the first of these messages, and say how many there are."""
        _, row = entries[0]
        log.warning("message not delivered, retrying", type=row.type, order_id=row.order_id, message_id=row.message_id,
                    exchange=row.exchange, routing_key=row.routing_key, problem=problem, attempts=row.attempts + 1,
                    rows=len(entries))  # fmt: skip

    def _settle(self, batch: Batch) -> None:
        """Record the outcomes so far. On PostgreSQL this releases all rows of the batch, so it must be complete."""
        memory = self._memory
        try:
            batch.claim.settle(batch.outcomes)
        except sa.exc.SQLAlchemyError as error:
            memory.unsettled.add(batch)
            memory.failures += 1
            memory.settles_at = time.monotonic() + SETTLE_BACKOFF.delay(memory.failures)
            log.warning("the outcome of published rows could not be recorded, retrying", error=first_line(error))
        else:
            batch.outcomes = Outcomes()

    def _settle_again(self) -> bool:
        """Settle what could not be settled before; return whether that is done.

        To claim the rows again instead would publish them again, many times a second.
        """
        memory = self._memory
        if not memory.unsettled:
            return True
        if time.monotonic() < memory.settles_at:
            return False
        unsettled, memory.unsettled = memory.unsettled, set()
        for batch in unsettled:
            self._settle(batch)
        if not memory.unsettled:
            memory.failures = 0
        return not memory.unsettled


def _count(entries: list[Entry], outcome: str) -> None:
    """Count what became of messages, and end their spans; a dead letter may have any type."""
    types = Counter("dead_letter" if row.properties else str(row.type) for _, row in entries)
    for type_name, number in types.items():
        metrics.PUBLISHED.count(type_name, outcome, by=number)
    for batch, row in entries:
        if span := batch.spans.pop(row.id, None):
            span.set_attribute("messaging.operation.outcome", outcome)
            span.end()
