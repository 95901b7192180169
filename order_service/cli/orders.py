"""The commands about single orders: what one waits for, its timeline, and those that are stuck."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
import sqlalchemy as sa

from order_service import process
from order_service.cli.queues import QueueState, observe
from order_service.cli.reporting import AS_JSON, ForScripts, finish, opened_database, print_json
from order_service.config import Settings
from order_service.contract import topology
from order_service.contract.events import MAX_ID, OUTGOING
from order_service.domain import explanation
from order_service.domain.explanation import Facts
from order_service.domain.order import Announcement, Order, State, UnknownOrder
from order_service.domain.saga import Policy, is_sent
from order_service.storage import compensations, facts, history, outbox
from order_service.storage.database import Database, current_time

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
_FACTS = (
    "cause", "waits_for", "since", "next_reminder_at", "expires_at", "last_answer_at", "unsent",
    "unconfirmed_compensations",
)  # fmt: skip


@click.command(cls=ForScripts)
@_ID
@AS_JSON
def explain(order_id: int, as_json: bool) -> None:
    """Explain what the order ID waits for, since when, why, and what happens next.

    Exits with 0 if it waits no longer than it should, with 1 if it is stuck, with 2 if the command could not run. An
    unreachable broker does not matter.
    """
    settings = process.begin()
    with opened_database(settings) as database:
        found = _facts(database, settings, [order_id]).get(order_id)
    if found is None:
        raise click.ClickException(f"no order has the id {order_id}")
    queues, problem = _queues(settings, found)
    if as_json:
        print_json(_document(found) | {"queues": [vars(each) for each in queues], "broker": problem or "reachable"})
    else:
        hints = ["See `dlq list`." for each in queues if each.name.endswith(".dlq") and each.ready]
        parts = [explanation.explain(found, english=True), *(f"{each}." for each in queues), *hints, problem]
        click.echo(" ".join(filter(None, parts)))
    finish(found.is_stuck)


@click.command(cls=ForScripts)
@_ID
@AS_JSON
def timeline(order_id: int, as_json: bool) -> None:
    """Print what happened to the order ID: its request, events, confirms, replies, states and compensations.

    An event that is no longer in the outbox was confirmed by the broker; when, is not recorded. Exits with 0, or with 2
    if the command could not run.
    """
    settings = process.begin()
    with opened_database(settings) as database, database.reading() as connection:
        found = facts.read_facts(connection, [order_id], policy=settings.policy, now=current_time(connection))
        if order_id not in found:
            raise UnknownOrder(f"no order has the id {order_id}")
        entries = _timeline(connection, found[order_id].order, settings.policy)
    if as_json:
        print_json(entries)
        return
    for each in entries:
        at = f"{each['at']:%Y-%m-%d %H:%M:%S.%f}Z" if each["at"] else " " * 27
        click.echo(f"{at}  {each['kind']:<12} {each['type']:<22} {each['text']}  {each['id'] or ''}".rstrip())


@click.command(cls=ForScripts)
@AS_JSON
def stuck(as_json: bool) -> None:
    """List the pending orders that wait longer than they should, with the cause.

    Exits with 0 if there are none, with 1 if there are some, with 2 if the command could not run.
    """
    settings = process.begin()
    with opened_database(settings) as database:
        found = [each for each in _facts(database, settings, None).values() if each.is_stuck]
    if as_json:
        print_json([_document(each) for each in found])
    else:
        for each in found:
            click.echo(f"{each.cause:<9} {explanation.explain(each, english=True)}")
        click.echo(f"{len(found)} stuck" + (" or more" if len(found) == MAX_STUCK else ""), err=True)
    finish(found)


def _facts(database: Database, settings: Settings, ids: Sequence[int] | None) -> dict[int, Facts]:
    """The facts about these orders, or about those that may be stuck."""
    with database.reading() as connection:
        now, policy = current_time(connection), settings.policy
        late = ids if ids is not None else facts.late_ids(connection, policy=policy, now=now, limit=MAX_STUCK)
        return facts.read_facts(connection, late, policy=policy, now=now)


def _document(found: Facts) -> dict[str, Any]:
    order = found.order
    named = {name: getattr(found, name) for name in _FACTS}
    named["unsent"] = found.unsent and vars(found.unsent)
    about = {"order_id": order.id, "status": order.state.status, "state": order.state, "reason": order.reason}
    return about | named | {"explanation": explanation.explain(found, english=True)}


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

    def add(at: datetime | None, kind: str, type: str, text: str, id: str | None) -> None:
        entries.append({"at": at, "kind": kind, "type": type, "id": id, "text": text})

    def add_event(at: datetime | None, type: str, id: str) -> None:
        row = waiting.get(id)
        add(at, "outbox", type, "written", id)
        if row:
            add(
                None,
                "waiting",
                type,
                f"not confirmed, {row.attempts} failed attempts, next at {row.due_at:%H:%M:%S}Z",
                id,
            )
        else:
            add(None, "confirmed", type, "by the broker", id)

    for _, entry in history.read_history(connection, order, limit=MAX_ENTRIES):
        by_deadline = entry.type.endswith(("Reminder", "Deadline"))
        kind = "reply" if entry.message_id else "deadline" if by_deadline else "request"
        change = f"{entry.from_state} -> {entry.to_state}" if entry.from_state != entry.to_state else entry.to_state
        add(entry.at, kind, entry.type, change if entry.from_state else entry.to_state, entry.message_id)
        event = _ANNOUNCED.get(State(entry.to_state))
        if event and entry.from_state != entry.to_state and is_sent(event, policy):
            add_event(entry.at, event.value, order.event_id(event))
    for row in compensations.of_orders(connection, [order]):
        if row.attempts:
            add_event(None, row.type, row.id)
        confirmed = "confirmed by the sibling" if row.confirmed_at else f"unconfirmed, requested {row.attempts} times"
        add(row.confirmed_at, "compensation", row.type, f"{row.reason}: {confirmed}", row.id)
    return entries
