"""The errors of the database: what each says about the transaction that it ended, and whether to repeat it."""

import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

#: PostgreSQL's code of a write in a read-only transaction: the connection leads to a standby.
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
READ_ONLY = "25006"
#: How long a transaction with an unknown outcome is repeated, and the pause between two attempts, in seconds.
SETTLE_SECONDS, SETTLE_PAUSE_SECONDS = 3.0, 0.1
#: PostgreSQL's code of a row that it cannot read.
DAMAGED = "XX001"
T = TypeVar("T")


class OutcomeUnknown(sa.exc.OperationalError):
    """The reply to a COMMIT was lost: the transaction has been committed, or has not, or still will be."""


def settle(repeat: Callable[[], T], unknown: OutcomeUnknown) -> T:
    """Repeat a transaction with an unknown outcome until its outcome is known; return its result.

    `repeat` must wait for the end of the earlier transaction, by a lock or a unique column, and succeed also if that
    one was committed. Raises OutcomeUnknown if the database is unavailable for SETTLE_SECONDS.
    """
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            return repeat()
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            if not is_transient(error):
                raise
            if time.monotonic() > end:
                raise unknown from error
        time.sleep(SETTLE_PAUSE_SECONDS)


def is_rolled_back(error: sa.exc.DBAPIError) -> bool:
    """Whether the transaction has certainly written nothing and failed because of one of its rows.

    True for a violated constraint, a deadlock and a lock timeout; not for a lost connection, whose COMMIT may have
    been executed.
    """
    return isinstance(error, sa.exc.IntegrityError) or getattr(error.orig, "sqlstate", None) in ("40P01", "55P03")


def is_damaged(error: Exception) -> bool:
    """Whether PostgreSQL cannot read a row from its disk; the transaction has ended."""
    return isinstance(error, sa.exc.DBAPIError) and getattr(error.orig, "sqlstate", None) == DAMAGED


def is_transient(error: Exception) -> bool:
    """Whether the same transaction may succeed later; False for invalid data, violated constraints and damaged rows."""
    if isinstance(error, sa.exc.DataError | sa.exc.IntegrityError) or is_damaged(error):
        return False
    return isinstance(error, sa.exc.DBAPIError | sa.exc.TimeoutError | MemoryError | OSError)
