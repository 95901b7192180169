"""The commands about single orders: what one waits for, its timeline, and those that are stuck."""

from datetime import datetime
from typing import Any

import click
import sqlalchemy as sa

from order_service import process
from order_service.cli.broker import QueueState, observe
from order_service.cli.open_database import open_database
from order_service.cli.reporting import ForScripts, Report
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.events import MAX_ID, OUTGOING
from order_service.domain import explanation
from order_service.domain.explanation import Facts
from order_service.domain.order import Announcement, Order, State
from order_service.domain.saga import Policy, is_sent
from order_service.storage import compensations, facts, history, outbox

#: The most stuck orders that are shown, and the most entries of a history.
MAX_STUCK, MAX_ENTRIES = 1000, 1000
_ID = click.argument("order_id", metavar="ID", type=click.IntRange(1, MAX_ID))
_OWN = {"menu": topology.MENU, "payment": topology.PAYMENT}
#: The event that announces each state.
_ANNOUNCED = {
    State.AWAITING_MENU: Announcement.ORDER_CREATED,
    State.AWAITING_PAYMENT: Announcement.PAYMENT_REQUESTED,
    State.PAID: Announcement.ORDER_PAID,
    State.FAILED: Announcement.ORDER_FAILED,
    State.CANCELLED: Announcement.ORDER_CANCELLED,
}


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
        entries = _timeline(connection, order, settings.policy)
    blank = " " * len("2025-01-02 03:04:05.012345Z")
    lines = (
        f"{f'{at:%Y-%m-%d %H:%M:%S.%f}Z' if (at := each['at']) else blank}  {each['kind']:<12} {each['type']:<22} "
        f"{each['text']}  {each['id'] or ''}".rstrip()
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
        found = [each for each in facts.late(connection, policy=settings.policy, limit=MAX_STUCK) if each.is_stuck]
    lines = (f"{each.cause:<9} {explanation.explain(each, english=True)}" for each in found)
    note = f"{len(found)} stuck" + (" or more" if len(found) == MAX_STUCK else "")
    return Report([_document(each) for each in found], lines, note, has_findings=bool(found))


def _document(found: Facts) -> dict[str, Any]:
    about = {"reason": found.order.reason, "unsent": found.unsent and vars(found.unsent)}
    return found.fields | about | {"explanation": explanation.explain(found, english=True)}


def _queues(settings: Settings, found: Facts) -> tuple[list[QueueState], str]:
    """The queues that the order's event and its answer go through, and why they are unknown."""
    if not found.waits_for:
        return [], ""
    own, routing_key = _OWN[found.waits_for], OUTGOING[found.event].routing_key
    try:
        return observe(settings, routing_key, found.waits_for, [own.name, own.dead_letters]), ""
    except (*topology.UNREACHABLE, process.AccessRefused) as error:
        return [], f"The broker could not be asked: {process.first_line(error)}."


def _timeline(connection: sa.Connection, order: Order, policy: Policy) -> list[dict[str, Any]]:
    waiting = {row.message_id: row for row in outbox.of_order(connection, order.id)}
    entries: list[dict[str, Any]] = []

    def add(at: datetime | None, kind: str, type: str, id: str | None, text: str) -> None:
        entries.append({"at": at, "kind": kind, "type": type, "id": id, "text": text})

    def add_event(at: datetime | None, type: str, id: str) -> None:
        add(at, "outbox", type, id, "written")
        if row := waiting.get(id):
            text = f"not confirmed, {row.attempts} failed attempts, next at {row.due_at:%H:%M:%S}Z"
            add(None, "waiting", type, id, text)
        else:
            add(None, "confirmed", type, id, "by the broker")

    for _, entry in history.read_history(connection, order, limit=MAX_ENTRIES):
        is_change = entry.from_state != entry.to_state
        by_deadline = entry.type.endswith(("Reminder", "Deadline"))
        kind = "reply" if entry.message_id else "deadline" if by_deadline else "request"
        change = f"{entry.from_state} -> {entry.to_state}" if entry.from_state and is_change else entry.to_state
        add(entry.at, kind, entry.type, entry.message_id, change)
        event = _ANNOUNCED.get(State(entry.to_state))
        if event and is_change and is_sent(event, policy):
            add_event(entry.at, event.value, order.event_id(event))
    for row in compensations.of_orders(connection, [order]):
        if row.attempts:
            add_event(None, row.type, row.id)
        confirmed = "confirmed by the sibling" if row.confirmed_at else f"unconfirmed, requested {row.attempts} times"
        add(row.confirmed_at, "compensation", row.type, row.id, f"{row.reason}: {confirmed}")
    return entries
