"""The database of a command, and how a command ends that cannot use it."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from order_service import process
from order_service.process import AccessRefused
from order_service.storage import schema
from order_service.storage.database import Database
from order_service.storage.errors import READ_ONLY

#: How long a statement waits for a lock, in seconds: a command must not hold up what it waits behind.
LOCK_SECONDS = 5
_LOCK_NOT_AVAILABLE = "55P03"
_SESSIONS = (
    "end the session that holds it: SELECT pid, application_name, state, xact_start FROM pg_stat_activity "
    "ORDER BY xact_start, then SELECT pg_terminate_backend(pid)"
)


@contextmanager
def open_database(url: str) -> Iterator[Database]:
    """A migrated database, closed after the block. Exits with 2 and names the remedy if it cannot be used."""
    with requires_database(url), Database(url, pool_size=1, lock_seconds=LOCK_SECONDS) as database:
        schema.check_migrated(database)
        yield database


@contextmanager
def requires_database(url: str) -> Iterator[None]:
    """Exit with 2 and name DATABASE_URL if the database cannot be used in the block, as the processes do."""
    try:
        with schema.usable(url):
            yield
    except schema.NotMigrated as error:
        process.refuse(f"DATABASE_URL: {error}: run `python -m order_service migrate` first")
    except AccessRefused as error:
        process.refuse(f"DATABASE_URL: access to the database is refused: {error}")
    except sa.exc.SQLAlchemyError as error:
        known = known_problem(url, error)
        text, fix = known or ("unusable", "check that it is running and that DATABASE_URL is right")
        cause = process.first_line(getattr(error, "orig", None) or error)
        process.refuse(f"DATABASE_URL: the database is {text}: {cause}\nTo mend it, {fix}.")


def known_problem(url: str, error: sa.exc.SQLAlchemyError) -> tuple[str, str] | None:
    """What is wrong with a database that is read-only or locked, and what to do."""
    cause = getattr(error, "orig", error)
    code, state = getattr(cause, "sqlite_errorcode", 0) & 0xFF, getattr(cause, "sqlstate", None)
    if state == READ_ONLY or code == sqlite3.SQLITE_READONLY:
        fix = "name the primary in DATABASE_URL (target_session_attrs=read-write), or make the file writable"
        return "read-only", fix
    if state == _LOCK_NOT_AVAILABLE or code == sqlite3.SQLITE_BUSY:
        is_file = state is None
        fix = f"stop the program that holds it: fuser -v {sa.make_url(url).database}" if is_file else _SESSIONS
        return "locked by another program", fix
    return None
