"""How a synchronous answer meets asynchronous replies: many requests wait, one watcher asks the database for all."""

import re
import threading

import structlog

from order_service import db
from order_service.db import Database
from order_service.startup import first_line

log = structlog.get_logger(__name__)
#: How often the watcher asks for all waiting orders at once, in seconds.
TICK_SECONDS = 0.01
#: The same while the database is away.
AWAY_SECONDS = 0.5
#: The longest wait a client may ask for, in seconds.
MAX_WAIT_SECONDS = 30
_WAIT = re.compile(r'^wait\s*=\s*"?(\d{1,100})"?$', re.IGNORECASE)


def preferred_wait(preferences: list[str], default: float) -> tuple[float, str]:
    """Seconds to wait for the menu, and the preferences honoured, by the Prefer headers (RFC 7240).

    What is not understood is ignored, as the RFC asks.
    """
    tokens = [token.split(";")[0].strip() for line in preferences for token in line.split(",")]
    waits = [int(found[1]) for token in tokens if (found := _WAIT.match(token))]
    applied = ["respond-async"] if any(token.lower() == "respond-async" for token in tokens) else []
    seconds: float = 0 if applied else default
    if waits:
        seconds = min(waits[0], MAX_WAIT_SECONDS)
        applied.append(f"wait={seconds}")
    return seconds, ", ".join(applied)


class Watcher:
    """Tells those who wait that an order has changed. Its thread starts with the first one, after any fork."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[int, list[tuple[int, threading.Event]]] = {}
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

    def wait(self, order_id: int, version: int, seconds: float) -> bool:
        """True as soon as the order has another version than this; False when the time is up."""
        entry = (version, threading.Event())
        with self._changed:
            self._waiting.setdefault(order_id, []).append(entry)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            return entry[1].wait(seconds)
        finally:
            with self._changed:
                self._waiting[order_id].remove(entry)
                if not self._waiting[order_id]:
                    del self._waiting[order_id]

    def _watch(self) -> None:
        pause, away = threading.Event(), False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                ids = list(self._waiting)
            try:
                with self._database.reading() as connection:
                    versions = db.versions(connection, ids)
                away = False
            except Exception as error:  # Without this thread every later request would wait in vain.
                if not away:
                    log.warning("waiting orders cannot be looked up", error=first_line(error))
                versions, away = {}, True
            self._wake(versions)
            pause.wait(AWAY_SECONDS if away else TICK_SECONDS)

    def _wake(self, versions: dict[int, int]) -> None:
        with self._changed:
            for order_id, version in versions.items():
                for seen, changed in self._waiting.get(order_id, ()):
                    if version != seen:
                        changed.set()
