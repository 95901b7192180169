"""The commands for the outbox: what waits to be published, and another attempt at once."""

import click

from order_service import process
from order_service.cli.open_database import open_database
from order_service.cli.reporting import ForScripts, Report, counted
from order_service.domain.explanation import SLACK, duration
from order_service.storage import outbox as rows
from order_service.storage.database import current_time


@click.group()
def outbox() -> None:
    """List the messages that wait to be published, and have them tried again at once."""


@outbox.command("list", cls=ForScripts)
def list_rows() -> Report:
    """List the waiting messages by type and routing key.

    Exits with 0 if none is older than 10 s, with 1 if one is, with 2 if the command could not run.
    """
    with open_database(process.begin().database_url) as database, database.reading() as connection:
        now, found = current_time(connection), rows.summary(connection)
    lines = (
        f"{each.type} to {each.exchange or '(default)'} {each.routing_key}: {each.rows}, up to "
        f"{duration(now - each.oldest)} old"
        + (f", {each.failed} failed up to {each.attempts} times" if each.failed else "")
        for each in found
    )
    is_late = any(now - each.oldest > SLACK for each in found)
    return Report(
        [dict(each._mapping) for each in found], lines, f"{sum(each.rows for each in found)} waiting", is_late
    )


@outbox.command(cls=ForScripts)
def retry() -> Report:
    """Have the messages that the broker returned or refused tried again now. May be repeated.

    Exits with 0 if there were some, with 1 if not, with 2 if the command could not run.
    """
    with open_database(process.begin().database_url) as database, database.writing() as connection:
        count = rows.retry(connection, current_time(connection))
    return Report({"retried": count}, [f"{counted(count, 'message')} tried again now"], has_findings=not count)
