"""The commands about single orders: what one waits for, its timeline, and those that are stuck."""

from dataclasses import replace
from typing import Any

import click

from order_service import process
from order_service.cli.broker import REPLY_QUEUES, QueueState, observe, unread_replies
from order_service.cli.open_database import open_database
from order_service.cli.reporting import ORDER_ID, ForScripts, Report
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.events import OUTGOING
from order_service.domain import explanation
from order_service.domain.explanation import Cause, Facts
from order_service.storage import facts
from order_service.storage import timeline as timelines
from order_service.storage.orders import UnreadableOrder

#: The most stuck orders that are shown.
MAX_STUCK = 1000
_ID = click.argument("order_id", metavar="ID", type=ORDER_ID)


@click.command(cls=ForScripts)
@_ID
def explain(order_id: int) -> Report:
    """Explain what the order ID waits for, since when, why, and what happens next.

    Exits with 0 if it waits no longer than it should, with 1 if it is stuck, with 2 if the command could not run. An
    unreachable broker does not matter.
    """
    settings = process.begin()
    with open_database(settings.database_url) as database, database.reading() as connection:
        found = facts.of_order(connection, order_id, policy=settings.policy)
    queues, problem = _queues(settings, found)
    own = {queue.name for queue in REPLY_QUEUES.values()}
    found = replace(found, has_unread_replies=any(each.is_unread for each in queues if each.name in own))
    hints = ["See `dlq list`." for each in queues if each.name.endswith(".dlq") and each.ready]
    parts = [explanation.explain(found, english=True), *(f"{each}." for each in queues), *hints, problem]
    value = _document(found) | {"queues": [vars(each) for each in queues], "broker": problem or "reachable"}
    return Report(value, [" ".join(filter(None, parts))], has_findings=found.is_stuck)


@click.command(cls=ForScripts)
@_ID
def timeline(order_id: int) -> Report:
    """Print what happened to the order ID: its request, events, confirms, replies, states and compensations.

    An event that is no longer in the outbox was confirmed by the broker; when, is not recorded. Exits with 0, or with 2
    if the command could not run.
    """
    settings = process.begin()
    with open_database(settings.database_url) as database, database.reading() as connection:
        order = facts.of_order(connection, order_id, policy=settings.policy).order
        entries = timelines.of_order(connection, order, policy=settings.policy)
    blank = " " * len("2025-01-02 03:04:05.012345Z")
    lines = (
        f"{f'{at:%Y-%m-%d %H:%M:%S.%f}Z' if (at := each['at']) else blank}  {each['kind']:<12} {each['type']:<22} "
        f"{each['text']}  {process.printable(each['id'] or '')}".rstrip()
        for each in entries
    )
    return Report(entries, lines)


@click.command(cls=ForScripts)
def stuck() -> Report:
    """List the pending orders that wait longer than they should, with the cause.

    Exits with 0 if there are none, with 1 if there are some, with 2 if the command could not run.
    """
    settings = process.begin()
    with open_database(settings.database_url) as database, database.reading() as connection:
        unreadable: list[UnreadableOrder] = []
        late = facts.late(connection, policy=settings.policy, limit=MAX_STUCK, unreadable=unreadable)
        found = [each for each in late if each.is_stuck]
    unread = unread_replies(settings, {each.waits_for or "" for each in found if each.cause is Cause.SILENT})
    found = [replace(each, has_unread_replies=each.waits_for in unread) for each in found]
    value = [_document(each) for each in found]
    for error in unreadable:
        text = f"cannot be read: {process.printable(error)}"
        value.append({"order_id": error.order_id, "cause": "unreadable", "explanation": text})
    lines = (f"{each['cause']:<9} {each['explanation']}" for each in value)
    note = f"{len(value)} stuck" + (" or more" if len(found) == MAX_STUCK else "")
    return Report(value, lines, note, has_findings=bool(value))


def _document(found: Facts) -> dict[str, Any]:
    about = {"reason": found.order.reason, "unsent": found.unsent and vars(found.unsent)}
    return found.fields | about | {"explanation": explanation.explain(found, english=True)}


def _queues(settings: Settings, found: Facts) -> tuple[list[QueueState], str]:
    """The queues that the order's event and its answer go through, and why they are unknown."""
    if not found.waits_for:
        return [], ""
    own, routing_key = REPLY_QUEUES[found.waits_for], OUTGOING[found.event].routing_key
    try:
        return observe(settings, routing_key, found.waits_for, [own.name, own.dead_letters]), ""
    except (*topology.UNREACHABLE, process.AccessRefused) as error:
        return [], f"The broker could not be asked: {process.first_line(error)}."
