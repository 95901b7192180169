"""Recognize a database whose schema is not up to date, or that cannot be used."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import sqlalchemy as sa

from order_service.credentials import masked
from order_service.process import AccessRefused, Stop, refuse, supervise
from order_service.storage.database import Database

MIGRATIONS = Path(__file__).parent.parent.parent / "migrations"

#: SQLite's errors for a path that only an operator can make usable.
UNUSABLE_FILE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY}
#: What PostgreSQL answers to a client that it refuses to connect. In another language than English the error is
#: reported as an unreachable database, with the server's text.
REFUSALS = re.compile(
    "authentication failed|no password supplied|pg_hba.conf|permission denied|does not exist"
    "|certificate|does not match host name|does not support SSL|private key"
)
#: The rights that a process needs on what PostgreSQL names in "permission denied for schema public".
RIGHTS = {"schema": "USAGE, CREATE", "table": "SELECT, INSERT, UPDATE, DELETE", "sequence": "USAGE, SELECT, UPDATE"}


class NotMigrated(Exception):
    """The database is reachable, but its schema is older than this code."""


def check_migrated(database: Database) -> None:
    """Raise NotMigrated if the schema is older than this code. A newer one is fine: migrations only add."""
    found, newest = revision(database), head()
    if found < newest:
        raise NotMigrated(f"the database is at migration {found or 'none'}, this program needs {newest}")


def head() -> str:
    """The newest migration. Each is called as its file, which begins with four digits."""
    return max(file.stem for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def revision(database: Database) -> str:
    """The database's migration, or an empty text."""
    with database.reading() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return ""
        return connection.scalar(sa.text("SELECT version_num FROM alembic_version")) or ""


def wait_for_database(database: Database, stop: Stop) -> None:
    """Return once the database is reachable and migrated, or `stop` is set. Exits with 2 if it is not migrated."""

    def check(_: object) -> None:
        try:
            with usable(database.url):
                check_migrated(database)
        except NotMigrated as error:
            refuse(f"{error}: run `python -m order_service migrate` first")

    supervise(check, stop, what="the database", unreachable=(sa.exc.SQLAlchemyError,))


@contextmanager
def usable(url: str) -> Iterator[None]:
    """Raise AccessRefused if PostgreSQL refuses this client, and exit with 2 if an SQLite file cannot be used."""
    try:
        yield
    except (sa.exc.DBAPIError, sqlite3.Error) as error:  # the latter from the event that configures a connection
        cause = getattr(error, "orig", error)
        if isinstance(cause, sqlite3.Error) and cause.sqlite_errorcode & 0xFF in UNUSABLE_FILE:
            refuse(
                f"DATABASE_URL: {masked(url)} cannot be used: {cause}. Name a file in a directory that this user may "
                "write to (sqlite:///path), or a PostgreSQL server (postgresql://user:password@host/name)."
            )
        is_refusal = isinstance(cause, psycopg.OperationalError | psycopg.errors.InsufficientPrivilege)
        if is_refusal and (answers := [line.strip() for line in str(cause).splitlines() if REFUSALS.search(line)]):
            raise AccessRefused(f"{masked(url)}: {answers[0]}{_remedy(url, answers[0])}") from error
        raise


def _remedy(url: str, answer: str) -> str:
    """What an operator can do about this answer; empty if the answer says it."""
    if "certificate verify failed" in answer:
        return "; sslrootcert must have the CA that signed the server's certificate, which must not have expired"
    found = re.search(r"permission denied for (schema|table|sequence) (\S+)", answer)
    if not found:
        return ""
    kind, name = found.groups()
    parts = sa.make_url(url)
    user = parts.username or parts.query.get("user", "...")
    return (
        "; connect as the role that docs/rights.md names for this program, with the rights that "
        "`python -m order_service database roles` prints. If all programs have one login, the owner must run: "
        f"GRANT {RIGHTS[kind]} ON {kind.upper()} {name} TO {user}"
    )
