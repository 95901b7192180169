"""The deadlines: reminders, expiry, and repeated requests for unconfirmed compensations."""

import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import structlog

from order_service import handlers
from order_service.backoff import Backoff, Postponed
from order_service.config import Settings
from order_service.ops import Loop
from order_service.process import REPORTS, StopFlag, first_line
from order_service.storage import orders as order_rows
from order_service.storage.bulk import Take
from order_service.storage.database import Database, current_time
from order_service.storage.errors import is_transient
from order_service.storage.tables import compensations, orders
from order_service.unit_of_work import unit_of_work

log = structlog.get_logger(__name__)
#: The polling interval, in seconds; a deadline takes effect when its transaction commits.
TICK_SECONDS = 0.5
#: How often orders are looked for whose deadline is later than the end of their lifetime, in seconds: it was set under
#: another value of ORDER_LIFETIME_SECONDS, or by a version without it.
LIFETIME_CHECK_SECONDS = 60
#: How long a row that cannot be processed is postponed, by this process only.
FAILED_BACKOFF = Backoff(first=1, longest=300)
#: The most orders or compensations of one transaction.
LIMIT = 100


class Deadlines:
    """Processes due deadlines and compensations until stopped; several instances share the work."""

    def __init__(self, settings: Settings, database: Database, stop: StopFlag) -> None:
        self._policy, self._database, self._stop = settings.policy, database, stop
        self._failing = {table.name: Postponed[Any](FAILED_BACKOFF) for table in (orders, compensations)}
        self.loop = Loop("deadlines")
        #: When lifetimes are checked next, on the monotonic clock.
        self._lifetime_check = 0.0

    def run(self) -> None:
        processes = (orders, self._pass_deadlines), (compensations, self._repeat_compensations)
        reported = Postponed[str](REPORTS)
        while not self._stop.wait(TICK_SECONDS):
            self.loop.turn()
            try:
                self._check_lifetimes()
                for table, process in processes:
                    while not self._stop.is_set() and self._process(table, process):
                        self.loop.turn()
                reported = Postponed(REPORTS)
            except sa.exc.SQLAlchemyError as error:
                if reported.add("database"):
                    problem = "due deadlines and compensations could not be processed, retrying"
                    log.warning(problem, error=first_line(error))
            except Exception:
                if reported.add("other"):
                    log.exception("due deadlines and compensations could not be processed")

    def _check_lifetimes(self) -> None:
        """At intervals, make due the pending orders that are too old."""
        if time.monotonic() >= self._lifetime_check:
            with self._database.writing() as connection:
                order_rows.make_oldest_due(connection, current_time(connection), self._policy.lifetime)
            self._lifetime_check = time.monotonic() + LIFETIME_CHECK_SECONDS

    def _process(self, table: sa.Table, process: Callable[[Take], int]) -> bool:
        """Process one batch of due rows, or its rows one by one if it fails; return whether there may be more."""
        take = Take(LIMIT, without=self._failing[table.name].current())
        # Reading is cheaper than a transaction that may write, and does not notify the relay.
        with self._database.reading() as connection:
            ids = order_rows.due_ids(connection, table, current_time(connection), take)
        if not ids:
            return False
        try:
            return process(take) == LIMIT
        except Exception as error:
            if is_transient(error):
                raise
        for id in ids:
            self.loop.turn()
            self._process_singly(table, process, id)
        return len(ids) == LIMIT

    def _process_singly(self, table: sa.Table, process: Callable[[Take], int], id: Any) -> None:
        """Process one due row, or postpone it if it fails, so that it delays no other row."""
        try:
            process(Take(1, only=id))
        except Exception as error:
            if is_transient(error):
                raise
            self._failing[table.name].add(id)
            log.error("a due row cannot be processed, retrying later", table=table.name, id=id,
                      order_id=getattr(error, "order_id", None), error=first_line(error))  # fmt: skip

    def _pass_deadlines(self, take: Take) -> int:
        with unit_of_work(self._database, self._policy) as work:
            return handlers.pass_deadlines(work, take)

    def _repeat_compensations(self, take: Take) -> int:
        """Repeat requests and log those unconfirmed for too long."""
        with unit_of_work(self._database, self._policy) as work:
            repeated = handlers.repeat_compensations(work, take)
        for row in repeated:
            if row.attempts + 1 >= self._policy.compensation_attempts:
                log.error("compensation unconfirmed by the sibling service", type=row.type, id=row.id,
                          order_id=row.order_id, reason=row.reason, attempts=row.attempts + 1)  # fmt: skip
        return len(repeated)
