"""The command for the ids of new orders."""

import click

from order_service import process
from order_service.cli.open_database import open_database
from order_service.contract.events import MAX_ID
from order_service.storage import ids as sequence


@click.command()
@click.option("--start-at", type=click.IntRange(1, MAX_ID), help="The id that the next order is to get.")
def ids(start_at: int | None) -> None:
    """Print the id that the next order gets (DATABASE_URL), or raise it to that of --start-at. May be repeated.

    Exits with 2, and changes nothing, if the next id is already higher. On PostgreSQL, use the login that migrates.
    After a restore from a backup: see docs/operations.md.
    """
    with open_database(process.begin().database_url) as database:
        if start_at is None:
            with database.reading() as connection:
                found = sequence.next_id(connection)
        else:
            with database.writing() as connection:
                found = sequence.start_at(connection, start_at)
    if start_at and found > start_at:
        process.refuse(f"Nothing was changed: the next order gets the id {found}, and ids must not be given out twice.")
    click.echo(f"The next order gets the id {found}.")
