"""The database of a command, and how a command ends that cannot use it."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from order_service import process
from order_service.process import AccessRefused
from order_service.storage import migrate
from order_service.storage.database import Database

#: How long a statement waits for a lock, in seconds: a command must not hold up what it waits behind.
LOCK_SECONDS = 5


@contextmanager
def open_database(url: str) -> Iterator[Database]:
    """A migrated database, closed after the block. Exits with 2 and names the remedy if it cannot be used."""
    with requires_database(url):
        database = Database(url, pool_size=1, lock_seconds=LOCK_SECONDS)
        try:
            migrate.check_migrated(database)
            yield database
        finally:
            database.dispose()


@contextmanager
def requires_database(url: str) -> Iterator[None]:
    """Exit with 2 and name DATABASE_URL if the database cannot be used in the block, as the processes do."""
    try:
        with migrate.usable(url):
            yield
    except migrate.NotMigrated as error:
        process.refuse(f"DATABASE_URL: {error}: run `python -m order_service migrate` first")
    except AccessRefused as error:
        process.refuse(f"DATABASE_URL: access to the database is refused: {error}")
    except sa.exc.SQLAlchemyError as error:
        process.refuse(
            f"DATABASE_URL: the database cannot be used: {process.first_line(error)}\n"
            "Check that it is running and that DATABASE_URL is right."
        )
