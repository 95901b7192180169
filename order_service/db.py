"""The database: one object that knows how each engine must be told to behave, and the orders' rows.

Besides here, SQL lives in outbox.py, history.py, compensations.py and takings.py only.
"""

import fcntl
import json
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

import psycopg
import sqlalchemy as sa
import structlog
from sqlalchemy import event

from order_service.order import FINAL, Item, Order, Payment, State
from order_service.tables import compensations, orders

log = structlog.get_logger(__name__)
#: How long SQLite waits for another process's write transaction before it gives up, in milliseconds.
SQLITE_BUSY_MS = 15_000
#: The PostgreSQL channel that says: there is something new in the outbox.
CHANNEL = "outbox"


class Database:
    """Where transactions come from. Opens no connection until one is asked for, so it may be made before a fork."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite:
            Path(sa.make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
            self.engine = sa.create_engine(url, pool_size=pool_size, max_overflow=0)
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            # A database created in the C locale would otherwise hand over bytes for text.
            arguments = {"connect_timeout": 5, "client_encoding": "utf8"}
            self.engine = sa.create_engine(
                url, pool_size=pool_size, max_overflow=0, pool_pre_ping=True, connect_args=arguments
            )
        self._lock: TextIO | None = None
        # SQLite has one writer at a time; the threads of one process need not even ask it for their turn.
        self._turn: AbstractContextManager[object] = threading.Lock() if self.is_sqlite else nullcontext()
        self._bell = None if self.is_sqlite else _Bell(self.engine)

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction, committed at the end or rolled back by any exception; then the relay is woken."""
        with self._turn, self.engine.begin() as connection:
            yield connection
        if self._bell:
            self._bell.ring()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads: on SQLite it waits for no writer and no writer for it."""
        with self.engine.connect().execution_options(read_only=True) as connection:
            yield connection

    def listen(self) -> psycopg.Connection[Any]:
        """A connection of its own whose socket becomes readable after a commit somewhere; PostgreSQL only."""
        pooled = self.engine.raw_connection()
        connection: psycopg.Connection[Any] = pooled.driver_connection  # type: ignore[assignment]
        pooled.detach()
        try:
            connection.autocommit = True
            connection.execute(f"LISTEN {CHANNEL}")
        except psycopg.Error:
            connection.close()
            raise
        return connection

    def sole(self, role: str) -> bool:
        """True if this process may play a role that only one at a time may play on SQLite; kept until it ends.

        PostgreSQL locks rows instead, so there everyone may. The kernel frees the lock however the process ends.
        """
        if self._lock is None and self.is_sqlite:
            lock = open(f"{sa.make_url(self.url).database}.{role}.lock", "w")  # noqa: SIM115 - held for life
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                return False
            self._lock = lock
        return True

    def dispose(self) -> None:
        """Let go of every connection, lock and thread; the object can be used again afterwards."""
        for held in (self._bell, self._lock):
            if held:
                held.close()
        self._lock = None
        self.engine.dispose()


class _Bell:
    """Wakes the relays after a commit, once for all the commits of a moment.

    NOTIFY inside the transactions would make them commit one after the other: PostgreSQL holds a lock over all
    of a database from a notifying transaction's commit record to its end, the flush included.
    https://www.postgresql.org/docs/current/sql-notify.html
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._rung = threading.Event()
        self._start = threading.Lock()
        self._closing = False
        self._thread: threading.Thread | None = None

    def ring(self) -> None:
        self._rung.set()
        if self._thread is None:
            with self._start:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="bell", daemon=True)
                    self._thread.start()

    def close(self) -> None:
        if self._thread:
            self._closing = True
            self._rung.set()
            self._thread.join()
            self._thread, self._closing = None, False

    def _run(self) -> None:
        while self._rung.wait() and not self._closing:
            self._rung.clear()
            try:
                with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    connection.exec_driver_sql(f"NOTIFY {CHANNEL}")
            except sa.exc.SQLAlchemyError:
                # Nothing is lost: the relay also looks by itself.
                log.warning("could not wake the relay", exc_info=True)


def _configure_sqlite(connection: Any, _record: object) -> None:
    # The driver's own BEGIN is deferred, and a read that turns into a write then fails at once with
    # SQLITE_BUSY_SNAPSHOT whatever the timeout; so it is switched off, and _begin_sqlite says which.
    # https://www.sqlite.org/isolation.html
    connection.isolation_level = None
    # FULL: in WAL mode NORMAL may forget the last commits at a power cut, and a commit here was a promise.
    for pragma in (f"busy_timeout={SQLITE_BUSY_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    if connection.get_execution_options().get("read_only", False):
        connection.exec_driver_sql("BEGIN")
        return
    # SQLite's own wait for a turn sleeps longer and longer, up to 100 ms; a write here lasts a few milliseconds.
    connection.exec_driver_sql("PRAGMA busy_timeout=1")
    end = time.monotonic() + SQLITE_BUSY_MS / 1000
    try:
        while not _began(connection, last=time.monotonic() > end):
            pass
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={SQLITE_BUSY_MS}")


def _began(connection: sa.Connection, *, last: bool) -> bool:
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    except sa.exc.OperationalError as error:
        if last or "locked" not in str(error.orig):
            raise
        return False
    return True


#: Written once, and what a decision may change; the names of the columns are those of the order's fields.
_FIXED = ("key", "user_id", "created_at", "expected_total", "traceparent")
_CHANGING = (
    "state", "version", "total_price", "reason", "detail", "rejected_menu_id", "paid_at", "due_at", "reminders_left",
)  # fmt: skip


def insert_order(connection: sa.Connection, order: Order, *, request: Mapping[str, str] | None = None) -> None:
    """Write a new order, with what makes its request a repeat, and give it its id.

    Raises sqlalchemy.exc.IntegrityError where the idempotency key is taken.
    """
    fixed = {name: getattr(order, name) for name in _FIXED} | {"menu_ids": json.dumps(order.menu_ids)}
    row = fixed | _changing(order) | dict(request or {})
    order.id = connection.execute(sa.insert(orders).values(row).returning(orders.c.id)).scalar_one()


def lock_orders(connection: sa.Connection, ids: Sequence[int]) -> dict[int, Order]:
    """The orders that exist among these ids, locked until the transaction ends.

    They are locked in the order of their ids, or two transactions could wait for each other for ever.
    """
    found = connection.execute(sa.select(orders).where(orders.c.id.in_(ids)).order_by(orders.c.id).with_for_update())
    return {row["id"]: _order(row) for row in found.mappings()}


def read_orders(connection: sa.Connection, ids: Sequence[int]) -> dict[int, Order]:
    """The orders that exist among these ids, as they stand."""
    found = connection.execute(sa.select(orders).where(orders.c.id.in_(ids)))
    return {row["id"]: _order(row) for row in found.mappings()}


def update_orders(connection: sa.Connection, changed: Sequence[Order]) -> None:
    """Write back orders locked in this transaction."""
    if not changed:
        return
    rows = [{"row_id": order.id} | {f"new_{k}": v for k, v in _changing(order).items()} for order in changed]
    values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in (*_CHANGING, "items", "ledger")}
    connection.execute(sa.update(orders).where(orders.c.id == sa.bindparam("row_id")).values(values), rows)


def lock_due_orders(connection: sa.Connection, now: datetime, limit: int) -> list[Order]:
    """Orders whose deadline has come, locked; those another process holds just now are left to it."""
    due = sa.select(orders).where(orders.c.due_at <= now).order_by(orders.c.id).limit(limit)
    return [_order(row) for row in connection.execute(due.with_for_update(skip_locked=True)).mappings()]


def any_due(connection: sa.Connection, now: datetime) -> bool:
    """Whether a deadline or the repetition of a compensation has come."""
    due = [sa.exists().where(table.c.due_at <= now) for table in (orders, compensations)]
    return bool(connection.execute(sa.select(sa.or_(*due))).scalar_one())


def versions(connection: sa.Connection, ids: Sequence[int]) -> dict[int, int]:
    """The version of each of these orders, to see what has changed."""
    found = connection.execute(sa.select(orders.c.id, orders.c.version).where(orders.c.id.in_(ids)))
    return {row.id: row.version for row in found}


def find_request(connection: sa.Connection, idempotency_key: str) -> tuple[int, str] | None:
    """The order placed under this key and the hash of its request, if there is one."""
    found = sa.select(orders.c.id, orders.c.request_hash).where(orders.c.idempotency_key == idempotency_key)
    row = connection.execute(found).one_or_none()
    return row and (row.id, row.request_hash)


def list_orders(
    connection: sa.Connection, *, user_id: int | None, states: Collection[State], before: int | None, limit: int
) -> list[Order]:
    """A page of orders, newest first: those of a user, in some states, and older than the last one seen."""
    wanted = sa.select(orders).order_by(orders.c.id.desc()).limit(limit)
    if user_id is not None:
        wanted = wanted.where(orders.c.user_id == user_id)
    if before is not None:
        wanted = wanted.where(orders.c.id < before)
    if states:
        wanted = wanted.where(orders.c.state.in_(states))
    if states and not FINAL & set(states):
        # A pending order always has a deadline: its index finds the few among millions that have ended.
        wanted = wanted.where(orders.c.due_at.is_not(None))
    return [_order(row) for row in connection.execute(wanted).mappings()]


def _changing(order: Order) -> dict[str, Any]:
    ledger = {
        "reservations": order.reservations,
        "payments": [[p.id, None if p.amount is None else str(p.amount)] for p in order.payments],
        "released": order.released,
        "refunded": order.refunded,
    }
    items = [[item.id, item.name, str(item.price), item.stock] for item in order.items]
    columns: dict[str, Any] = {name: getattr(order, name) for name in _CHANGING}
    columns["state"] = order.state.value
    columns["items"] = json.dumps(items, ensure_ascii=False) if items else None
    columns["ledger"] = json.dumps(ledger, ensure_ascii=False)
    return columns


def _order(row: Mapping[Any, Any]) -> Order:
    columns = {name: row[name] for name in (*_FIXED, *_CHANGING)}
    columns["state"] = State(row["state"])
    ledger = json.loads(row["ledger"])
    payments = [Payment(id, None if amount is None else Decimal(amount)) for id, amount in ledger.pop("payments")]
    items = json.loads(row["items"]) if row["items"] else []
    return Order(
        id=row["id"],
        menu_ids=tuple(json.loads(row["menu_ids"])),
        items=tuple(Item(id, name, Decimal(price), stock) for id, name, price, stock in items),
        payments=payments,
        **columns,
        **ledger,
    )
