"""The command that looks for what is wrong with an installation, and names the command or the step that mends it."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
import sqlalchemy as sa

from order_service import process
from order_service.cli.broker import unread_replies
from order_service.cli.broker_checks import CONSUMERS, REACHABLE, TOPOLOGY, Finding, check_broker, compared_clock, ok
from order_service.cli.open_database import LOCK_SECONDS, known_problem
from order_service.cli.reporting import ForScripts, Report, counted
from order_service.config import Settings
from order_service.domain.explanation import SLACK, Cause, duration
from order_service.storage import facts, outbox, schema, tables
from order_service.storage.database import Database, current_time
from order_service.storage.orders import UnreadableOrder

#: The most late orders that are looked at.
MAX_LATE = 1000
_COLOURS = {"ok": "green", "failed": "red", "skipped": "yellow"}
_READABLE = ok("database", "reachable and migrated")
_PUBLISHERS = "start `python -m publishers`"


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
    with Database(settings.database_url, pool_size=1, lock_seconds=LOCK_SECONDS) as database:
        of_database = list(_database(database))
        of_broker = list(check_broker(settings))
        yield from (*of_database, *of_broker)
        if _READABLE not in of_database:
            return
        try:
            yield from _processes(settings, database, is_reachable=REACHABLE in of_broker)
        except sa.exc.SQLAlchemyError as error:
            yield Finding("orders", f"they cannot be read: {_cause(error)}", status="skipped")


def _database(database: Database) -> Iterator[Finding]:
    try:
        schema.check_migrated(database)
    except schema.NotMigrated as error:
        yield Finding("database", str(error), "python -m order_service migrate")
        return
    except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
        yield Finding("database", f"cannot be used: {_cause(error)}", "start it, or correct DATABASE_URL")
        return
    yield _READABLE
    try:
        with database.writing() as connection:
            for table in (tables.orders, tables.order_history, tables.outbox, tables.compensations):
                connection.execute(sa.update(table).where(sa.false()).values(id=table.c.id))
            offset = process.utc_now() - current_time(connection)
    except sa.exc.SQLAlchemyError as error:
        fallback = "cannot be written", "give its user the rights in docs/rights.md"
        text, fix = known_problem(database.url, error) or fallback
        yield Finding("database", f"{text}: {_cause(error)}", fix)
    else:
        yield ok("database", "writable")
        yield compared_clock("database", offset)


def _cause(error: Exception) -> str:
    return process.first_line(getattr(error, "orig", None) or error)


def _processes(settings: Settings, database: Database, is_reachable: bool) -> Iterator[Finding]:
    """Whether the relay, the deadlines and the sibling services do their work, by what waits in the database."""
    with database.reading() as connection:
        now, waiting = current_time(connection), outbox.summary(connection)
        unreadable: list[UnreadableOrder] = []
        late = facts.late(connection, policy=settings.policy, limit=MAX_LATE, unreadable=unreadable)
    for error in unreadable:
        text = f"one cannot be read, and waits: {process.printable(error)}"
        yield Finding("orders", text, "restore its row from a backup, or run the version that wrote it")
    for row in waiting:
        age = now - row.oldest
        if row.failed:
            text = f"{row.type} to {row.routing_key}: returned or refused, attempts: {row.attempts}; no queue takes it"
            yield Finding("relay", text, f"{TOPOLOGY}, and have the sibling service declare its queue")
        elif age > SLACK and is_reachable:
            yield Finding("relay", f"{row.rows} {row.type} wait in the outbox, up to {duration(age)}", _PUBLISHERS)
    causes = Counter((each.cause, each.waits_for) for each in late)
    overdue = sum(count for (cause, _), count in causes.items() if cause is Cause.OVERDUE)
    if overdue:
        text = f"those of {counted(overdue, 'order')} have passed, and nothing happened"
        yield Finding("deadlines", text, _PUBLISHERS)
    silent = {sibling: count for (cause, sibling), count in causes.items() if cause is Cause.SILENT}
    unread = unread_replies(settings, [sibling for sibling in silent if sibling])
    for sibling, count in silent.items():
        if state := unread.get(sibling or ""):
            text = f"{counted(count, 'order')} without an answer, which may be in {state}"
            yield Finding("consumers", text, CONSUMERS)
        else:
            text = f"{sibling}: no answer to {counted(count, 'order')}, sent to it more than once"
            yield Finding("siblings", text, f"look at the {str(sibling).title()} Service; `stuck` lists the orders")
    if not silent and not overdue and not unreadable:
        yield ok("orders", "none is stuck")
