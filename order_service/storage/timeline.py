"""What happened to an order, in the order in which it happened."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from order_service.domain.order import Announcement, Order, State
from order_service.domain.saga import Policy, is_sent
from order_service.storage import bulk, compensations, history
from order_service.storage.facts import WAITING
from order_service.storage.tables import outbox

#: The most entries of the history that are read.
MAX_ENTRIES = 1000
#: The event that announces each state.
_ANNOUNCED = {
    State.AWAITING_MENU: Announcement.ORDER_CREATED,
    State.AWAITING_PAYMENT: Announcement.PAYMENT_REQUESTED,
    State.PAID: Announcement.ORDER_PAID,
    State.FAILED: Announcement.ORDER_FAILED,
    State.CANCELLED: Announcement.ORDER_CANCELLED,
}


def of_order(connection: sa.Connection, order: Order, *, policy: Policy) -> list[dict[str, Any]]:
    """Its request, events, confirms, replies, states and compensations, each with time, kind, type, id and a text.

    An event that is no longer in the outbox was confirmed by the broker; when, is not recorded.
    """
    entries: list[dict[str, Any]] = []

    def add(at: datetime | None, kind: str, type: str, id: str | None, text: str) -> None:
        entries.append({"at": at, "kind": kind, "type": type, "id": id, "text": text})

    def add_event(at: datetime | None, type: str, id: str) -> None:
        add(at, "outbox", type, id, "written")
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
    events = [each["id"] for each in entries if each["kind"] == "confirmed"]
    is_one = bulk.among(connection, outbox.c.message_id, events)
    rows = connection.execute(sa.select(*(outbox.c[name] for name in WAITING)).where(is_one))
    waiting = {row.message_id: row for row in rows}
    for each in entries:
        if each["kind"] == "confirmed" and (unsent := waiting.get(each["id"])):
            text = f"not confirmed, {unsent.attempts} failed attempts, next at {unsent.due_at:%H:%M:%S}Z"
            each.update(kind="waiting", text=text)
    return entries
