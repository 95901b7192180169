"""The facts about orders that explain what they wait for; and the pending orders that are late."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from order_service.domain.explanation import SLACK, Facts, Unsent
from order_service.domain.order import AWAITING_MENU, FINAL, Announcement, State, UnknownOrder
from order_service.domain.saga import Policy, awaited_event
from order_service.storage import bulk, compensations, orders
from order_service.storage.database import current_time
from order_service.storage.tables import IS_PENDING, is_time, order_history, outbox
from order_service.storage.tables import orders as order_table

#: The answers of each sibling service to what orders wait for.
_ANSWERS = {"menu": ("MenuReserved", "MenuRejected"), "payment": ("PaymentCompleted", "PaymentFailed", "PutPaid")}
#: What is read of a row of the outbox.
WAITING = ("message_id", "created_at", "attempts", "due_at")
#: How many of the newest entries of all histories are searched for the answers.
RECENT_ENTRIES = 1000


def of_order(connection: sa.Connection, order_id: int, *, policy: Policy) -> Facts:
    """The facts about an order. Raises UnknownOrder."""
    if found := of_orders(connection, [order_id], policy=policy):
        return found[0]
    raise UnknownOrder(f"no order has the id {order_id}")


def late(
    connection: sa.Connection, *, policy: Policy, limit: int, unreadable: list[orders.UnreadableOrder] | None = None
) -> list[Facts]:
    """The first pending orders with a passed deadline, a used reminder, or an event that waits in the outbox.

    `unreadable`: see `orders.read_orders`.
    """
    now, columns = current_time(connection), order_table.c
    opening = [Announcement.ORDER_CREATED.value, Announcement.PAYMENT_REQUESTED.value]
    unsent = sa.select(outbox.c.order_id).where(outbox.c.type.in_(opening), outbox.c.created_at < now - SLACK)
    is_late = sa.or_(
        columns.due_at < now - SLACK,
        sa.and_(columns.state.in_(AWAITING_MENU), columns.reminders_left < policy.menu_reminders),
        sa.and_(columns.state == State.AWAITING_PAYMENT, columns.reminders_left == 0),
        columns.id.in_(unsent),
    )
    wanted = sa.select(columns.id).where(IS_PENDING, is_late).order_by(columns.due_at).limit(limit)
    return of_orders(connection, connection.execute(wanted).scalars().all(), policy=policy, unreadable=unreadable)


def of_orders(
    connection: sa.Connection,
    ids: Sequence[int],
    *,
    policy: Policy,
    unreadable: list[orders.UnreadableOrder] | None = None,
) -> list[Facts]:
    """The facts about those of these orders that exist; `unreadable`: see `orders.read_orders`."""
    now = current_time(connection)
    found = orders.read_orders(connection, ids, unreadable=unreadable)
    events = {order.event_id(awaited_event(order)): order.id for order in found.values() if order.state not in FINAL}
    rows = sa.select(*(outbox.c[name] for name in WAITING)).where(
        bulk.among(connection, outbox.c.message_id, [*events]), is_time(outbox.c.created_at), is_time(outbox.c.due_at)
    )
    waiting = connection.execute(rows).all() if events else ()
    unsent = {events[row.message_id]: Unsent(row.created_at, row.attempts, row.due_at) for row in waiting}
    columns = order_history.c
    is_theirs = (
        bulk.among(connection, columns.order_id, ids),
        columns.from_state != columns.to_state,
        is_time(columns.at),
    )
    changes = sa.select(columns.order_id, sa.func.max(columns.at)).where(*is_theirs).group_by(columns.order_id)
    since = dict(connection.execute(changes).all())
    compensating = compensations.of_orders(connection, found.values())
    unconfirmed = Counter(row.order_id for row in compensating if row.confirmed_at is None)
    answers = _last_answers(connection)
    return [
        Facts(
            order,
            policy,
            now,
            since=since.get(order.id, order.created_at),
            unsent=unsent.get(order.id),
            answers=answers,
            unconfirmed_compensations=unconfirmed[order.id],
        )
        for order in found.values()
    ]


def _last_answers(connection: sa.Connection) -> dict[str, datetime]:
    """When each sibling service last answered any order, as far as the newest entries show it."""
    columns = order_history.c
    newest = sa.select(columns.type, columns.at).order_by(columns.id.desc()).limit(RECENT_ENTRIES).subquery()
    found: dict[str, datetime] = dict(
        connection.execute(sa.select(newest).where(is_time(newest.c.at)).order_by(newest.c.at)).all()
    )
    times = {sibling: [found[kind] for kind in kinds if kind in found] for sibling, kinds in _ANSWERS.items()}
    return {sibling: max(each) for sibling, each in times.items() if each}
