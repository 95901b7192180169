"""One connection of the relay: claims outbox rows, publishes them without waiting for each confirm, settles them."""

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
from pika.exceptions import AMQPError

from order_service.backoff import Backoff
from order_service.process import StopFlag, first_line
from order_service.storage.database import Database
from order_service.storage.outbox import Claim, Outcomes, Position, Route
from order_service.vendor import GatheringConnection
from publishers.lane import WINDOW, Batch, Health, Lane

log = structlog.get_logger(__name__)
#: How long the closing handshake may take, in seconds.
CLOSE_SECONDS = 2.0
#: The polling interval, in seconds, even with notifications: one may be lost, and delayed rows become due.
POLL_SECONDS = 0.5
#: The polling interval on SQLite, which has no notifications, in seconds.
SQLITE_POLL_SECONDS = 0.02
#: The pause between two attempts to write to the database.
SETTLE_BACKOFF = Backoff(first=0.5, longest=15)
#: With fewer rows in flight, new rows are claimed at once; with more, waiting for confirms makes larger batches.
FEW = 20
#: How many batches may be in flight, not counting those that wait for a lane set aside.
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


class Pipeline:
    """One connection with a channel for each lane; pika calls these methods from its loop."""

    def __init__(
        self,
        node: pika.URLParameters,
        database: Database,
        stop: StopFlag,
        memory: Memory,
        *,
        on_first_confirm: Callable[[], None],
    ) -> None:
        self._database, self._stop, self._memory, self._on_first_confirm = database, stop, memory, on_first_confirm
        self._error: BaseException | None = None
        self._batches: set[Batch] = set()
        # On SQLite reading rows claims them: a second claim would read the same ones.
        self._most_batches = 1 if database.is_sqlite else BATCHES
        self._lanes: dict[Route, Lane] = {}
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
            self._loop.start()
        finally:
            for batch in self._batches:
                self._settle(batch)
            if self._listener:
                self._listener.close()
            # Otherwise its poller and socket pair stay open until they are garbage collected.
            self._loop.close()
        if self._error and not self._stop.is_set():
            raise self._error

    def _start(self) -> None:
        log.info("relaying")
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
            return self._settle_again() and self._claim()
        except sa.exc.SQLAlchemyError as error:
            log.warning("the outbox cannot be read, retrying", error=first_line(error))
            return False

    def _claim(self) -> bool:
        """Claim the rows of each lane that is set aside, then those of all other lanes."""
        now = time.monotonic()
        failing = {route: health for route, health in self._memory.health.items() if not health.is_good}
        for route, health in failing.items():
            if now >= health.resumes_at and not self._lane(route).size and len(self._batches) < MOST_BATCHES:
                claim = Claim(self._database, health.window, only=route)
                if not claim.rows:
                    health.resumes_at = now + POLL_SECONDS
                self._publish(claim)
        slow = {lane for lane in self._lanes.values() if lane.is_set_aside(now)}
        blocked = {batch for batch in self._batches if slow.issuperset(+batch.waiting)}
        if self._database.is_sqlite:
            # Its rows would be read again, because reading claims them.
            for batch in blocked:
                self._settle(batch)
        in_flight = sum(lane.size for lane in self._lanes.values() if lane not in slow)
        can_claim = len(self._batches - blocked) < self._most_batches and len(self._batches) < MOST_BATCHES
        if in_flight < FEW and can_claim and not self._memory.unsettled:
            without = sorted({*failing, *(lane.route for lane in slow)})
            self._publish(self._memory.position.claim(self._database, WINDOW, without=without))
        return True

    def _publish(self, claim: Claim) -> None:
        if not claim.rows:
            return
        rows: dict[Lane, list[sa.Row[Any]]] = {}
        for row in claim.rows:
            rows.setdefault(self._lane((row.exchange, row.routing_key)), []).append(row)
        batch = Batch(claim, Counter({lane: len(of_lane) for lane, of_lane in rows.items()}))
        self._batches.add(batch)
        with self._connection.gathering():
            for lane, of_lane in rows.items():
                lane.publish(batch, of_lane)

    def _lane(self, route: Route) -> Lane:
        if route not in self._lanes:
            self._lanes[route] = Lane(route, self._memory.health[route], self._connection, self._note_outcomes)
        return self._lanes[route]

    def _note_blocked(self, blocked: bool) -> None:
        if blocked:
            log.warning("the broker blocks publishers because of a memory or disk alarm")
        self._blocked = blocked

    def _check_timeouts(self) -> None:
        now = time.monotonic()
        try:
            for lane in self._lanes.values():
                lane.check_timeout(now, is_blocked=self._blocked and not self._stop.is_set())
        except AMQPError as error:
            log.warning("the broker does not answer, closing the connection")
            self._close(error)

    def _note_outcomes(self, batches: set[Batch]) -> None:
        if not self._confirmed and any(batch.outcomes.sent or batch.outcomes.failed for batch in batches):
            self._confirmed = True
            self._on_first_confirm()
        complete = {batch for batch in batches if not batch.waiting.total()}
        self._batches -= complete
        for batch in complete:
            self._settle(batch)
        if complete:
            self._publish_due()

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
