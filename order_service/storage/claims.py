"""The claims of the relay: rows of the outbox that one process publishes, and then settles."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from operator import attrgetter

import sqlalchemy as sa

from order_service.backoff import Backoff
from order_service.contract.topology import EXCHANGE
from order_service.domain.order import AWAITING_MENU, State
from order_service.storage.database import Database, current_time
from order_service.storage.tables import compensations, orders, outbox

#: How long a returned or refused row waits before its next attempt.
ROW_BACKOFF = Backoff(first=1, longest=60)
#: The most body bytes of one claim; one row is always claimed.
MAX_CLAIM_BYTES = 1024 * 1024
#: The least time between two claims that start at the first row, in seconds, and how many times their duration.
FULL_CLAIM_SECONDS, FULL_CLAIM_SHARE = 0.5, 50
#: How many rows are decoded together while one that cannot be is looked for.
DECODED = 100
#: How long claims go on starting at the same row, in seconds.
START_LAG_SECONDS = 1.0
#: Where a message goes: its exchange and routing key.
Route = tuple[str, str]


@lru_cache(maxsize=100)
def _claim(
    *, is_sqlite: bool, only: Route | None, without: tuple[Route, ...], unreadable: tuple[int, ...]
) -> sa.Executable:
    """The statement that claims the oldest due rows of one route, or of all but some, within the limits of a claim."""
    due = (
        sa.select(outbox.c.id, sa.func.length(outbox.c.body).label("size"))
        .where(outbox.c.id >= sa.bindparam("start"), outbox.c.due_at <= sa.bindparam("now"))
        .where(*([_goes(only)] if only else [sa.not_(_goes(route)) for route in without]))
        .where(*([outbox.c.id.not_in(unreadable)] if unreadable else []))
        .order_by(outbox.c.id)
        .limit(sa.bindparam("limit"))
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    before = sa.func.sum(due.c.size).over(order_by=due.c.id) - due.c.size
    sized = sa.select(due.c.id, before.label("before")).subquery()
    ids = sa.select(sized.c.id).where(sized.c.before < MAX_CLAIM_BYTES).scalar_subquery()
    if is_sqlite:
        return sa.select(outbox).where(outbox.c.id.in_(ids))
    # The ids as an array, so that the subquery runs once, regardless of the plan.
    return sa.delete(outbox).where(outbox.c.id == sa.any_(sa.func.array(ids))).returning(outbox)


def _goes(route: Route) -> sa.ColumnElement[bool]:
    return sa.and_(outbox.c.exchange == route[0], outbox.c.routing_key == route[1])


@dataclass
class Outcomes:
    """What became of the rows of a claim, by row id."""

    sent: list[int] = field(default_factory=list)
    #: Returned or refused by the broker. This counts an attempt, and a row that is no longer needed is deleted.
    failed: list[int] = field(default_factory=list)
    #: Those of `failed` that one of several queues may have accepted; they are not deleted.
    nacked: list[int] = field(default_factory=list)
    #: To be published again, because the broker may not have accepted them; with the delay in seconds.
    postponed: dict[int, float] = field(default_factory=dict)


class Claim:
    """Rows that this relay alone may publish until it settles them.

    On PostgreSQL they are deleted in an open transaction, which a killed relay's connection rolls back. On SQLite only
    one relay works at a time (`Database.acquire_relay_role`), so reading the rows claims them, and two open claims must
    concern different routes.
    """

    def __init__(
        self,
        database: Database,
        limit: int,
        *,
        start: int = 0,
        only: Route | None = None,
        without: Sequence[Route] = (),
        unreadable: Sequence[int] = (),
    ) -> None:
        """Claim the oldest rows that are due, with ids from `start` on: of the route `only`, or of none in `without`.

        Raises SQLAlchemyError while the database is unreachable, and any exception if a row cannot be decoded: then
        find it with `unreadable_rows`, and leave it out.
        """
        self._database = database
        claim = _claim(is_sqlite=database.is_sqlite, only=only, without=tuple(without), unreadable=tuple(unreadable))
        connection = database.engine.connect().execution_options(read_only=True)
        self._connection: sa.Connection | None = connection
        try:
            now = current_time(connection)
            found = connection.execute(claim, {"now": now, "limit": limit, "start": start})
            self.rows = sorted(found.all(), key=attrgetter("id"))
        except BaseException:
            connection.close()
            raise
        if database.is_sqlite or not self.rows:
            connection.close()
            self._connection = None

    def settle(self, outcomes: Outcomes) -> None:
        """Delete the sent rows, reschedule those that failed or are postponed, and release the others.

        Raises SQLAlchemyError if the database cannot be written: repeat the call then, because the rows stay, and would
        be published again under the same ids. On PostgreSQL the first call ends the claim, even if it fails.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            with self._database.writing() as connection:
                _delete(connection, outcomes.sent)
                self._reschedule(connection, outcomes)
            return
        try:
            if len(outcomes.sent) < len(self.rows):
                kept = [dict(row._mapping) for row in self.rows if row.id not in outcomes.sent]
                connection.execute(sa.insert(outbox), kept)
            self._reschedule(connection, outcomes)
            connection.commit()
        finally:
            connection.close()

    def _reschedule(self, connection: sa.Connection, outcomes: Outcomes) -> None:
        if not outcomes.failed and not outcomes.postponed:
            return
        if undelivered := set(outcomes.failed).difference(outcomes.nacked):
            connection.execute(sa.delete(outbox).where(outbox.c.id.in_(undelivered), _no_longer_needed()))
        later, now = [], current_time(connection)
        for row in self.rows:
            attempts, delay = row.attempts, outcomes.postponed.get(row.id)
            if row.id in outcomes.failed:
                attempts += 1
                delay = ROW_BACKOFF.delay(attempts)
            if delay is not None:
                later.append({"row_id": row.id, "attempts": attempts, "due_at": now + timedelta(seconds=delay)})
        if later:
            connection.execute(sa.update(outbox).where(outbox.c.id == sa.bindparam("row_id")), later)


def _delete(connection: sa.Connection, ids: Sequence[int]) -> None:
    """Delete rows, but none that another relay has claimed in the meantime: waiting would block this one."""
    if ids:
        free = sa.select(outbox.c.id).where(outbox.c.id.in_(ids)).with_for_update(skip_locked=True)
        connection.execute(sa.delete(outbox).where(outbox.c.id.in_(free.scalar_subquery())))


def unreadable_rows(database: Database, limit: int, *, known: Sequence[int]) -> dict[int, Exception]:
    """Those of the oldest due rows of each route that cannot be decoded, without the known ones, by id.

    Of each route: behind many rows of one that fails, which are not claimed, those of others would not be found.
    Raises SQLAlchemyError while the database is unreachable.
    """
    number = sa.func.row_number().over(partition_by=[outbox.c.exchange, outbox.c.routing_key], order_by=outbox.c.id)
    with database.reading() as connection:
        is_due = outbox.c.due_at <= current_time(connection), outbox.c.id.not_in(known)
        due = sa.select(outbox.c.id, number.label("number")).where(*is_due).subquery()
        wanted = sa.select(due.c.id).where(due.c.number <= limit).order_by(due.c.id)
        ids = connection.execute(wanted).scalars().all()
    found: dict[int, Exception] = {}
    for start in range(0, len(ids), DECODED):
        several = ids[start : start + DECODED]
        if _problem(database, several):
            found |= {row_id: problem for row_id in several if (problem := _problem(database, [row_id]))}
    return found


def _problem(database: Database, row_ids: Sequence[int]) -> Exception | None:
    """Why one of these rows cannot be decoded, if one cannot."""
    # A transaction for each attempt, because an error ends it.
    with database.reading() as connection:
        try:
            connection.execute(sa.select(outbox).where(outbox.c.id.in_(row_ids))).all()
        except Exception as error:
            if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
                raise
            return error
    return None


class Position:
    """Where the next claim starts.

    An open snapshot (a backup, a forgotten transaction) keeps every deleted row, and each claim would walk over all of
    them. So most claims start near where the last ones began. The others start at the first row, for rescheduled rows
    and late commits, and take at most a small share of the time.
    https://www.postgresql.org/docs/current/routine-vacuuming.html
    """

    def __init__(self) -> None:
        self._start = self._next_start = 0
        self._full_at = self._moves_at = 0.0

    def claim(
        self, database: Database, limit: int, *, without: Sequence[Route], unreadable: Sequence[int] = ()
    ) -> Claim:
        """Claim rows of all routes but those in `without`, as `Claim` does."""
        began = time.monotonic()
        start = self._start if began < self._full_at else 0
        claim = Claim(database, limit, start=start, without=without, unreadable=unreadable)
        ended = time.monotonic()
        if not start:
            self._full_at = ended + max(FULL_CLAIM_SECONDS, (ended - began) * FULL_CLAIM_SHARE)
        if claim.rows and ended >= self._moves_at:
            # Not at once to these rows: one with a lower id may still be committed.
            self._start, self._next_start = self._next_start, max(self._next_start, claim.rows[0].id)
            self._moves_at = ended + START_LAG_SECONDS
        return claim


def _no_longer_needed() -> sa.ColumnElement[bool]:
    """Rows that are no longer needed.

    The order has left the state the event belongs to, or the compensation is confirmed.
    """
    its_order = sa.exists().where(orders.c.id == outbox.c.order_id)
    confirmed = compensations.c.confirmed_at.is_not(None)
    obsolete = sa.or_(
        sa.and_(outbox.c.type == "OrderCreated", its_order.where(orders.c.state.not_in(AWAITING_MENU))),
        sa.and_(outbox.c.type == "PaymentRequested", its_order.where(orders.c.state != State.AWAITING_PAYMENT)),
        sa.exists().where(compensations.c.id == outbox.c.message_id, confirmed),
    )
    # Not dead letters, whose type and id may equal an event's.
    return sa.and_(outbox.c.exchange == EXCHANGE, obsolete)
