"""The deadlines: reminders, expiry, and repeated requests for unconfirmed compensations."""

import time

import sqlalchemy as sa
import structlog

from order_service import handlers
from order_service.config import Settings
from order_service.process import StopFlag, first_line
from order_service.storage import orders
from order_service.storage.database import Database, current_time
from order_service.unit_of_work import unit_of_work

log = structlog.get_logger(__name__)
#: The polling interval, in seconds; a deadline takes effect when its transaction commits.
TICK_SECONDS = 0.5
#: How often orders are looked for whose deadline is later than the end of their lifetime, in seconds: it was set under
#: another value of ORDER_LIFETIME_SECONDS, or by a version without it.
LIFETIME_CHECK_SECONDS = 60
#: The most orders or compensations of one transaction.
LIMIT = 100


class Deadlines:
    """Processes due deadlines and compensations until stopped; several instances share the work."""

    def __init__(self, settings: Settings, database: Database, stop: StopFlag) -> None:
        self._policy, self._database, self._stop = settings.policy, database, stop
        #: When lifetimes are checked next, on the monotonic clock.
        self._lifetime_check = 0.0

    def run(self) -> None:
        while not self._stop.wait(TICK_SECONDS):
            for work in (self._check_lifetimes, self._pass_deadlines, self._repeat_compensations):
                try:
                    while not self._stop.is_set() and work():
                        pass
                except sa.exc.SQLAlchemyError as error:
                    log.warning(
                        "due deadlines and compensations could not be processed, retrying", error=first_line(error)
                    )
                except Exception:
                    log.exception("due deadlines and compensations could not be processed")

    def _any_due(self) -> bool:
        """Whether anything is due.

        Reading is cheaper than a transaction that may write, and does not notify the relay.
        """
        with self._database.reading() as connection:
            return orders.any_due(connection, current_time(connection))

    def _check_lifetimes(self) -> bool:
        """Make due the pending orders that are too old, at intervals; return False: these are all."""
        if time.monotonic() >= self._lifetime_check:
            with self._database.writing() as connection:
                orders.make_oldest_due(connection, current_time(connection), self._policy.lifetime)
            self._lifetime_check = time.monotonic() + LIFETIME_CHECK_SECONDS
        return False

    def _pass_deadlines(self) -> bool:
        """Pass one batch of deadlines; return whether there may be more."""
        if not self._any_due():
            return False
        with unit_of_work(self._database, self._policy) as work:
            return handlers.pass_deadlines(work, limit=LIMIT) == LIMIT

    def _repeat_compensations(self) -> bool:
        """Repeat one batch of requests; return whether there may be more. Logs those unconfirmed for too long."""
        if not self._any_due():
            return False
        with unit_of_work(self._database, self._policy) as work:
            repeated = handlers.repeat_compensations(work, limit=LIMIT)
        for row in repeated:
            if row.attempts + 1 >= self._policy.compensation_attempts:
                log.error("compensation unconfirmed by the sibling service", type=row.type, id=row.id,
                          order_id=row.order_id, attempts=row.attempts + 1)  # fmt: skip
        return len(repeated) == LIMIT
