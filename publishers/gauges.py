"""The gauges of the database, queried when they are scraped, but seldom."""

import sqlite3
import threading
import time
from collections.abc import Iterator

import psycopg
import sqlalchemy as sa
import structlog
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from order_service import metrics
from order_service.process import first_line
from order_service.storage import figures
from order_service.storage.database import Database
from order_service.storage.figures import Figures

log = structlog.get_logger(__name__)
#: The least time between two queries, in seconds, and how many times their duration: during a long outage of the broker
#: the outbox is long.
PAUSE_SECONDS, PAUSE_SHARE = 5.0, 20


class Gauges(Collector):
    """Has no values while the database cannot be read."""

    def __init__(self, database: Database, compensation_attempts: int) -> None:
        self._database, self._attempts = database, compensation_attempts
        self._lock, self._next_query = threading.Lock(), 0.0
        self._values: Figures = {}

    def describe(self) -> Iterator[Family]:
        """Nothing, so that registering does not query."""
        return iter(())

    def collect(self) -> Iterator[Family]:
        with self._lock:
            began = time.monotonic()
            if began >= self._next_query:
                self._values = self._query()
                ended = time.monotonic()
                self._next_query = ended + max(PAUSE_SECONDS, (ended - began) * PAUSE_SHARE)
            values = self._values
        yield from metrics.families(values)

    def _query(self) -> Figures:
        try:
            with self._database.reading() as connection:
                return figures.read(connection, self._attempts)
        except (sa.exc.SQLAlchemyError, sqlite3.Error, psycopg.Error) as error:  # the latter two while connecting
            log.warning("the gauges of the database cannot be read", error=first_line(error))
            return {}
