"""Record orders and wait for the menu; the requests of a process share both.

Orders that arrive during a transaction are recorded together by the next one; one thread polls the database for the
orders of all waiting requests and streams.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
import structlog

from order_service import handlers
from order_service.backoff import Backoff, Postponed
from order_service.domain.order import AWAITING_MENU, Order
from order_service.domain.saga import Policy
from order_service.handlers import Placement
from order_service.process import StopFlag, first_line
from order_service.storage import orders as order_rows
from order_service.storage.database import Database, OutcomeUnknown, is_rolled_back, settle
from order_service.storage.orders import UnreadableOrder
from order_service.unit_of_work import unit_of_work

log = structlog.get_logger(__name__)
#: The most orders of one transaction; with more, the first would wait for the last.
BATCH_LIMIT = 100
#: The interval at which the watcher polls for all watched orders, in seconds.
POLL_SECONDS = 0.01
#: The same while the database is unavailable.
POLL_UNAVAILABLE_SECONDS = 0.5
#: How often an order that cannot be read is logged.
REPORT_BACKOFF = Backoff(first=60, longest=3600)
#: How often a waiting request or an open stream checks whether the process is stopping, in seconds.
STOP_CHECK_SECONDS = 1.0


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
        """Return the order, committed. Raises what its transaction raised.

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
                orders = handlers.place_orders(work, [entry.placement for entry in entries])
                for entry, order in zip(entries, orders, strict=True):
                    entry.order = order
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
class _Watch:
    order: Order
    changed: threading.Event = field(default_factory=threading.Event)


class Watcher:
    """Waits for changes of orders on behalf of many threads. The first wait starts its thread, after any fork."""

    def __init__(self, database: Database, unreadable: UnreadableOrders) -> None:
        self._database, self._unreadable = database, unreadable
        #: The versions that cannot be read, by order id: they are not read again.
        self._skipped: dict[int, int] = {}
        self._watches: dict[int, list[_Watch]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def close(self) -> None:
        """End the thread. Open waits end at their timeout."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread:
            self._thread.join()

    def wait(self, order: Order, seconds: float) -> Order:
        """Return the order as soon as its version changes, or as given when the time is up."""
        watch = _Watch(order)
        with self._changed:
            if self._thread is None and not self._is_closed:
                thread = threading.Thread(target=self._poll, name="watcher", daemon=True)
                thread.start()  # If it fails, the next wait tries again.
                self._thread = thread
            self._watches.setdefault(order.id, []).append(watch)
            self._changed.notify()
        watch.changed.wait(seconds)
        with self._changed:
            self._watches[order.id].remove(watch)
            if not self._watches[order.id]:
                del self._watches[order.id]
        return watch.order

    def _poll(self) -> None:
        pause, is_available = threading.Event(), True
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._watches or self._is_closed)
                if self._is_closed:
                    return
                seen = {id: min(each.order.version for each in watches) for id, watches in self._watches.items()}
            try:
                changed = self._read_changed(seen)
                is_available = True
            except Exception as error:  # If this thread ended, every later request would wait until its time is up.
                if is_available:
                    log.warning("cannot poll for the waiting orders", error=first_line(error))
                changed, is_available = {}, False
            self._notify(changed)
            pause.wait(POLL_SECONDS if is_available else POLL_UNAVAILABLE_SECONDS)

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
            while order.state in AWAITING_MENU and (left := end - time.monotonic()) > 0 and not self._stopping.is_set():
                order = self._watcher.wait(order, min(left, STOP_CHECK_SECONDS))
        finally:
            self._slots.release()
        return order
