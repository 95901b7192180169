"""The commands for the outbox: what waits to be published, and another attempt at once."""

import click

from order_service import process
from order_service.cli.reporting import AS_JSON, ForScripts, finish, opened_database, print_json
from order_service.domain.explanation import SLACK, duration
from order_service.storage import outbox as rows
from order_service.storage.database import current_time


@click.group()
def outbox() -> None:
    """List the messages that wait to be published, and have them tried again at once."""


@outbox.command("list", cls=ForScripts)
@AS_JSON
def list_rows(as_json: bool) -> None:
    """List the waiting messages by type and routing key.

    Exits with 0 if none is older than 10 s, with 1 if one is, with 2 if the command could not run.
    """
    with opened_database(process.begin()) as database, database.reading() as connection:
        now, found = current_time(connection), rows.summary(connection)
    if as_json:
        print_json([dict(each._mapping) for each in found])
    else:
        for each in found:
            failed = f", {each.failed} failed up to {each.attempts} times" if each.failed else ""
            age = duration(now - each.oldest)
            route = f"{each.exchange or '(default)'} {each.routing_key}"
            click.echo(f"{each.type} to {route}: {each.rows}, up to {age} old{failed}")
        click.echo(f"{sum(each.rows for each in found)} waiting", err=True)
    finish(any(now - each.oldest > SLACK for each in found))


@outbox.command(cls=ForScripts)
@AS_JSON
def retry(as_json: bool) -> None:
    """Have the messages that the broker returned or refused tried again now. May be repeated."""
    with opened_database(process.begin()) as database, database.writing() as connection:
        count = rows.retry(connection, current_time(connection))
    if as_json:
        print_json({"retried": count})
    else:
        click.echo(f"{count} are tried again now")
