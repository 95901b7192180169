"""The commands for releases and refunds that no sibling service has confirmed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import sqlalchemy as sa

from order_service import handlers, process
from order_service.cli.open_database import open_database
from order_service.config import Settings
from order_service.domain.messages import Message, PaymentRefunded, StockReleased
from order_service.domain.order import RELEASE, UnknownOrder, amount_text
from order_service.storage import compensations as rows
from order_service.storage.database import Database
from order_service.unit_of_work import unit_of_work

_ID = click.argument("compensation_id", metavar="ID")


@click.group()
def compensations() -> None:
    """List and confirm releases and refunds that no sibling service has confirmed."""


@compensations.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_unconfirmed(as_json: bool) -> None:
    """List the unconfirmed releases and refunds.

    State `manual`: an operator makes it, and then runs `compensations confirm ID`. `unconfirmed`: requested at least
    ORDER_COMPENSATION_ATTEMPTS times. `requested`: requested fewer times, and repeated until it is confirmed.
    """
    with _database() as (settings, database), database.reading() as connection:
        found = [_shown(row, settings) for row in rows.unconfirmed(connection)]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for each in found:
        what = f"{each['type']} {each['subject'] or '(everything)'}"
        amount = f", amount {each['amount']}" if each["amount"] else ""
        click.echo(f"{each['id']}  {each['state']:<11}  order {each['order_id']}: {what}{amount}, {each['reason']}")
    click.echo(f"{len(found)} unconfirmed", err=True)


@compensations.command()
@_ID
def confirm(compensation_id: str) -> None:
    """Confirm the release or refund ID after it was made manually. May be repeated."""
    with _database() as (settings, database), unit_of_work(database, settings.policy) as work:
        row = rows.find(work.connection, compensation_id)
        if row is None:
            raise click.ClickException(f"no release or refund has the id {compensation_id}")
        if row.confirmed_at is None:
            message: Message = StockReleased(row.id) if row.type == RELEASE else PaymentRefunded(row.id)
            handlers.change_order(work, row.order_id, message, message_id=f"manual {row.id}")
    click.echo(f"Confirmed: {row.type} {row.id} of order {row.order_id}")


@contextmanager
def _database() -> Iterator[tuple[Settings, Database]]:
    """The settings and the database. Raises ClickException if the database does not know the order."""
    settings = process.begin()
    try:
        with open_database(settings.database_url) as database:
            yield settings, database
    except UnknownOrder as error:
        raise click.ClickException(str(error)) from error


def _shown(row: sa.Row[Any], settings: Settings) -> dict[str, object]:
    is_manual = row.due_at is None or (row.type == RELEASE and settings.menu_service_url is not None)
    late = "unconfirmed" if row.attempts >= settings.compensation_attempts else "requested"
    return {
        "id": row.id,
        "order_id": row.order_id,
        "type": row.type,
        "subject": row.subject,
        "amount": None if row.amount is None else amount_text(row.amount),
        "reason": row.reason,
        "attempts": row.attempts,
        "state": "manual" if is_manual else late,
    }
