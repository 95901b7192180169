"""Many orders in one transaction: those that arrive while one is being committed go into the next one together."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue

import sqlalchemy as sa

from order_service.db import was_undone
from order_service.handlers import Placement
from order_service.order import Order

#: How many orders one transaction takes at most: beyond it the first of them would wait for the last.
LIMIT = 100

Entry = tuple[Placement, Future[Order]]


class Recorder:
    """Records orders for many threads. Its own thread starts with the first order, after any fork."""

    def __init__(self, record: Callable[[Sequence[Placement]], list[Order]]) -> None:
        """`record` writes orders in one transaction, or raises and has written none."""
        self._record = record
        self._waiting: SimpleQueue[Entry | None] = SimpleQueue()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def place(self, placement: Placement) -> Order:
        """The order, committed. Raises what its transaction raised."""
        if self._thread is None:
            with self._start:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="recorder", daemon=True)
                    thread.start()  # May fail; then the next order tries again.
                    self._thread = thread
        future: Future[Order] = Future()
        self._waiting.put((placement, future))
        return future.result()

    def close(self) -> None:
        """End the thread, once nobody places orders any more."""
        if self._thread:
            self._waiting.put(None)
            self._thread.join()

    def _run(self) -> None:
        while entry := self._waiting.get():
            entries = [entry]
            try:
                while len(entries) < LIMIT and (entry := self._waiting.get_nowait()):
                    entries.append(entry)
            except Empty:
                pass
            self._settle(entries)
            if entry is None:
                return

    def _settle(self, entries: Sequence[Entry]) -> None:
        try:
            orders = self._record([placement for placement, _ in entries])
        except BaseException as error:
            if len(entries) > 1 and isinstance(error, sa.exc.DBAPIError) and was_undone(error):
                # One of them was recorded before, or is being so just now; the others are not to suffer for it.
                for each in entries:
                    self._settle([each])
            else:
                for _, future in entries:
                    future.set_exception(error)
        else:
            for (_, future), order in zip(entries, orders, strict=True):
                future.set_result(order)
