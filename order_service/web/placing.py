"""Record orders and wait for the menu; the requests of a process share both.

Orders that arrive during a transaction are recorded together by the next one; one thread reads the orders of all
waiting requests and streams again after each commit of any process.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlalchemy as sa
import structlog

from order_service import handlers
from order_service.backoff import Backoff, Postponed
from order_service.domain.order import AWAITING_MENU, Order
from order_service.domain.saga import Policy
from order_service.handlers import Placement
from order_service.process import STOP_SECONDS, StopFlag, first_line
from order_service.storage import orders as order_rows
from order_service.storage.changes import Changes
from order_service.storage.database import Database
from order_service.storage.errors import OutcomeUnknown, is_rolled_back, settle
from order_service.storage.orders import UnreadableOrder
from order_service.unit_of_work import unit_of_work

log = structlog.get_logger(__name__)
#: The most orders of one transaction; with more, the first would wait for the last.
BATCH_LIMIT = 100
#: The interval at which the watcher looks for commits, in seconds.
TICK_SECONDS = 0.01
#: The longest time between two queries of the watcher, in seconds: a notification may be lost. A pooler hides commits;
#: then this is the interval, except while a POST waits.
POLL_SECONDS = 0.75
#: How long the watcher listens for commits while no order is watched, in seconds.
IDLE_SECONDS = 10.0
#: How often an order that cannot be read is logged.
REPORT_BACKOFF = Backoff(first=60, longest=3600)
#: How often a waiting request or an open stream checks whether the process is stopping, in seconds.
STOP_CHECK_SECONDS = 1.0


class TooManyPending(Exception):
    """The user has as many pending orders as one may have."""


class _Entry:
    """A placement to record, its order, and the error that its transaction ended with, if any."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.order: Order | None = None
        self.error: BaseException | None = None
        self.is_retried_alone = False
        # A lock that is held until `wake` has a third of the cost of an Event.
        asleep = threading.Lock()
        asleep.acquire()
        self.sleep, self.wake = asleep.acquire, asleep.release


class Recorder:
    """Records the orders of many threads: the first thread to arrive records the placements of all waiting ones."""

    def __init__(self, database: Database, policy: Policy) -> None:
        self._database, self._policy = database, policy
        self._lock = threading.Lock()
        self._waiting: list[_Entry] = []
        self._is_led = False

    @property
    def backlog(self) -> int:
        """How many placements wait for the next transaction."""
        return len(self._waiting)

    def place(self, placement: Placement) -> Order:
        """Return the order, committed. Raises what its transaction raised, or TooManyPending over the user's limit.

        If that leaves the outcome unknown, finds it out; raises OutcomeUnknown if the database is unavailable.
        """
        entry = _Entry(placement)
        with self._lock:
            self._waiting.append(entry)
            follows, self._is_led = self._is_led, True
        if follows:
            entry.sleep()
        if entry.order is None and entry.error is None:
            self._lead()
        # Retried in its own thread, so that waiting for a lock delays no other order.
        if entry.is_retried_alone:
            entry = _Entry(placement)
            self._record([entry])
        order = entry.order
        if order and isinstance(entry.error, OutcomeUnknown):
            return settle(lambda: self._record_again(order, placement), entry.error)
        if entry.error:
            raise entry.error
        assert order  # noqa: S101 - the transaction has ended
        return order

    def _record_again(self, order: Order, placement: Placement) -> Order:
        """Record the order, unless an earlier transaction has; return it as it stands.

        While that transaction is open, the insert waits for it, because both have the same id.
        """
        try:
            return self._record_order(order, placement)
        except sa.exc.IntegrityError:
            with self._database.reading() as connection:
                found = order_rows.read_orders(connection, [order.id]).get(order.id)
            if found is None:  # Another order has the Idempotency-Key.
                raise
            if found.key == order.key:
                return found
        # The id was given to another order, because this one was not recorded.
        order.id = 0
        return self._record_order(order, placement)

    def _record_order(self, order: Order, placement: Placement) -> Order:
        with unit_of_work(self._database, self._policy) as work:
            handlers.record_orders(work, [order], [placement])
        return order

    def _lead(self) -> None:
        """Record the waiting placements, then wake the first of those that arrived in the meantime to lead next."""
        with self._lock:
            entries, self._waiting = self._waiting[:BATCH_LIMIT], self._waiting[BATCH_LIMIT:]
        self._record(entries)
        with self._lock:
            successor = self._waiting[0] if self._waiting else None
            self._is_led = successor is not None
        if successor:
            successor.wake()
        for entry in entries[1:]:
            entry.wake()

    def _record(self, entries: Sequence[_Entry]) -> None:
        """Set the order or the error of each entry, in every case; mark those to be retried alone."""
        try:
            with unit_of_work(self._database, self._policy) as work:
                room = handlers.has_room(work, [entry.placement for entry in entries])
                accepted = [entry for entry, has_room in zip(entries, room, strict=True) if has_room]
                placed = handlers.place_orders(work, [entry.placement for entry in accepted]) if accepted else []
                for entry, order in zip(accepted, placed, strict=True):
                    entry.order = order
            for entry in entries:
                if entry.order is None:
                    entry.error = TooManyPending("the user has too many pending orders")
        except BaseException as error:
            # One of the requests is a repeat, or its key is locked; that must not fail the others.
            is_retried_alone = len(entries) > 1 and isinstance(error, sa.exc.DBAPIError) and is_rolled_back(error)
            for entry in entries:
                entry.error, entry.is_retried_alone = error, is_retried_alone


class UnreadableOrders:
    """Logs the orders that readers leave out because their rows cannot be decoded, each once per delay."""

    def __init__(self) -> None:
        self._reported = Postponed[int](REPORT_BACKOFF)

    def report(self, found: Sequence[UnreadableOrder]) -> None:
        for error in found:
            if self._reported.add(error.order_id):
                log.error("an order cannot be read and is left out", order_id=error.order_id, error=first_line(error))


@dataclass(eq=False)
class Watch:
    """An order that a request or a stream waits for."""

    order: Order
    is_hurried: bool
    changed: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float) -> Order:
        """Return the order as soon as its version changes, or as it was when the time is up."""
        self.changed.wait(seconds)
        self.changed.clear()
        return self.order


class Watcher:
    """Waits for changes of orders on behalf of many threads. The first watch starts its thread, after any fork."""

    def __init__(self, database: Database, unreadable: UnreadableOrders) -> None:
        self._database, self._unreadable = database, unreadable
        #: The versions that cannot be read, by order id: they are not read again.
        self._skipped: dict[int, int] = {}
        self._watches: dict[int, list[Watch]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        #: Whether a watch was added after the last query: its order may have changed in between.
        self._has_new = False

    def close(self) -> None:
        """End the thread, unless it waits for a database that does not answer. Open waits end at their timeout."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread:
            self._thread.join(STOP_SECONDS)

    @contextmanager
    def watch(self, order: Order, *, is_hurried: bool) -> Iterator[Watch]:
        """Watch the order during the block. `is_hurried`: poll fast for it where commits cannot be noticed."""
        watch = Watch(order, is_hurried)
        with self._changed:
            if self._thread is None and not self._is_closed:
                thread = threading.Thread(target=self._run, name="watcher", daemon=True)
                thread.start()  # If it fails, the next watch tries again.
                self._thread = thread
            self._watches.setdefault(order.id, []).append(watch)
            self._has_new = True
            self._changed.notify()
        try:
            yield watch
        finally:
            with self._changed:
                self._watches[order.id].remove(watch)
                if not self._watches[order.id]:
                    del self._watches[order.id]

    def _run(self) -> None:
        pause, changes = threading.Event(), Changes(self._database)
        is_available, polls_at = True, 0.0
        while self._has_watches(changes):
            now, seconds = time.monotonic(), TICK_SECONDS
            try:
                if self._may_have_changed(changes) or now >= polls_at:
                    self._poll()
                    is_available, polls_at = True, now + POLL_SECONDS
            except Exception as error:  # If this thread ended, every later request would wait until its time is up.
                if is_available:
                    log.warning("cannot poll for the waiting orders", error=first_line(error))
                changes.close()
                is_available, polls_at, seconds = False, 0.0, POLL_SECONDS
            pause.wait(seconds)
        changes.close()

    def _has_watches(self, changes: Changes) -> bool:
        """Wait until there are any; False once closed."""

        def is_over() -> bool:
            return bool(self._watches) or self._is_closed

        with self._changed:
            if not self._changed.wait_for(is_over, IDLE_SECONDS):
                changes.close()  # Otherwise the unread notifications would accumulate in the server.
                self._changed.wait_for(is_over)
            return not self._is_closed

    def _may_have_changed(self, changes: Changes) -> bool:
        committed = changes.any()
        with self._changed:
            if committed is None:
                committed = any(watch.is_hurried for watches in self._watches.values() for watch in watches)
            return committed or self._has_new

    def _poll(self) -> None:
        with self._changed:
            self._has_new = False
            seen = {id: min(each.order.version for each in watches) for id, watches in self._watches.items()}
        if seen:
            self._notify(self._read_changed(seen))

    def _read_changed(self, seen: dict[int, int]) -> dict[int, Order]:
        """Read the orders whose version differs from the oldest one seen."""
        with self._database.reading() as connection:
            versions = order_rows.versions(connection, list(seen))
            changed = [id for id, version in versions.items() if version not in (seen[id], self._skipped.get(id))]
            unreadable: list[UnreadableOrder] = []
            found = order_rows.read_orders(connection, changed, unreadable=unreadable) if changed else {}
        self._skipped |= {error.order_id: versions[error.order_id] for error in unreadable}
        self._unreadable.report(unreadable)
        return found

    def _notify(self, changed: dict[int, Order]) -> None:
        with self._changed:
            for order_id, order in changed.items():
                for watch in self._watches.get(order_id, ()):
                    if watch.order.version != order.version:
                        watch.order = order
                        watch.changed.set()


class MenuWait:
    """The waits of POST requests for the menu, at most `limit` at a time."""

    def __init__(self, watcher: Watcher, stopping: StopFlag, *, limit: int) -> None:
        self._watcher, self._stopping = watcher, stopping
        self._slots = threading.Semaphore(limit)

    def wait(self, order: Order, seconds: float) -> Order:
        """Return the order once the menu has answered, or as it is when the time is up or too many requests wait."""
        end = time.monotonic() + seconds
        if order.state not in AWAITING_MENU or not seconds or not self._slots.acquire(blocking=False):
            return order
        try:
            with self._watcher.watch(order, is_hurried=True) as watch:
                while order.state in AWAITING_MENU and (left := end - time.monotonic()) > 0:
                    if self._stopping.is_set():
                        break
                    order = watch.wait(min(left, STOP_CHECK_SECONDS))
        finally:
            self._slots.release()
        return order
