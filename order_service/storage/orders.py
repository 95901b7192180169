"""The rows of orders: insert, lock, find, read and update them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic_core import from_json, to_json

from order_service.domain.messages import Item
from order_service.domain.order import FINAL, Order, Payment, State
from order_service.process import first_line
from order_service.storage import bulk
from order_service.storage.errors import is_damaged
from order_service.storage.tables import BigId, orders

#: The columns that are written once, and those that a decision may change; named like the fields of Order.
_FIXED = ("key", "user_id", "created_at", "expected_total", "traceparent", "tracestate")
_CHANGING = (
    "state", "version", "total_price", "reason", "detail", "rejected_menu_id", "paid_at", "due_at", "reminders_left",
)  # fmt: skip
#: The columns that are written after an order was placed.
CHANGED = (*_CHANGING, "items", "ledger")
_SELECT = sa.select(*(orders.c[name] for name in ("id", "menu_ids", "items", "ledger", *_FIXED, *_CHANGING)))
#: How many orders of a user are looked through for pending ones. Without a bound, a user with a long history would slow
#: down every order; a pending order is older than these only if they were placed and ended within its lifetime.
NEWEST_ORDERS = 1000
_COUNT_PENDING = """
    SELECT column1, (SELECT count(*) FROM (SELECT 1 FROM (
        SELECT state FROM orders WHERE user_id = column1 ORDER BY id DESC LIMIT {newest}
    ) AS newest WHERE state NOT IN ('paid', 'failed', 'cancelled') LIMIT {most}) AS pending)
    FROM (VALUES {users}) AS users
"""
#: The first key of the advisory locks on users; the second one is the user's id.
USER_LOCK = 5003

#: What decoding a row raises, in the driver, in a column's type or here.
_UNDECODABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, sa.exc.DataError)


class UnreadableOrder(Exception):
    """The row of an order cannot be decoded: it was damaged, or written by a newer version."""

    def __init__(self, order_id: int, error: Exception) -> None:
        super().__init__(f"order {order_id}: {first_line(error)}")
        self.order_id = order_id


def insert_orders(connection: sa.Connection, placed: Sequence[tuple[Order, Mapping[str, str]]]) -> None:
    """Write new orders, each with the columns that recognize a repeat of its request, and set their ids.

    Either all have an id already, or none. Raises sqlalchemy.exc.IntegrityError if an idempotency key or an id is
    already used.
    """
    rows = [
        ({"id": order.id} if order.id else {})
        | {name: getattr(order, name) for name in _FIXED}
        | {"menu_ids": to_json(order.menu_ids).decode(), "idempotency_key": None, "request_hash": None, **request}
        | _changing(order)
        for order, request in placed
    ]
    # Sorted, because two batches could otherwise deadlock over their idempotency keys.
    rows.sort(key=lambda row: row["idempotency_key"] or "")
    ids = {UUID(str(key)): id for key, id in bulk.insert_returning(connection, orders, rows, "key, id")}
    for order, _ in placed:
        order.id = ids[order.key]


def lock_orders(connection: sa.Connection, ids: Sequence[int]) -> dict[int, Order]:
    """The orders that exist among these ids, locked until the transaction ends.

    They are locked in the order of their ids, because two transactions could otherwise deadlock.
    """
    wanted = _SELECT.where(bulk.among(connection, orders.c.id, ids)).order_by(orders.c.id).with_for_update()
    return {order.id: order for order in _read(connection, wanted)}


def read_orders(
    connection: sa.Connection,
    ids: Sequence[int],
    *,
    user_id: int | None = None,
    unreadable: list[UnreadableOrder] | None = None,
) -> dict[int, Order]:
    """The orders that exist among these ids, with a `user_id` only those of this user, without a lock.

    An unreadable one is added to `unreadable`, if given; `connection` must then be one of `Database.reading`, whose
    transaction may end.
    """
    wanted = _SELECT.where(bulk.among(connection, orders.c.id, ids))
    if user_id is not None:
        wanted = wanted.where(orders.c.user_id == user_id)
    return {order.id: order for order in _read(connection, wanted, unreadable)}


def updates(changed: Sequence[Order]) -> bulk.Update:
    """The rows to update, for `bulk.write`; the orders must be locked in this transaction."""
    return bulk.Update(orders, [{"id": order.id} | _changing(order) for order in changed])


def lock_due_orders(connection: sa.Connection, now: datetime, take: bulk.Take) -> list[Order]:
    """Lock orders whose deadline has passed, leaving out those that another transaction holds."""
    due = _SELECT.where(*take.due(connection, orders, now)).order_by(orders.c.due_at).limit(take.limit)
    return _read(connection, due.with_for_update(skip_locked=True))


def make_oldest_due(connection: sa.Connection, now: datetime, lifetime: timedelta) -> None:
    """Make due the pending orders that are older than `lifetime`, regardless of their deadlines."""
    is_older = orders.c.created_at <= now - lifetime, orders.c.state.not_in(FINAL)
    older = sa.select(orders.c.id).where(orders.c.due_at > now, *is_older).order_by(orders.c.id)
    if ids := connection.execute(older.with_for_update(skip_locked=True)).scalars().all():
        connection.execute(sa.update(orders).where(bulk.among(connection, orders.c.id, ids)).values(due_at=now))


def due_ids(connection: sa.Connection, table: sa.Table, now: datetime, take: bulk.Take) -> Sequence[Any]:
    """The ids of orders whose deadline has passed, or of compensations that are due for repetition."""
    due = sa.select(table.c.id).where(*take.due(connection, table, now)).order_by(table.c.due_at)
    return connection.execute(due.limit(take.limit)).scalars().all()


def versions(connection: sa.Connection, ids: Sequence[int]) -> dict[int, int]:
    """The version of each of these orders."""
    wanted = sa.select(orders.c.id, orders.c.version).where(bulk.among(connection, orders.c.id, ids))
    return {row.id: row.version for row in connection.execute(wanted)}


def lock_and_count_pending(connection: sa.Connection, user_ids: Collection[int], *, most: int) -> dict[int, int]:
    """How many orders of each of these users are pending: at most `most`, and among the NEWEST_ORDERS newest ones.

    The counts stay exact until the transaction ends, if every transaction that places orders of a limited user calls
    this first. The users are locked in the order of their ids, because two transactions could otherwise deadlock.
    """
    ids = sorted(int(user_id) for user_id in user_ids)
    users = ", ".join(f"({user_id})" for user_id in ids)
    count = _COUNT_PENDING.format(newest=NEWEST_ORDERS, most=int(most), users=users)
    if connection.dialect.name == "sqlite":  # A transaction that writes has the database for itself.
        return {user_id: pending for user_id, pending in connection.exec_driver_sql(count)}  # noqa: C416 - typed
    # In one round trip, and still two statements: the second one sees what was committed while the first one waited.
    # A bitmap scan would read all orders of a user before it sorts them; the index has them in order.
    lock = f"""
        SELECT set_config('enable_bitmapscan', 'off', true), pg_advisory_xact_lock({USER_LOCK}, id)
        FROM unnest(ARRAY{ids}) AS id
    """  # noqa: S608 - integers
    cursor = connection.exec_driver_sql(f"{lock}; {count}").cursor
    cursor.nextset()
    return dict(cursor.fetchall())


def find_request(connection: sa.Connection, idempotency_key: str) -> tuple[int, str] | None:
    """The id of the order placed under this key, if any, and the hash of its request."""
    found = sa.select(orders.c.id, orders.c.request_hash).where(orders.c.idempotency_key == idempotency_key)
    row = connection.execute(found).one_or_none()
    return row and (row.id, row.request_hash)


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a list's orders, the id after which the next page begins, if any, and the rows that were left out."""

    orders: list[Order]
    following: int | None
    unreadable: list[UnreadableOrder]


def list_orders(
    connection: sa.Connection, *, user_id: int | None, states: Collection[State], before: int | None, limit: int
) -> Page:
    """A page of orders, newest first: of one user, in some states, older than the order `before`.

    `connection` must be one of `Database.reading`, whose transaction may end.
    """
    # One more than a page shows whether there is a next page.
    wanted = _SELECT.order_by(orders.c.id.desc()).limit(limit + 1)
    if user_id is not None:
        wanted = wanted.where(orders.c.user_id == user_id)
    if before is not None:
        # As a large integer: a client may send any cursor.
        wanted = wanted.where(orders.c.id < sa.literal(before, BigId))
    if states:
        wanted = wanted.where(orders.c.state.in_(states))
    if states and not FINAL & set(states):
        # A pending order always has a deadline: that index finds the few among millions that have ended.
        wanted = wanted.where(orders.c.due_at.is_not(None))
    unreadable: list[UnreadableOrder] = []
    found = _read(connection, wanted, unreadable)
    ids = sorted([order.id for order in found] + [error.order_id for error in unreadable], reverse=True)
    following = ids[limit - 1] if len(ids) > limit else None
    page = [order for order in found if following is None or order.id >= following]
    return Page(page, following, unreadable)


def _changing(order: Order) -> dict[str, Any]:
    ledger = {
        "reservations": order.reservations,
        "payments": [[payment.id, payment.amount] for payment in order.payments],
        "released": order.released,
        "refunded": order.refunded,
    }
    items = [[item.id, item.name, item.price, item.stock] for item in order.items]
    columns: dict[str, Any] = {name: getattr(order, name) for name in _CHANGING}
    columns["state"] = str(order.state)  # `value` is a slow property
    columns["items"] = to_json(items).decode() if items else None
    columns["ledger"] = to_json(ledger).decode()
    return columns


def _read(
    connection: sa.Connection, wanted: sa.Select[Any], unreadable: list[UnreadableOrder] | None = None
) -> list[Order]:
    """Read orders. One that cannot be read is added to `unreadable`.

    Without it, UnreadableOrder is raised, or the driver's error if PostgreSQL cannot read a row from its disk: that
    ends the transaction, so a new one would be needed to find the row.
    """
    try:
        # All rows before the first is decoded: after an error in between, SQLite's open cursor would keep its
        # connection at an old snapshot, which cannot write.
        return [_order(row) for row in connection.execute(wanted).all()]
    except _UNDECODABLE:
        pass
    except sa.exc.DBAPIError as error:
        if unreadable is None or not is_damaged(error):
            raise
        connection.rollback()
    # The driver decodes all rows together, so each is read again alone.
    ids = connection.execute(wanted.with_only_columns(orders.c.id)).scalars().all()
    found: list[Order] = []
    for id in ids:
        try:
            found += [_order(row) for row in connection.execute(_SELECT.where(orders.c.id == id)).all()]
        except _UNDECODABLE as error:
            if unreadable is None:
                raise UnreadableOrder(id, error) from error
            unreadable.append(UnreadableOrder(id, error))
        except sa.exc.DBAPIError as error:
            if unreadable is None or not is_damaged(error):
                raise
            connection.rollback()
            unreadable.append(UnreadableOrder(id, error))
    return found


def _order(row: Sequence[Any]) -> Order:
    id, menu_ids, items, ledger_text, *values = row
    columns = dict(zip((*_FIXED, *_CHANGING), values, strict=True))
    columns["state"] = State(columns["state"])
    ledger = from_json(ledger_text)
    return Order(
        id=id,
        menu_ids=tuple(from_json(menu_ids)),
        items=tuple(Item(id, name, Decimal(price), stock) for id, name, price, stock in from_json(items or "[]")),
        payments=tuple(Payment(id, None if amount is None else Decimal(amount)) for id, amount in ledger["payments"]),
        reservations=tuple(ledger["reservations"]),
        released=tuple(ledger["released"]),
        refunded=tuple(ledger["refunded"]),
        **columns,
    )
