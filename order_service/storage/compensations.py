"""The rows of releases and refunds: requested, repeated under one id, and finally confirmed."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from order_service.domain.order import REFUND, RELEASE, Compensation, Order
from order_service.storage import bulk
from order_service.storage.tables import compensations

Row = dict[str, Any]


def new_row(order_id: int, requested: Compensation, *, sequence: int, due_at: datetime | None) -> Row:
    """A compensation requested for the first time, to be repeated at `due_at` unless it is confirmed before.

    None: it is not requested, because an operator makes it.
    """
    attempts = 0 if due_at is None else 1
    return asdict(requested) | {"order_id": order_id, "sequence": sequence, "attempts": attempts, "due_at": due_at}


def inserts(rows: Sequence[Row]) -> bulk.Insert:
    return bulk.Insert(compensations, rows)


def confirm(connection: sa.Connection, ids: Sequence[str], at: datetime) -> None:
    """Mark these as confirmed by the sibling; a repeated confirmation changes nothing."""
    if ids:
        pending = sa.update(compensations).where(compensations.c.id.in_(ids), compensations.c.confirmed_at.is_(None))
        connection.execute(pending.values(confirmed_at=at, due_at=None))


def lock_due(connection: sa.Connection, now: datetime, take: bulk.Take) -> Sequence[sa.Row[Any]]:
    """Lock unconfirmed rows that are due for repetition, leaving out those that another transaction holds."""
    due = sa.select(compensations).where(*take.due(connection, compensations, now))
    due = due.order_by(compensations.c.due_at).limit(take.limit)
    return connection.execute(due.with_for_update(skip_locked=True)).all()


def reschedule(connection: sa.Connection, id: str, *, attempts: int, due_at: datetime | None) -> None:
    """Record how many times this was requested so far, and when it is due next (None: an operator makes it)."""
    changed = sa.update(compensations).where(compensations.c.id == id)
    connection.execute(changed.values(attempts=attempts, due_at=due_at))


def unconfirmed(connection: sa.Connection) -> Sequence[sa.Row[Any]]:
    """All unconfirmed rows, by order."""
    waiting = sa.select(compensations).where(compensations.c.confirmed_at.is_(None))
    return connection.execute(waiting.order_by(compensations.c.order_id, compensations.c.id)).all()


def find(connection: sa.Connection, id: str) -> sa.Row[Any] | None:
    return connection.execute(sa.select(compensations).where(compensations.c.id == id)).first()


def of_row(row: sa.Row[Any]) -> Compensation:
    """Convert a row to a Compensation."""
    return Compensation(row.type, row.id, row.subject, row.amount, row.reason)


def of_orders(connection: sa.Connection, orders: Iterable[Order]) -> Sequence[sa.Row[Any]]:
    """The releases and refunds of these orders; found by their ids, because only these have an index."""
    ids = [
        order.compensation_id(kind, subject)
        for order in orders
        for kind, subjects in ((RELEASE, order.released), (REFUND, order.refunded))
        for subject in subjects
    ]
    wanted = sa.select(compensations).where(bulk.among(connection, compensations.c.id, ids))
    return connection.execute(wanted.order_by(compensations.c.sequence)).all() if ids else ()


def retry(connection: sa.Connection, now: datetime, id: str | None) -> int:
    """Make due the unconfirmed rows that are requested again, or only one of them; return their number."""
    changed = sa.update(compensations).where(compensations.c.due_at > now)
    if id is not None:
        changed = changed.where(compensations.c.id == id)
    return connection.execute(changed.values(due_at=now)).rowcount
