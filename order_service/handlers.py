"""The use cases: placing and changing orders, applying replies, passing deadlines, repeating compensations.

A handler locks and reads rows, applies the decision table, and adds the results to the unit of work. Its caller owns
the transaction.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from order_service import tracing
from order_service.backoff import Backoff
from order_service.contract import outgoing
from order_service.contract.envelope import Rejection, Reply
from order_service.domain import saga
from order_service.domain.messages import Message
from order_service.domain.order import Announcement, InvalidMessage, Order, UnknownOrder
from order_service.storage import compensations, inbox, outbox
from order_service.storage import orders as order_rows
from order_service.storage.bulk import Take
from order_service.unit_of_work import UnitOfWork

#: The longest pause between two requests for the same unconfirmed compensation, in seconds.
LONGEST_COMPENSATION_PAUSE = 3600
#: The events that ask a sibling service for a reply, and are pointless once the order has ended.
_OPENING_EVENTS = (Announcement.ORDER_CREATED, Announcement.PAYMENT_REQUESTED)


@dataclass(frozen=True)
class Placement:
    """A validated request for a new order."""

    user_id: int
    menu_ids: tuple[int, ...]
    expected_total: Decimal | None = None
    #: How many orders of this user may be pending, this one included; None is no limit.
    pending_limit: int | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    #: The X-Request-ID, for the log.
    request_id: str | None = None
    #: Columns that recognize a repeated request: idempotency_key and request_hash, or nothing.
    request: Mapping[str, str] = field(default_factory=dict)


def place_orders(work: UnitOfWork, placements: Sequence[Placement]) -> list[Order]:
    """Insert new orders and add an OrderCreated for each to the unit of work.

    Raises sqlalchemy.exc.IntegrityError if one of the requests was recorded before.
    """
    placed = [
        Order(
            id=0,
            key=uuid4(),
            user_id=placement.user_id,
            menu_ids=placement.menu_ids,
            created_at=work.now,
            expected_total=placement.expected_total,
            due_at=work.now + min(work.policy.menu_reply, work.policy.lifetime),
            reminders_left=work.policy.menu_reminders,
            traceparent=placement.traceparent,
            tracestate=placement.tracestate,
        )
        for placement in placements
    ]
    record_orders(work, placed, placements)
    return placed


def has_room(work: UnitOfWork, placements: Sequence[Placement]) -> list[bool]:
    """Tell for each placement whether its user may have one more pending order, if those before it are placed.

    This is exact until the end of the transaction, for which other transactions with placements of these users wait.
    """
    users = {each.user_id for each in placements if each.pending_limit}
    if not users:
        return [True] * len(placements)
    most = max(each.pending_limit or 0 for each in placements)
    pending = order_rows.lock_and_count_pending(work.connection, users, most=most)
    room = []
    for each in placements:
        room.append(not each.pending_limit or pending[each.user_id] < each.pending_limit)
        if each.pending_limit and room[-1]:
            pending[each.user_id] += 1
    return room


def record_orders(work: UnitOfWork, placed: Sequence[Order], placements: Sequence[Placement]) -> None:
    """Insert these orders, each for its placement, and add their OrderCreated; those with an id keep it.

    Raises sqlalchemy.exc.IntegrityError if a request was recorded before, or an id belongs to an order.
    """
    requests = [placement.request for placement in placements]
    order_rows.insert_orders(work.connection, list(zip(placed, requests, strict=True)))
    for order, placement in zip(placed, placements, strict=True):
        work.enqueue(order, Announcement.ORDER_CREATED, sequence=1)
        work.report.placed(order, request_id=placement.request_id)


def change_order(
    work: UnitOfWork, order_id: int, message: Message, *, message_id: str | None = None
) -> tuple[Order, saga.Decision]:
    """Apply a request of a client or an operator, or a deadline, to one order. Raises UnknownOrder.

    With a message id, the history records it even if it changes nothing.
    """
    order = order_rows.lock_orders(work.connection, [order_id]).get(order_id)
    if order is None:
        raise UnknownOrder("no such order", order_id=order_id)
    return order, work.apply(order, message, message_id=message_id)


def apply_replies(work: UnitOfWork, replies: Sequence[Reply]) -> list[Rejection]:
    """Apply a batch of messages, each once even if it is repeated; return those that can never be applied.

    A message with the id of another one is rejected: taken for a repeat, its payment or reservation would be lost.
    """
    found = order_rows.lock_orders(work.connection, sorted({reply.order_id for reply in replies}))
    # A message cannot be a repeat for an order to which nothing was applied yet.
    changed = {order.id for order in found.values() if not order.is_new}
    keys = [(reply.order_id, reply.type, reply.message_id) for reply in replies]
    seen = inbox.applied(work.connection, [key for key in keys if key[0] in changed])
    rejections: list[Rejection] = []
    for key, reply in zip(keys, replies, strict=True):
        digest = reply.digest
        if key in seen:
            if seen[key] not in (digest, None):
                problem = f"was used for another {reply.type} of this order; send this message again under a new id"
                rejections.append(reply.rejection("conflicting_id", "id", problem))
            else:
                work.report.consumed(reply.type, "duplicate")
            continue
        order = found.get(reply.order_id)
        if order is None:
            rejections.append(reply.rejection("unknown_order", "data.order_id", "names no order of ours"))
            continue
        span = _consume_span(order, reply) if tracing.is_on() else None
        try:
            work.apply(order, reply.message, message_id=reply.message_id, digest=digest, span=span)
        except InvalidMessage as error:
            rejections.append(reply.rejection(error.code, error.field_name or "data", str(error)))
        else:
            seen[key] = digest
            work.report.consumed(reply.type, "applied")
    return rejections


def _consume_span(order: Order, reply: Reply) -> Any:
    headers = reply.delivery.properties.get("headers") or {}
    trace = {name: headers[name] for name in outgoing.TRACE if isinstance(headers.get(name), str)}
    return tracing.consumed(reply.type, reply.message_id, outgoing.trace_of(order), trace)


def pass_deadlines(work: UnitOfWork, take: Take) -> int:
    """Send the reminders and pass the deadlines that are due; return how many there were.

    A deadline whose event was never handed to a working broker is postponed by its period, so that a broker outage does
    not expire orders; an event that the broker returned or refused does not hold it. When an order's lifetime is over,
    it expires in any case, and its unsent events are dropped.
    """
    due = order_rows.lock_due_orders(work.connection, work.now, take)
    unsent = outbox.unsent(work.connection, [order.event_id(event) for order in due for event in _OPENING_EVENTS])
    dropped: list[int] = []
    for order in due:
        work.update(order)
        rows = unsent.get(order.event_id(saga.awaited_event(order)), [])
        if saga.lifetime_is_over(order, policy=work.policy, now=work.now):
            dropped += [row.id for event in _OPENING_EVENTS for row in unsent.get(order.event_id(event), ())]
        elif any(not row.attempts for row in rows):
            order.due_at = saga.deadline(order, policy=work.policy, now=work.now)
            _rebuild(work, order, rows)
            continue
        if message := saga.deadline_message(order, policy=work.policy, now=work.now):
            work.apply(order, message)
        elif saga.use_reminder(order, policy=work.policy, now=work.now):
            if rows:
                _rebuild(work, order, rows)
            else:
                work.remind(order)
    outbox.drop_unsent(work.connection, dropped)
    return len(due)


def _rebuild(work: UnitOfWork, order: Order, rows: Sequence[outbox.Unsent]) -> None:
    """Rewrite the unsent event, which contains the deadline, with the new one; its sequence does not change."""
    for row_id, body in outbox.lock_bodies(work.connection, [row.id for row in rows]):
        # A row that a former version stored holds a number.
        sequence = int(json.loads(body)["sequence"])
        event = outgoing.event(order, saga.awaited_event(order), sequence=sequence, policy=work.policy, now=work.now)
        outbox.replace_body(work.connection, row_id, event.body)


def repeat_compensations(work: UnitOfWork, take: Take) -> Sequence[sa.Row[Any]]:
    """Request unconfirmed compensations again under the same ids; return the requested rows.

    A refund that the Payment Service no longer receives requests for is left to an operator. Raises UnknownOrder and
    UnreadableOrder if the request cannot be built again from its order.
    """
    due = compensations.lock_due(work.connection, work.now, take)
    found = order_rows.read_orders(work.connection, sorted({row.order_id for row in due}))
    unsent = outbox.unsent(work.connection, [row.id for row in due])
    backoff = Backoff(work.policy.compensation_pause.total_seconds(), LONGEST_COMPENSATION_PAUSE)
    manual = [row for row in due if not saga.is_sent(compensations.of_row(row), work.policy)]
    for row in manual:
        compensations.reschedule(work.connection, row.id, attempts=row.attempts, due_at=None)
        work.report.manual_refund(row.order_id, compensations.of_row(row))
    due = [row for row in due if row not in manual]
    for row in due:
        attempts = row.attempts + (row.id not in unsent)
        due_at = work.now + timedelta(seconds=backoff.delay(attempts))
        compensations.reschedule(work.connection, row.id, attempts=attempts, due_at=due_at)
        if row.id not in unsent:
            if row.order_id not in found:
                raise UnknownOrder("the order of a compensation does not exist", order_id=row.order_id)
            work.enqueue(found[row.order_id], compensations.of_row(row), sequence=row.sequence)
    return [row for row in due if row.id not in unsent]
