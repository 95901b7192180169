"""Figures of the database for monitoring. Each query reads what is open only, found by a partial index."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from order_service.domain.order import FINAL, State
from order_service.storage.database import current_time
from order_service.storage.tables import compensations, orders, outbox


@dataclass(frozen=True, slots=True)
class Figures:
    """What is open; ages in seconds, 0 if there is nothing."""

    pending: dict[str, int]
    oldest_pending_seconds: float
    outbox_rows: int
    outbox_oldest_seconds: float
    unconfirmed: int


def read(connection: sa.Connection, compensation_attempts: int) -> Figures:
    """Read the figures; a compensation counts once it was requested this many times, or if an operator makes it."""
    now = current_time(connection)
    # A pending order always has a deadline.
    is_pending = orders.c.due_at.is_not(None), orders.c.state.not_in(FINAL)
    by_state = sa.select(orders.c.state, sa.func.count(), sa.func.min(orders.c.created_at)).where(*is_pending)
    found = connection.execute(by_state.group_by(orders.c.state)).all()
    # The first id instead of the smallest time: that has no index.
    first = sa.select(outbox.c.created_at).order_by(outbox.c.id).limit(1)
    is_overdue = sa.or_(compensations.c.attempts >= compensation_attempts, compensations.c.due_at.is_(None))
    unconfirmed = sa.select(sa.func.count()).where(compensations.c.confirmed_at.is_(None), is_overdue)
    return Figures(
        {state.value: 0 for state in State if state not in FINAL} | {state: count for state, count, _ in found},
        _age(min((oldest for _, _, oldest in found), default=None), now),
        connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one(),
        _age(connection.execute(first).scalar(), now),
        connection.execute(unconfirmed).scalar_one(),
    )


def _age(since: datetime | None, now: datetime) -> float:
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())
