"""How a synchronous answer meets asynchronous replies: many requests wait, one watcher asks the database for all."""

import re
import threading
from dataclasses import dataclass, field

import structlog

from order_service.domain.order import Order
from order_service.process import first_line
from order_service.storage import orders as order_rows
from order_service.storage.database import Database

log = structlog.get_logger(__name__)
#: How often the watcher asks for all waiting orders at once, in seconds.
TICK_SECONDS = 0.01
#: The same while the database is away.
AWAY_SECONDS = 0.5
#: The longest wait a client may ask for, in seconds.
MAX_WAIT_SECONDS = 30
_WAIT = re.compile(r'^wait\s*=\s*"?(\d{1,100})"?$', re.IGNORECASE)


def preferred_wait(preferences: str, default: float) -> tuple[float, str]:
    """Seconds to wait for the menu, and the preferences honoured, by the Prefer header (RFC 7240).

    What is not understood is ignored, as the RFC asks.
    """
    tokens = [token.split(";")[0].strip() for token in preferences.split(",")]
    waits = [int(found[1]) for token in tokens if (found := _WAIT.match(token))]
    applied = ["respond-async"] if any(token.lower() == "respond-async" for token in tokens) else []
    seconds: float = 0 if applied else default
    if waits:
        seconds = min(waits[0], MAX_WAIT_SECONDS)
        applied.append(f"wait={seconds}")
    return seconds, ", ".join(applied)


@dataclass(eq=False)
class _Waiter:
    order: Order
    changed: threading.Event = field(default_factory=threading.Event)


class Watcher:
    """Tells those who wait that an order has changed. Its thread starts with the first one, after any fork."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[int, list[_Waiter]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def close(self) -> None:
        """End the thread. Those who still wait get no answer before their time is up."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread:
            self._thread.join()

    def wait(self, order: Order, seconds: float) -> Order:
        """The order as soon as it has another version than this, or this one when the time is up."""
        waiter = _Waiter(order)
        with self._changed:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
                thread.start()  # May fail; then the next one to wait tries again.
                self._thread = thread
            self._waiting.setdefault(order.id, []).append(waiter)
            self._changed.notify()
        waiter.changed.wait(seconds)
        with self._changed:
            self._waiting[order.id].remove(waiter)
            if not self._waiting[order.id]:
                del self._waiting[order.id]
        return waiter.order

    def _watch(self) -> None:
        pause, away = threading.Event(), False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                seen = {id: min(waiter.order.version for waiter in found) for id, found in self._waiting.items()}
            try:
                changed = self._look(seen)
                away = False
            except Exception as error:  # Without this thread every later request would wait in vain.
                if not away:
                    log.warning("waiting orders cannot be looked up", error=first_line(error))
                changed, away = {}, True
            self._wake(changed)
            pause.wait(AWAY_SECONDS if away else TICK_SECONDS)

    def _look(self, seen: dict[int, int]) -> dict[int, Order]:
        """Those of the orders that have another version than the oldest one seen."""
        with self._database.reading() as connection:
            versions = order_rows.versions(connection, list(seen))
            changed = [id for id, version in versions.items() if version != seen[id]]
            return order_rows.read_orders(connection, changed) if changed else {}

    def _wake(self, changed: dict[int, Order]) -> None:
        with self._changed:
            for order_id, order in changed.items():
                for waiter in self._waiting.get(order_id, ()):
                    if waiter.order.version != order.version:
                        waiter.order = order
                        waiter.changed.set()
