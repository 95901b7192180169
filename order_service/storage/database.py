"""The database: one object that knows how each engine must be told to behave.

SQL lives in order_rows.py, outbox.py, history.py, compensations.py and takings.py only.
"""

import fcntl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, LiteralString, TextIO

import psycopg
import sqlalchemy as sa
from psycopg import generators
from sqlalchemy import event

#: How long SQLite waits for another process's write transaction before it gives up, in milliseconds.
SQLITE_BUSY_MS = 15_000
#: After so long without a sign of the server a connection to PostgreSQL is given up, in milliseconds.
DEAD_SERVER_MS = 15_000
#: After so long without a sign of the client PostgreSQL gives its connection up, and whatever it holds comes free.
#: https://www.postgresql.org/docs/current/runtime-config-connection.html
DEAD_CLIENT: tuple[LiteralString, ...] = (
    "tcp_keepalives_idle TO 10", "tcp_keepalives_interval TO 5", "tcp_keepalives_count TO 3",
)  # fmt: skip
#: A transaction in which the client does nothing for so long is ended, in milliseconds: a process that stands still
#: holds locks that others wait for. A relay waits for the broker in its own; ended too early, its rows go out twice.
FROZEN_CLIENT_MS, FROZEN_RELAY_MS = 10_000, 60_000
#: Always by index, row by row. The planner thinks a new table small, reads all of it rather than an index, and keeps
#: that plan until the table is analyzed: a minute later at best, when each batch may read through a million rows.
#: https://www.postgresql.org/docs/current/runtime-config-query.html
PLANS: tuple[LiteralString, ...] = (
    "enable_seqscan TO off", "enable_hashjoin TO off", "enable_mergejoin TO off", "jit TO off",
)  # fmt: skip
#: The PostgreSQL channel that says: there is something new in the outbox.
CHANNEL = "outbox"


class Database:
    """Where transactions come from. Opens no connection until one is asked for, so it may be made before a fork."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 5,
        ask_first: bool = True,
        durable: bool = True,
        lock_seconds: int | None = None,
    ) -> None:
        """`ask_first`: whether a connection is tried before each transaction; who tries again anyway need not.

        Without `durable` a power cut may undo the last commits, which then cost no flush to disk, and a transaction may
        stand still for longer: both for the relay. `lock_seconds`: how long PostgreSQL lets a statement wait for
        another's lock; beyond it `was_undone` is true of the error.
        """
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite:
            Path(sa.make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
            self.engine = sa.create_engine(url, pool_size=pool_size, max_overflow=0)
            event.listen(self.engine, "connect", lambda connection, _: _configure_sqlite(connection, durable=durable))
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            # A database created in the C locale would otherwise hand over bytes for text.
            # A server that vanished without a word is given up; the kernel alone would take a quarter of an hour.
            arguments = {"connect_timeout": 5, "client_encoding": "utf8", "tcp_user_timeout": DEAD_SERVER_MS}
            self.engine = sa.create_engine(
                url, pool_size=pool_size, max_overflow=0, pool_pre_ping=ask_first, connect_args=arguments
            )
            longest_pause = FROZEN_CLIENT_MS if durable else FROZEN_RELAY_MS
            settings = [*PLANS, *DEAD_CLIENT, f"idle_in_transaction_session_timeout TO {longest_pause}"]
            if not durable:
                settings.append("synchronous_commit TO off")
            if lock_seconds is not None:
                settings.append(f"lock_timeout TO '{lock_seconds}s'")
            event.listen(self.engine, "connect", lambda connection, _: _configure_postgresql(connection, settings))
        self._lock: TextIO | None = None
        # SQLite has one writer at a time; the threads of one process need not even ask it for their turn.
        self._turn: AbstractContextManager[object] = threading.Lock() if self.is_sqlite else nullcontext()

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction, committed at the end, which wakes the relay, or rolled back by any exception."""
        with self._turn, self.engine.connect() as connection, connection.begin():
            yield connection
            if not self.is_sqlite:
                _commit_and_wake_relays(connection)

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
        """Let go of every connection and lock; the object can be used again afterwards."""
        if self._lock:
            self._lock.close()
        self._lock = None
        self.engine.dispose()


def _commit_and_wake_relays(connection: sa.Connection) -> None:
    """NOTIFY after the commit, not in the transaction: that would make committing transactions wait for each other.

    PostgreSQL holds a lock over all of a database from a notifying transaction's commit record to its end, the flush
    included; one that only notifies has nothing to flush. A lost wake-up loses nothing: the relay also looks by itself.
    https://www.postgresql.org/docs/current/sql-notify.html
    """
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    try:
        driver.pgconn.send_query(f"COMMIT; NOTIFY {CHANNEL}".encode())
        committed, *_ = driver.wait(generators.execute(driver.pgconn))
        # The transaction is over whatever became of the NOTIFY; one that had failed before answers ROLLBACK.
        if committed.command_status != b"COMMIT":
            raise psycopg.errors.error_from_result(committed)
    except psycopg.Error as error:
        raise sa.exc.DBAPIError.instance("COMMIT", None, error, psycopg.Error) from error


def was_undone(error: sa.exc.DBAPIError) -> bool:
    """Whether its transaction has certainly written nothing, and others may do what it could not.

    A broken rule, a deadlock or a lock that took too long; not a lost connection, whose commit may have come through.
    """
    return isinstance(error, sa.exc.IntegrityError) or getattr(error.orig, "sqlstate", None) in ("40P01", "55P03")


def _configure_postgresql(connection: psycopg.Connection[Any], settings: Sequence[LiteralString]) -> None:
    for setting in settings:
        connection.execute(f"SET {setting}")
    connection.commit()


def _configure_sqlite(connection: Any, *, durable: bool) -> None:
    # The driver's own BEGIN is deferred, and a read that turns into a write then fails at once with
    # SQLITE_BUSY_SNAPSHOT whatever the timeout; so it is switched off, and _begin_sqlite says which.
    # https://www.sqlite.org/isolation.html
    connection.isolation_level = None
    # In WAL mode NORMAL may forget the last commits at a power cut; a commit is a promise where nothing else is said.
    synchronous = "synchronous=FULL" if durable else "synchronous=NORMAL"
    for pragma in (f"busy_timeout={SQLITE_BUSY_MS}", "journal_mode=WAL", synchronous, "foreign_keys=ON"):
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
