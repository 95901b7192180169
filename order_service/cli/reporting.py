"""What the commands for operators share: exit codes, JSON, and the database."""

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click
import sqlalchemy as sa

from order_service import process
from order_service.config import Settings
from order_service.contract.envelope import utc_text
from order_service.domain.order import UnknownOrder
from order_service.storage.database import Database

#: How long a statement waits for a lock on PostgreSQL, in seconds.
LOCK_SECONDS = 5
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class CannotRun(click.ClickException):
    """The command could not do its work."""

    exit_code = 2


class ForScripts(click.Command):
    """A command that exits with 0 if all is well, 1 if it found something to act on, and 2 if it could not run."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError:
            raise
        except click.ClickException as error:
            raise CannotRun(error.message) from error


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_encoded))


def _encoded(value: object) -> str:
    return utc_text(value) if isinstance(value, datetime) else str(value)


def finish(has_findings: object) -> None:
    """Exit with 1 if there is something to act on."""
    if has_findings:
        raise SystemExit(1)


@dataclass(frozen=True)
class Finding:
    """The result of one check: ok, failed or skipped; `fix` is what to do."""

    check: str
    status: str
    text: str
    fix: str = ""


#: The findings of some checks, and whether what they are about can be used.
Findings = Generator[Finding, None, bool]


def ok(check: str, text: str) -> Finding:
    return Finding(check, "ok", text)


def failed(check: str, text: str, fix: str) -> Finding:
    return Finding(check, "failed", text, fix)


@contextmanager
def opened_database(settings: Settings) -> Iterator[Database]:
    """The database. Raises ClickException if it cannot be used, or does not know the order."""
    database = Database(settings.database_url, pool_size=1, lock_seconds=LOCK_SECONDS)
    try:
        yield database
    except UnknownOrder as error:
        raise click.ClickException(str(error)) from error
    except sa.exc.SQLAlchemyError as error:
        raise click.ClickException(
            f"the database cannot be used: {process.first_line(error)}\n"
            "Check that it is running, that DATABASE_URL is right, and that `python -m order_service migrate` was run."
        ) from error
    finally:
        database.dispose()
