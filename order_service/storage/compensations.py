"""The rows behind what is being given back: requested, repeated under one id, and one day confirmed."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from order_service.domain.order import Compensation
from order_service.storage import bulk
from order_service.storage.tables import compensations

Row = dict[str, Any]


def row(order_id: int, wanted: Compensation, *, sequence: int, due_at: datetime) -> Row:
    """A compensation just requested, to be repeated at `due_at` unless it is confirmed before."""
    return asdict(wanted) | {"order_id": order_id, "sequence": sequence, "attempts": 1, "due_at": due_at}


def requested(rows: Sequence[Row]) -> bulk.Insert:
    return bulk.Insert(compensations, rows)


def confirm(connection: sa.Connection, ids: Sequence[str], at: datetime) -> None:
    """The sibling has given these back; a repeated confirmation changes nothing."""
    if ids:
        open_ones = sa.update(compensations).where(compensations.c.id.in_(ids), compensations.c.confirmed_at.is_(None))
        connection.execute(open_ones.values(confirmed_at=at, due_at=None))


def lock_due(connection: sa.Connection, now: datetime, limit: int) -> Sequence[sa.Row[Any]]:
    """Unconfirmed ones whose time to be repeated has come, locked; those held elsewhere are left out."""
    due = sa.select(compensations).where(compensations.c.due_at <= now).order_by(compensations.c.id).limit(limit)
    return connection.execute(due.with_for_update(skip_locked=True)).all()


def put_off(connection: sa.Connection, id: str, *, attempts: int, due_at: datetime) -> None:
    """Note one more attempt and when the next is due."""
    changed = sa.update(compensations).where(compensations.c.id == id)
    connection.execute(changed.values(attempts=attempts, due_at=due_at))


def of_row(row: sa.Row[Any]) -> Compensation:
    """The compensation as the domain knows it."""
    return Compensation(row.type, row.id, row.subject, row.amount, row.reason)
