"""The commands for the operator of the database: the roles of PostgreSQL, and the ids of new orders."""

import os
import re

import click

from order_service import process
from order_service.cli.open_database import open_database, requires_database
from order_service.contract.events import MAX_ID
from order_service.credentials import secret
from order_service.storage import ids as sequence
from order_service.storage import roles as database_roles
from order_service.storage.database import Database

#: The longest prefix: PostgreSQL cuts names to 63 bytes.
MAX_PREFIX = 63 - len("_publishers")


def _prefix(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch("[a-z][a-z0-9_]*", value) or len(value) > MAX_PREFIX:
        raise click.BadParameter(f"must be small letters, digits and _, at most {MAX_PREFIX}, and begin with a letter")
    return value


@click.group()
def database() -> None:
    """Prepare PostgreSQL."""


@database.command()
@click.option("--prefix", default="order", show_default=True, callback=_prefix, help="What the names begin with.")
@click.option("--apply", is_flag=True, help="Run it (DATABASE_URL) instead, as an administrator or as the owner.")
def roles(prefix: str, apply: bool) -> None:
    """Print the SQL that creates a role for the owner and for each process, each with the least rights.

    Roles belong to a whole server: with several databases on one, use a prefix for each. The SQL sets no passwords;
    --apply sets those in DATABASE_OWNER_PASSWORD, DATABASE_API_PASSWORD, DATABASE_CONSUMERS_PASSWORD,
    DATABASE_PUBLISHERS_PASSWORD and DATABASE_READONLY_PASSWORD, or in the files that these variables name with _FILE
    appended, and leaves the others as they are. See docs/rights.md.
    """
    if apply:
        _apply(prefix)
    else:
        click.echo(database_roles.sql(prefix), nl=False)


def _apply(prefix: str) -> None:
    url = process.begin().database_url
    if not url.startswith("postgresql"):
        process.refuse("DATABASE_URL: only PostgreSQL has roles; name a server (postgresql://user:password@host/name)")
    passwords = {}
    for role in (database_roles.OWNER, *database_roles.RIGHTS):
        name = f"DATABASE_{role.upper()}_PASSWORD"
        try:
            if any(os.environ.get(each) for each in (name, f"{name}_FILE")):
                passwords[role] = secret(name)
        except ValueError as error:
            process.refuse(f"{name}: {error}")
    with requires_database(url), Database(url, pool_size=1) as opened:
        database_roles.apply(opened, prefix, passwords, lambda text: click.echo(f"PostgreSQL: {text}", err=True))
    click.echo(f"The roles of {prefix} have their rights.")


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
