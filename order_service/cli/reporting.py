"""What the commands for operators share: output as text or JSON, exit codes, and the database."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

import click
import sqlalchemy as sa

from order_service import process
from order_service.config import Settings
from order_service.contract.envelope import utc_text
from order_service.domain.order import UnknownOrder
from order_service.storage import migrate
from order_service.storage.database import Database

#: How long a statement waits for a lock on PostgreSQL, in seconds.
LOCK_SECONDS = 5


class Report(NamedTuple):
    """What a command found: the value that --json prints, and the lines that it prints otherwise."""

    value: object
    lines: Iterable[str]
    #: For standard error, beside the lines.
    note: str = ""
    #: Whether there is something to act on.
    has_findings: bool = False


class ForScripts(click.Command):
    """A command that returns a Report; it exits with 1 if there is something to act on, and with 2 if it cannot run."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."))

    def invoke(self, ctx: click.Context) -> None:
        as_json = ctx.params.pop("as_json")
        try:
            report: Report = super().invoke(ctx)
        except click.ClickException as error:
            error.exit_code = 2  # type: ignore[misc]
            raise
        if as_json:
            click.echo(json.dumps(report.value, indent=2, ensure_ascii=False, default=_encoded))
        else:
            for line in report.lines:
                click.echo(line)
            if report.note:
                click.echo(report.note, err=True)
        ctx.exit(int(report.has_findings))


def _encoded(value: object) -> str:
    return utc_text(value) if isinstance(value, datetime) else str(value)


@contextmanager
def opened_database(settings: Settings) -> Iterator[Database]:
    """The database. Raises ClickException if it cannot be used, or does not know the order."""
    database = Database(settings.database_url, pool_size=1, lock_seconds=LOCK_SECONDS)
    try:
        yield database
    except UnknownOrder as error:
        raise click.ClickException(str(error)) from error
    except migrate.NotMigrated as error:
        raise click.ClickException(f"{error}: run `python -m order_service migrate` first") from error
    except sa.exc.SQLAlchemyError as error:
        raise click.ClickException(
            f"the database cannot be used: {process.first_line(error)}\n"
            "Check that it is running and migrated, DATABASE_URL, and the rights of its user (docs/rights.md)."
        ) from error
    finally:
        database.dispose()
