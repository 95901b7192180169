"""What the commands for operators share: output as text or JSON, and exit codes."""

import base64
import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import click

from order_service import process
from order_service.contract.envelope import utc_text
from order_service.contract.events import MAX_ID
from order_service.domain.order import UnknownOrder
from order_service.storage.orders import UnreadableOrder


class Report(NamedTuple):
    """What a command found: the value that --json prints, and the lines that it prints otherwise."""

    value: object
    lines: Iterable[str]
    #: For standard error, beside the lines.
    note: str = ""
    #: Whether there is something to act on.
    has_findings: bool = False


def counted(number: int, noun: str) -> str:
    """Such as `1 order` and `2 orders`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class _OrderId(click.IntRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r} is no order's id; give a whole number from 1 to {MAX_ID}", param, ctx)


#: The type of an argument or an option that is the id of an order.
ORDER_ID = _OrderId(1, MAX_ID)


class ForScripts(click.Command):
    """A command that returns a Report; it exits with 1 if there is something to act on, and with 2 if it cannot run."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."))

    def invoke(self, ctx: click.Context) -> None:
        as_json = ctx.params.pop("as_json")
        try:
            report: Report = super().invoke(ctx)
        except UnknownOrder as error:
            raise click.UsageError(f"{error}; check the id, and that DATABASE_URL names its database") from error
        except UnreadableOrder as error:
            process.refuse(f"The order cannot be read: {process.printable(error)}")
        except click.ClickException as error:
            error.exit_code = 2  # type: ignore[misc]
            raise
        if as_json:
            click.echo(_json(report.value))
        else:
            for line in report.lines:
                click.echo(line)
            if report.note:
                click.echo(report.note, err=True)
        ctx.exit(int(report.has_findings))


def _json(value: object) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False, default=encoded)
    return text if text.replace("\n", "").isprintable() else json.dumps(value, indent=2, default=encoded)


def encoded(value: object) -> object:
    """What JSON has no type for; bytes as base64, which says that they are."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return utc_text(value) if isinstance(value, datetime) else str(value)
