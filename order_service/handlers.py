"""The use cases: what a request, a batch of replies and the passing of time do to orders.

Handlers write orders, history and outbox in the transaction they are given and never commit it: the edge does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from order_service.contract.envelope import Reply
from order_service.domain.order import (
    AWAITING_MENU,
    Announcement,
    Compensation,
    InvalidMessage,
    MenuDeadline,
    Message,
    Order,
    OrderError,
    PaymentDeadline,
    PaymentRefunded,
    State,
    StockReleased,
    UnknownOrder,
)
from order_service.domain.saga import Clock, Decision, decide
from order_service.storage import bulk, compensations, history, outbox
from order_service.storage import orders as order_rows

#: An unconfirmed compensation is repeated at ever longer intervals, at last once in this time.
LONGEST_COMPENSATION_PAUSE = timedelta(hours=1)


@dataclass
class Changes:
    """What a transaction is about to write, kept together so that it takes one statement."""

    clock: Clock
    compensation_pause: timedelta
    orders: dict[int, Order] = field(default_factory=dict)
    entries: list[history.Entry] = field(default_factory=list)
    leaving: list[outbox.Row] = field(default_factory=list)
    requested: list[compensations.Row] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)

    def apply(self, order: Order, message: Message, *, message_id: str | None = None) -> Decision:
        """Let the table decide and note all that follows. Raises InvalidMessage, nothing being noted."""
        decision = decide(order, message, self.clock)
        if decision.changed:
            self.orders[order.id] = order
        if decision.changed or message_id is not None:
            self._note(order, type(message).__name__, decision.before, message_id)
        if isinstance(message, StockReleased):
            self.confirmed.append(message.release_id)
        if isinstance(message, PaymentRefunded):
            self.confirmed.append(message.refund_id)
        for effect in decision.effects:
            self.leaving.append(outbox.event_row(order, effect, sequence=order.version, clock=self.clock))
            if isinstance(effect, Compensation):
                again_at = self.clock.now + self.compensation_pause
                row = compensations.row(order.id, effect, sequence=order.version, due_at=again_at)
                self.requested.append(row)
        return decision

    def remind(self, order: Order) -> None:
        """Send OrderCreated once more, under its id and with its first sequence."""
        self.leaving.append(outbox.event_row(order, Announcement.ORDER_CREATED, sequence=1, clock=self.clock))
        self._note(order, "MenuReminder", order.state, None)

    def _note(self, order: Order, type: str, before: State, message_id: str | None) -> None:
        self.entries.append(history.Entry(order.id, self.clock.now, type, before.value, order.state.value, message_id))

    def write(self, connection: sa.Connection) -> None:
        """Write everything noted; orders in the order of their ids, as they were locked."""
        bulk.write(
            connection,
            order_rows.changed([self.orders[id] for id in sorted(self.orders)]),
            history.recorded(self.entries),
            compensations.requested(self.requested),
            outbox.leaving(self.leaving),
        )
        compensations.confirm(connection, self.confirmed, self.clock.now)


@dataclass(frozen=True)
class Placement:
    """An order as a client asks for it, already checked."""

    user_id: int
    menu_ids: tuple[int, ...]
    expected_total: Decimal | None = None
    traceparent: str | None = None
    #: Columns that recognise a repeated request: idempotency_key and request_hash, or nothing.
    request: Mapping[str, str] = field(default_factory=dict)


def place_orders(
    connection: sa.Connection, placements: Sequence[Placement], clock: Clock, *, reminders: int
) -> list[Order]:
    """Record new orders, and that the menu is to be asked for each.

    Raises sqlalchemy.exc.IntegrityError where one of the requests was recorded before.
    """
    placed = [
        Order(
            id=0,
            key=uuid4(),
            user_id=placement.user_id,
            menu_ids=placement.menu_ids,
            created_at=clock.now,
            expected_total=placement.expected_total,
            due_at=clock.now + clock.reply_within,
            reminders_left=reminders,
            traceparent=placement.traceparent,
        )
        for placement in placements
    ]
    requests = [placement.request for placement in placements]
    order_rows.insert_orders(connection, list(zip(placed, requests, strict=True)))
    created = Announcement.ORDER_CREATED
    outbox.add(connection, [outbox.event_row(order, created, sequence=1, clock=clock) for order in placed])
    return placed


def change_order(
    connection: sa.Connection, order_id: int, message: Message, changes: Changes
) -> tuple[Order, Decision]:
    """Apply a client's own request (PUT payment, DELETE). Raises UnknownOrder."""
    order = order_rows.lock_orders(connection, [order_id]).get(order_id)
    if order is None:
        raise UnknownOrder("no such order", order_id=order_id)
    decision = changes.apply(order, message)
    changes.write(connection)
    return order, decision


def apply_replies(
    connection: sa.Connection, replies: Sequence[Reply], changes: Changes
) -> list[tuple[Reply, OrderError]]:
    """Apply a batch of messages, each once however often it comes; returns those that can never succeed."""
    orders = order_rows.lock_orders(connection, sorted({reply.order_id for reply in replies}))
    changed = {order.id for order in orders.values() if not order.is_untouched}
    seen = history.applied(connection, [_key(reply) for reply in replies if reply.order_id in changed])
    refused: list[tuple[Reply, OrderError]] = []
    for reply in replies:
        if _key(reply) in seen:
            continue
        try:
            order = orders.get(reply.order_id)
            if order is None:
                raise UnknownOrder("names no order of ours", order_id=reply.order_id, field_name="data.order_id")
            changes.apply(order, reply.message, message_id=reply.message_id)
        except (UnknownOrder, InvalidMessage) as error:
            refused.append((reply, error))
        else:
            seen.add(_key(reply))
    changes.write(connection)
    return refused


def _key(reply: Reply) -> history.Key:
    return reply.order_id, reply.type, reply.message_id


def pass_deadlines(connection: sa.Connection, changes: Changes, *, limit: int) -> int:
    """Do what time alone decides for the orders that are due: remind, expire, release. Returns how many.

    A deadline whose own event has not left yet moves by its period instead: a long broker outage expires nothing.
    """
    due = order_rows.lock_due_orders(connection, changes.clock.now, limit)
    unsent = outbox.waiting(connection, [order.event_id(_awaited(order)) for order in due])
    for order in due:
        changes.orders[order.id] = order
        if rows := unsent.get(order.event_id(_awaited(order))):
            _move(connection, order, rows, changes.clock)
        elif order.state is State.AWAITING_PAYMENT:
            changes.apply(order, PaymentDeadline())
        elif order.reminders_left:
            order.reminders_left -= 1
            order.due_at = changes.clock.now + changes.clock.reply_within
            if order.state in AWAITING_MENU:
                changes.remind(order)
        else:
            changes.apply(order, MenuDeadline())
    changes.write(connection)
    return len(due)


def _awaited(order: Order) -> Announcement:
    """The event whose answer the armed deadline waits for."""
    is_payment = order.state is State.AWAITING_PAYMENT
    return Announcement.PAYMENT_REQUESTED if is_payment else Announcement.ORDER_CREATED


def _move(connection: sa.Connection, order: Order, unsent_rows: Sequence[int], clock: Clock) -> None:
    is_payment = order.state is State.AWAITING_PAYMENT
    order.due_at = clock.now + (clock.pay_within if is_payment else clock.reply_within)
    # The deadline stands in the event too.
    outbox.renew(connection, unsent_rows, order, _awaited(order), clock)


def repeat_compensations(
    connection: sa.Connection, clock: Clock, *, first_pause: timedelta, limit: int
) -> Sequence[sa.Row[Any]]:
    """Ask again for what the siblings have not confirmed, under the same ids; returns what was asked for."""
    due = compensations.lock_due(connection, clock.now, limit)
    orders: Mapping[int, Order] = order_rows.read_orders(connection, sorted({row.order_id for row in due}))
    unsent = outbox.waiting(connection, [row.id for row in due])
    for row in due:
        attempts = row.attempts + (row.id not in unsent)
        pause = min(first_pause * (1 << min(attempts - 1, 12)), LONGEST_COMPENSATION_PAUSE)
        compensations.put_off(connection, row.id, attempts=attempts, due_at=clock.now + pause)
        if row.id not in unsent and row.order_id in orders:
            wanted = compensations.of_row(row)
            again = outbox.event_row(orders[row.order_id], wanted, sequence=row.sequence, clock=clock)
            outbox.add(connection, [again])
    return [row for row in due if row.id not in unsent]
