"""The command that looks for what is wrong with an installation, and names the command or the step that mends it."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
import sqlalchemy as sa

from order_service import process
from order_service.cli.broker_checks import REACHABLE, READABLE, TOPOLOGY, Finding, check_broker, compared_clock, ok
from order_service.cli.open_database import LOCK_SECONDS
from order_service.cli.reporting import ForScripts, Report
from order_service.config import Settings
from order_service.domain.explanation import SLACK, Cause, duration
from order_service.storage import facts, migrate, outbox, tables
from order_service.storage.database import READ_ONLY, Database, current_time

#: The most late orders that are looked at.
MAX_LATE = 1000
_COLOURS = {"ok": "green", "failed": "red", "skipped": "yellow"}
_PUBLISHERS = "start `python -m publishers`"
_SESSIONS = (
    "end the session that holds it: SELECT pid, application_name, state, xact_start FROM pg_stat_activity "
    "ORDER BY xact_start, then SELECT pg_terminate_backend(pid)"
)


@click.command(cls=ForScripts)
def doctor() -> Report:
    """Check the database, the broker, the processes and the sibling services; name what is wrong and how to mend it.

    Changes nothing. Exits with 0 if all is well, with 1 if a check failed, with 2 if the command could not run.
    """
    found = list(examine(process.begin()))
    lines = (
        f"{click.style(f'{each.status:<8}', fg=_COLOURS[each.status])} {each.check:<10} {each.text}"
        + (f"\n{'':<19} fix: {each.fix}" if each.fix else "")
        for each in found
    )
    return Report([asdict(each) for each in found], lines, has_findings=any(each.status == "failed" for each in found))


def examine(settings: Settings) -> Iterator[Finding]:
    """Check everything; what cannot be checked because of another failure is left out."""
    url = sa.make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        # To connect would create it, and an empty database is not what a mistyped path is to lead to.
        yield Finding("database", f"there is no file {url.database}", "correct DATABASE_URL, or migrate a new one")
        yield from check_broker(settings)
        return
    database = Database(settings.database_url, pool_size=1, lock_seconds=LOCK_SECONDS)
    try:
        of_database = list(_database(database))
        of_broker = list(check_broker(settings))
        yield from (*of_database, *of_broker)
        if READABLE in of_database:
            yield from _processes(settings, database, is_reachable=REACHABLE in of_broker)
    except sa.exc.SQLAlchemyError as error:
        yield Finding("orders", f"they cannot be read: {_cause(error)}", status="skipped")
    finally:
        database.dispose()


def _database(database: Database) -> Iterator[Finding]:
    try:
        migrate.check_migrated(database)
    except migrate.NotMigrated as error:
        yield Finding("database", str(error), "python -m order_service migrate")
        return
    except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
        yield Finding("database", f"cannot be used: {_cause(error)}", "start it, or correct DATABASE_URL")
        return
    yield READABLE
    try:
        with database.writing() as connection:
            for table in (tables.orders, tables.order_history, tables.outbox, tables.compensations):
                connection.execute(sa.update(table).where(sa.false()).values(id=table.c.id))
            offset = process.utc_now() - current_time(connection)
    except sa.exc.SQLAlchemyError as error:
        yield _unwritable(database, error)
    else:
        yield ok("database", "writable")
        yield compared_clock("database", offset)


def _unwritable(database: Database, error: sa.exc.SQLAlchemyError) -> Finding:
    cause = getattr(error, "orig", error)
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if getattr(cause, "sqlstate", None) == READ_ONLY or code == sqlite3.SQLITE_READONLY:
        fix = "name the primary in DATABASE_URL (target_session_attrs=read-write), or make the file writable"
        return Finding("database", f"read-only: {_cause(error)}", fix)
    if getattr(cause, "sqlstate", None) == "55P03" or code == sqlite3.SQLITE_BUSY:
        path = sa.make_url(database.url).database
        fix = f"stop the program that holds it: fuser -v {path}" if database.is_sqlite else _SESSIONS
        return Finding("database", f"locked by another program: {_cause(error)}", fix)
    return Finding("database", f"cannot be written: {_cause(error)}", "give its user the rights in docs/rights.md")


def _cause(error: Exception) -> str:
    return process.first_line(getattr(error, "orig", None) or error)


def _processes(settings: Settings, database: Database, is_reachable: bool) -> Iterator[Finding]:
    """Whether the relay, the deadlines and the sibling services do their work, by what waits in the database."""
    with database.reading() as connection:
        now, waiting = current_time(connection), outbox.summary(connection)
        late = facts.late(connection, policy=settings.policy, limit=MAX_LATE)
    for row in waiting:
        age = now - row.oldest
        if row.failed:
            text = f"{row.type} to {row.routing_key}: returned or refused {row.attempts} times; no queue takes it"
            yield Finding("relay", text, f"{TOPOLOGY}, and have the sibling service declare its queue")
        elif age > SLACK and is_reachable:
            yield Finding("relay", f"{row.rows} {row.type} wait in the outbox, up to {duration(age)}", _PUBLISHERS)
    causes = Counter((each.cause, each.waits_for) for each in late)
    overdue = sum(count for (cause, _), count in causes.items() if cause is Cause.OVERDUE)
    if overdue:
        yield Finding("deadlines", f"those of {overdue} orders have passed, and nothing happened", _PUBLISHERS)
    silent = {sibling: count for (cause, sibling), count in causes.items() if cause is Cause.SILENT}
    for sibling, count in silent.items():
        text = f"{sibling}: {count} orders were sent to it more than once, and have no answer"
        yield Finding("siblings", text, f"look at the {str(sibling).title()} Service; `stuck` lists the orders")
    if not silent and not overdue:
        yield ok("orders", "none is stuck")
