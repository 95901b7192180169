"""Many orders in one transaction: those that arrive while one is being committed go into the next one together."""

import threading
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from order_service.domain.order import Order
from order_service.handlers import Placement
from order_service.storage.database import is_rolled_back

#: How many orders one transaction takes at most: beyond it the first of them would wait for the last.
LIMIT = 100


class _Entry:
    """One order that a request wants recorded, and what became of it."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.order: Order | None = None
        self.error: BaseException | None = None
        self.is_to_go_alone = False
        # A bare lock, taken until somebody wakes us: a third of what an Event costs.
        self._asleep = threading.Lock()
        self._asleep.acquire()
        self.sleep, self.wake = self._asleep.acquire, self._asleep.release

    def result(self) -> Order:
        if self.order is None:
            assert self.error  # noqa: S101 - one of them is set once it is settled
            raise self.error
        return self.order


class Recorder:
    """Records orders for many threads: the first to come leads, and takes with it all that wait by then."""

    def __init__(self, record: Callable[[Sequence[Placement]], list[Order]]) -> None:
        """`record` writes orders in one transaction, or raises and has written none."""
        self._record = record
        self._lock = threading.Lock()
        self._waiting: list[_Entry] = []
        self._is_led = False

    def place(self, placement: Placement) -> Order:
        """The order, committed. Raises what its transaction raised."""
        entry = _Entry(placement)
        with self._lock:
            self._waiting.append(entry)
            follows, self._is_led = self._is_led, True
        if follows:
            entry.sleep()
        if entry.order is None and entry.error is None:
            self._lead()
        if entry.is_to_go_alone:
            # In its own thread: one that waits for a lock keeps nobody else waiting.
            [entry.order] = self._record([placement])
        return entry.result()

    def _lead(self) -> None:
        """Settle those that wait, and hand over to the first of those that came meanwhile."""
        with self._lock:
            entries, self._waiting = self._waiting[:LIMIT], self._waiting[LIMIT:]
        self._settle(entries)
        with self._lock:
            successor = self._waiting[0] if self._waiting else None
            self._is_led = successor is not None
        if successor:
            successor.wake()
        for entry in entries[1:]:
            entry.wake()

    def _settle(self, entries: Sequence[_Entry]) -> None:
        """Whatever goes wrong, each has an order or an error afterwards; some are to try again alone."""
        try:
            orders = self._record([entry.placement for entry in entries])
            for entry, order in zip(entries, orders, strict=True):
                entry.order = order
        except BaseException as error:
            # One of them was recorded before, or is being so just now; the others are not to suffer for it.
            undone = len(entries) > 1 and isinstance(error, sa.exc.DBAPIError) and is_rolled_back(error)
            for entry in entries:
                entry.error, entry.is_to_go_alone = error, undone
