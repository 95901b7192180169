"""The commands for releases and refunds that no sibling service has confirmed."""

from typing import Any

import click
import sqlalchemy as sa

from order_service import handlers, process
from order_service.cli.open_database import open_database
from order_service.cli.reporting import ForScripts, Report, counted
from order_service.config import Settings
from order_service.domain.messages import Message, PaymentRefunded, StockReleased
from order_service.domain.order import RELEASE, amount_text
from order_service.storage import compensations as rows
from order_service.storage.database import current_time
from order_service.unit_of_work import unit_of_work


@click.group()
def compensations() -> None:
    """List, repeat and confirm releases and refunds that no sibling service has confirmed."""


@compensations.command("list", cls=ForScripts)
def list_unconfirmed() -> Report:
    """List the unconfirmed releases and refunds.

    State `manual`: an operator makes it, and then runs `compensations confirm ID`. `unconfirmed`: requested at least
    ORDER_COMPENSATION_ATTEMPTS times. `requested`: requested fewer times, and repeated until it is confirmed.

    Exits with 0 if all are `requested`, with 1 if one is not, with 2 if the command could not run.
    """
    settings = process.begin()
    with open_database(settings.database_url) as database, database.reading() as connection:
        found = [_shown(row, settings) for row in rows.unconfirmed(connection)]
    lines = (
        f"{each['id']}  {each['state']:<11}  order {each['order_id']}: {each['type']} "
        + f"{process.printable(each['subject'] or '(everything)')}, "
        + (f"amount {each['amount']}, " if each["amount"] else "")
        + each["reason"]
        for each in found
    )
    return Report(found, lines, f"{len(found)} unconfirmed", any(each["state"] != "requested" for each in found))


@compensations.command(cls=ForScripts)
@click.argument("compensation_id", metavar="[ID]", required=False)
def retry(compensation_id: str | None) -> Report:
    """Have the release or refund ID requested again now, or all unconfirmed ones. May be repeated.

    Not those that an operator makes. Exits with 0 if there were some, with 1 if not, with 2 if the ID is unknown or the
    command could not run.
    """
    with open_database(process.begin().database_url) as database, database.writing() as connection:
        if compensation_id:
            _require(connection, compensation_id)
        count = rows.retry(connection, current_time(connection), compensation_id)
    return Report({"retried": count}, [f"{counted(count, 'request')} repeated now"], has_findings=not count)


@compensations.command(cls=ForScripts)
@click.argument("compensation_id", metavar="ID")
def confirm(compensation_id: str) -> Report:
    """Confirm the release or refund ID after it was made manually. May be repeated."""
    settings = process.begin()
    with open_database(settings.database_url) as database, unit_of_work(database, settings.policy) as work:
        row = _require(work.connection, compensation_id)
        if row.confirmed_at is None:
            message: Message = StockReleased(row.id) if row.type == RELEASE else PaymentRefunded(row.id)
            handlers.change_order(work, row.order_id, message, message_id=f"manual {row.id}")
    value = {"confirmed": row.id, "type": row.type, "order_id": row.order_id}
    return Report(value, [f"Confirmed: {row.type} {row.id} of order {row.order_id}"])


def _require(connection: sa.Connection, compensation_id: str) -> sa.Row[Any]:
    row = rows.find(connection, compensation_id)
    if row is None:
        raise click.ClickException(f"no release or refund has the id {compensation_id}; `compensations list` has them")
    return row


def _shown(row: sa.Row[Any], settings: Settings) -> dict[str, Any]:
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
