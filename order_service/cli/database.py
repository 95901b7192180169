"""The command for the operator of the database."""

import re

import click

from order_service.storage import roles as database_roles

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
def roles(prefix: str) -> None:
    """Print the SQL that creates a role for the owner and for each process, each with the least rights.

    Roles belong to a whole server: with several databases on one, use a prefix for each. The roles get no passwords;
    docs/rights.md shows how to set them.
    """
    click.echo(database_roles.sql(prefix), nl=False)
