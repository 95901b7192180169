"""The gauges of the database and of the broker's queues, read when they are scraped, but seldom."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import sqlalchemy as sa
import structlog
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from order_service import metrics
from order_service.config import Settings
from order_service.contract import topology
from order_service.management import Management, Unavailable
from order_service.process import Attempt, first_line
from order_service.storage import figures
from order_service.storage.database import Database
from order_service.storage.figures import Figures

log = structlog.get_logger(__name__)
#: The least time between two readings of the database, in seconds, and how many times their duration: during a long
#: outage of the broker the outbox is long.
PAUSE_SECONDS, PAUSE_SHARE = 5.0, 20
#: The same for the broker, whose queues hardly change. A scrape waits for its answer this long, in seconds.
BROKER_PAUSE_SECONDS, BROKER_SECONDS = 60.0, 2.0
#: How long a scrape waits for a reading, in seconds: a suspended server never answers.
READ_SECONDS = 4.0
#: What reading raises; the database raises the latter two of its own while connecting.
_UNREADABLE = (Unavailable, sa.exc.SQLAlchemyError, sqlite3.Error, psycopg.Error)


class Gauges(Collector):
    """The values that `read` returns; none while they cannot be read. `what` is their name in the log."""

    def __init__(self, what: str, read: Callable[[], Figures], *, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._what, self._read, self._pause = what, read, pause_seconds
        self._reading = Attempt(self._current, READ_SECONDS)
        self._lock, self._next_reading = threading.Lock(), 0.0
        self._values: Figures = {}

    def describe(self) -> Iterator[Family]:
        """Nothing, so that registering does not read."""
        return iter(())

    def collect(self) -> Iterator[Family]:
        with self._lock:
            began = time.monotonic()
            if began >= self._next_reading:
                self._values = self._reading.result() or {}
                ended = time.monotonic()
                self._next_reading = ended + max(self._pause, (ended - began) * PAUSE_SHARE)
            values = self._values
        yield from metrics.families(values)

    def _current(self) -> Figures:
        try:
            return self._read()
        except _UNREADABLE as error:
            problem = f"the gauges of {self._what} cannot be read"
            log.warning(problem, error=first_line(error))
            return {}


def of_database(database: Database, compensation_attempts: int) -> Gauges:
    def read() -> Figures:
        with database.reading() as connection:
            return figures.read(connection, compensation_attempts)

    return Gauges("the database", read)


def of_broker(settings: Settings) -> Gauges:
    """Whether the existing ones of our queues have other arguments than declared, as the management API says."""
    management = Management(settings, seconds=BROKER_SECONDS)
    queues = topology.declared_queues(menu_over_http=bool(settings.menu_service_url))

    def read() -> Figures:
        found = management.queues("arguments")
        ours = [each for queue in queues for each in queue.declarations if each.name in found]
        return {metrics.DRIFTED: {(each.name,): found[each.name].get("arguments") != each.arguments for each in ours}}

    return Gauges("the broker", read, pause_seconds=BROKER_PAUSE_SECONDS)
