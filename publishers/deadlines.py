"""What time alone decides: reminders, expiry, and asking again for what was not given back."""

import threading
from datetime import timedelta

import sqlalchemy as sa
import structlog

from order_service import handlers
from order_service import process as startup
from order_service.config import Settings
from order_service.domain.saga import Clock
from order_service.storage import orders as order_rows
from order_service.storage.database import Database

log = structlog.get_logger(__name__)
#: How often the clock is looked at, in seconds; a deadline counts when its transaction commits.
TICK_SECONDS = 0.5
#: How many orders or compensations one transaction takes.
LIMIT = 100


class Deadlines:
    """Passes deadlines until stopped; several instances share the work."""

    def __init__(self, settings: Settings, database: Database, stop: threading.Event) -> None:
        self._settings, self._database, self._stop = settings, database, stop

    def run(self) -> None:
        while not self._stop.wait(TICK_SECONDS):
            for work in (self._pass_orders, self._repeat_compensations):
                try:
                    while not self._stop.is_set() and work():
                        pass
                except sa.exc.SQLAlchemyError as error:
                    log.warning("deadlines could not be passed, trying again", error=startup.first_line(error))
                except Exception:
                    log.exception("deadlines could not be passed")

    def _clock(self) -> Clock:
        return Clock(startup.utc_now(), self._settings.reply_within, self._settings.pay_within)

    def _any_due(self) -> bool:
        """Looking costs less than a transaction that may write, and wakes no relay."""
        with self._database.reading() as connection:
            return order_rows.any_due(connection, startup.utc_now())

    def _pass_orders(self) -> bool:
        """True if there may be more."""
        if not self._any_due():
            return False
        changes = handlers.Changes(self._clock(), timedelta(seconds=self._settings.compensation_seconds))
        with self._database.writing() as connection:
            return handlers.pass_deadlines(connection, changes, limit=LIMIT) == LIMIT

    def _repeat_compensations(self) -> bool:
        """True if there may be more. A release or a refund unconfirmed for too long is reported each time."""
        if not self._any_due():
            return False
        pause = timedelta(seconds=self._settings.compensation_seconds)
        with self._database.writing() as connection:
            repeated = handlers.repeat_compensations(connection, self._clock(), first_pause=pause, limit=LIMIT)
        for row in repeated:
            if row.attempts + 1 >= self._settings.compensation_attempts:
                log.error("unconfirmed: the sibling service has not given this back", type=row.type, id=row.id,
                          order_id=row.order_id, attempts=row.attempts + 1)  # fmt: skip
        return len(repeated) == LIMIT
