"""The database: engines and transactions for SQLite and PostgreSQL, each with its own configuration."""

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString, Self, TextIO

import psycopg
import sqlalchemy as sa
from sqlalchemy import event

from order_service import vendor
from order_service.process import client_name, utc_now
from order_service.storage.errors import READ_ONLY, OutcomeUnknown

#: How long SQLite waits for another process's write transaction before it fails, in milliseconds.
SQLITE_BUSY_MS = 15_000
#: A connection to a PostgreSQL server that has acknowledged nothing for this long is closed, in milliseconds.
DEAD_SERVER_MS = 15_000
#: Set once per connection. PostgreSQL closes the connection of an unreachable client after about 25 s and releases its
#: locks.
#: https://www.postgresql.org/docs/current/runtime-config-connection.html
DEAD_CLIENT: tuple[LiteralString, ...] = (
    "tcp_keepalives_idle TO 10", "tcp_keepalives_interval TO 5", "tcp_keepalives_count TO 3",
)  # fmt: skip
#: PostgreSQL ends a transaction that has been idle for this long, in milliseconds, because its locks block others.
#: The relay's transactions wait for broker confirms; one that is ended too early publishes its rows twice.
IDLE_TRANSACTION_MS, IDLE_RELAY_TRANSACTION_MS = 10_000, 60_000
#: Always use an index. The planner assumes that a new table is small, scans it, and keeps that plan until the table
#: is analyzed: a minute later at best, when each batch may scan a million rows.
#: https://www.postgresql.org/docs/current/runtime-config-query.html
PLANS: tuple[LiteralString, ...] = (
    "enable_seqscan TO off", "enable_hashjoin TO off", "enable_mergejoin TO off", "jit TO off",
)  # fmt: skip
#: Errors after which a COMMIT has certainly written nothing although the connection ended, or on SQLite: the
#: transaction had been idle for too long; the file is locked or the disk is full, or a row violates a constraint.
IDLE_TIMEOUT = "25P03"
NOT_COMMITTED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CONSTRAINT}
#: The PostgreSQL notification channel for new outbox rows.
CHANNEL = "outbox"
#: The key of the server's time, with the time of its receipt on this host's monotonic clock, in `Connection.info`.
SERVER_TIME = "server_time"


class Database:
    """Opens transactions. Connects on first use only, so it may be created before a fork.

    As a context manager, it closes all connections at the end of the block.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 5,
        pre_ping: bool = True,
        durable: bool = True,
        lock_seconds: int | None = None,
        role: str = "command",
    ) -> None:
        """`pre_ping`: test a connection before each transaction; a caller that retries anyway does not need it.

        `durable=False` is for the relay: a power cut may undo the last commits, which then need no flush to disk, and
        a transaction may be idle for longer. `lock_seconds`: how long a statement, on SQLite a BEGIN, waits for a lock;
        `is_rolled_back` is true for the resulting error. `role`: whose connections these are, for the application_name
        that PostgreSQL shows.
        """
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite:
            _create_private_file(Path(sa.make_url(url).database or ""))
            self.engine = sa.create_engine(url, pool_size=pool_size, max_overflow=0)
            event.listen(self.engine, "connect", lambda connection, _: _configure_sqlite(connection, durable=durable))
            event.listen(self.engine, "begin", lambda connection: _begin_sqlite(connection, lock_seconds))
        else:
            # client_encoding: a database created in the C locale would otherwise return bytes for text.
            # tcp_user_timeout: by default the kernel detects an unreachable server after a quarter of an hour.
            arguments = {"connect_timeout": 5, "client_encoding": "utf8", "tcp_user_timeout": DEAD_SERVER_MS}
            self.engine = sa.create_engine(
                url, pool_size=pool_size, max_overflow=0, pool_pre_ping=pre_ping, connect_args=arguments
            )
            idle_ms = IDLE_TRANSACTION_MS if durable else IDLE_RELAY_TRANSACTION_MS
            settings: list[LiteralString] = [*PLANS, f"idle_in_transaction_session_timeout TO {idle_ms}"]
            if lock_seconds is not None:
                settings.append(f"lock_timeout TO '{lock_seconds}s'")
            event.listen(self.engine, "do_connect", lambda *parts: _connect(role, *parts[2:]))
            event.listen(self.engine, "connect", lambda connection, _: _configure_postgresql(connection, settings))
            # Never for a session: a pooler that is not recognized would give it to the API.
            local = [] if durable else ["synchronous_commit TO off"]
            # A pooler gives the server's connection, with the settings of its session, to another client's transaction.
            direct, pooled = _local(local), _local([*settings, *local])
            event.listen(self.engine, "begin", lambda connection: _begin_postgresql(connection, direct, pooled))
            event.listen(self.engine, "handle_error", _recognize_lost_connection)
        self._lock: TextIO | None = None
        # SQLite allows one writer at a time; the threads of one process are serialized by a lock.
        self._turn: AbstractContextManager[object] = threading.Lock() if self.is_sqlite else nullcontext()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that is committed at the end, notifying the relay, or rolled back by any exception.

        Raises OutcomeUnknown if it may be committed all the same; any other error means that it is not.
        """
        with self._turn, self.engine.connect() as connection, connection.begin():
            yield connection
            _commit_and_notify(connection)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A read-only transaction; on SQLite it neither waits for a writer nor blocks one."""
        with self.engine.connect().execution_options(read_only=True) as connection:
            yield connection

    def check_writable(self) -> None:
        """Raise sqlalchemy.exc.OperationalError while PostgreSQL accepts reads only, as a standby does."""
        with self.reading() as connection:
            if not self.is_sqlite and connection.execute(sa.text("show transaction_read_only")).scalar() == "on":
                # Another connection may lead to the new primary.
                connection.invalidate()
                raise sa.exc.OperationalError(
                    "show transaction_read_only", None, Exception("the database is read-only")
                )

    def listen(self) -> psycopg.Connection[Any] | None:
        """A connection outside the pool whose socket becomes readable after a commit; PostgreSQL only.

        None through a pooler, which passes no notifications on.
        """
        pooled = self.engine.raw_connection()
        connection: psycopg.Connection[Any] = pooled.driver_connection  # type: ignore[assignment]
        if not _is_direct(connection):
            pooled.close()
            return None
        pooled.detach()
        try:
            connection.execute(f"LISTEN {CHANNEL}")
        except psycopg.Error:
            connection.close()
            raise
        return connection

    def acquire_relay_role(self) -> bool:
        """Acquire the relay's role, which one process may hold on SQLite; return whether this process now holds it.

        Always true on PostgreSQL, which locks rows instead. The kernel frees the lock when the process ends.
        """
        if self._lock is None and self.is_sqlite:
            path = f"{sa.make_url(self.url).database}.relay.lock"
            lock = open(path, "w", opener=_open_private)  # noqa: SIM115 - held for life
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                return False
            self._lock = lock
        return True

    def dispose(self) -> None:
        """Close all connections and release the role; the object can be used again afterwards."""
        if self._lock:
            self._lock.close()
        self._lock = None
        self.engine.dispose()


def current_time(connection: sa.Connection) -> datetime:
    """The database's time; begins a transaction if none is open.

    Times that processes compare come from here, because the clocks of their hosts may differ. PostgreSQL sends its time
    with each BEGIN; the host's monotonic clock adds what has passed since then. The result is never ahead of the
    server's clock, so what one transaction writes as due now is due for every transaction that begins after its commit.
    """
    if connection.dialect.name == "sqlite":
        return utc_now()
    if not connection.in_transaction():
        connection.begin()
    at: datetime
    at, received = connection.info[SERVER_TIME]
    return at + timedelta(seconds=time.monotonic() - received)


def _recognize_lost_connection(context: sa.engine.ExceptionContext) -> None:
    """A server that became a standby keeps its connections, and refuses writes on them until they are closed."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True


def _local(settings: Sequence[str]) -> bytes:
    """The statements that make these settings for the present transaction."""
    return "".join(f"SET LOCAL {setting}; " for setting in settings).encode()


def _begin_postgresql(connection: sa.Connection, direct: bytes, pooled: bytes) -> None:
    """Begin with these statements: on a connection to the server itself, or through a pooler."""
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    statements = direct if _is_direct(driver) else pooled
    try:
        connection.info[SERVER_TIME] = vendor.begin_with_time(driver, statements), time.monotonic()
    except psycopg.Error as error:
        if driver.closed:
            connection.invalidate(error)
        raise sa.exc.DBAPIError.instance("BEGIN", None, error, psycopg.Error) from error


def _commit_and_notify(connection: sa.Connection) -> None:
    """Commit on the driver's connection and notify the relay; SQLAlchemy's own commit then has nothing left to do.

    A lost notification is harmless, because the relay also polls.
    """
    driver: Any = connection.connection.driver_connection
    try:
        if isinstance(driver, sqlite3.Connection):
            driver.commit()
        else:
            vendor.commit_then_notify(driver, CHANNEL)
    except sqlite3.Error as error:
        # After a failed flush the transaction may be found in the file when it is opened next.
        is_unknown = error.sqlite_errorcode & 0xFF not in NOT_COMMITTED
        raise _commit_error(error, sqlite3.Error, is_unknown=is_unknown) from error
    except psycopg.Error as error:
        is_unknown = driver.closed and error.sqlstate != IDLE_TIMEOUT
        if driver.closed:
            # Otherwise the ROLLBACK that follows would fail with another error.
            connection.invalidate(error)
        raise _commit_error(error, psycopg.Error, is_unknown=is_unknown) from error


def _commit_error(error: Exception, base: type[Exception], *, is_unknown: bool) -> Exception:
    if is_unknown:
        return OutcomeUnknown("COMMIT", None, error)
    return sa.exc.DBAPIError.instance("COMMIT", None, error, base)


def _connect(role: str, arguments: Sequence[Any], parameters: dict[str, Any]) -> psycopg.Connection[Any]:
    # Here, not at creation, which may be before a fork. A name in the URL or in PGAPPNAME precedes it.
    named: dict[str, Any] = {"fallback_application_name": client_name(role)} | parameters
    # A migration may take long, and an operator can interrupt a command.
    kind = psycopg.Connection if role == "command" else vendor.ImpatientConnection
    return kind.connect(*arguments, **named)


def _configure_postgresql(connection: psycopg.Connection[Any], settings: Sequence[LiteralString]) -> None:
    # The driver's own BEGIN would be a round trip beside that of the event "begin".
    connection.autocommit = True
    # A pooler announces a process id of its own. It may pass each transaction to another server connection, which does
    # not have the prepared statements of the last one; only a direct connection has settings of its own.
    # https://www.pgbouncer.org/features.html
    if connection.execute("SELECT pg_backend_pid()").fetchone() != (connection.info.backend_pid,):
        connection.prepare_threshold = None
    else:
        connection.execute("; ".join(f"SET {setting}" for setting in (*DEAD_CLIENT, *settings)))


def _is_direct(connection: psycopg.Connection[Any]) -> bool:
    """Whether there is no pooler before the server, as `_configure_postgresql` has found out."""
    return connection.prepare_threshold is not None


def _create_private_file(path: Path) -> None:
    """Create the database for its owner only; SQLite gives the files beside it the same permissions.

    An existing file keeps its permissions, which an operator may have set.
    """
    with suppress(OSError):  # SQLite reports it at the first transaction
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Only if it is new: to close any descriptor of a file ends all locks that this process holds on it, SQLite's too.
    # https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
    # If this fails for another reason, SQLite reports it at the first transaction.
    with suppress(OSError):
        os.close(_open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))


def _open_private(path: str | Path, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _configure_sqlite(connection: Any, *, durable: bool) -> None:
    # The driver's own BEGIN is deferred, and a read that turns into a write then fails at once with
    # SQLITE_BUSY_SNAPSHOT regardless of the timeout; so it is switched off, and _begin_sqlite begins instead.
    # https://www.sqlite.org/isolation.html
    connection.isolation_level = None
    # In WAL mode NORMAL may lose the last commits in a power cut.
    synchronous = "synchronous=FULL" if durable else "synchronous=NORMAL"
    for pragma in (f"busy_timeout={SQLITE_BUSY_MS}", "journal_mode=WAL", synchronous, "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection, lock_seconds: int | None) -> None:
    if connection.get_execution_options().get("read_only", False):
        connection.exec_driver_sql("BEGIN")
        return
    # SQLite's own busy handler sleeps up to 100 ms between attempts; a write transaction here takes a few.
    connection.exec_driver_sql("PRAGMA busy_timeout=1")
    end = time.monotonic() + (SQLITE_BUSY_MS / 1000 if lock_seconds is None else lock_seconds)
    # Not by SQLAlchemy, whose error refers to the cursor until garbage is collected: that keeps the statement, and so
    # the files of a connection that has been closed.
    driver: Any = connection.connection.driver_connection
    try:
        while True:
            try:
                with closing(driver.cursor()) as cursor:
                    cursor.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if time.monotonic() > end or "locked" not in str(error):
                    raise sa.exc.DBAPIError.instance("BEGIN IMMEDIATE", None, error, sqlite3.Error) from error
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={SQLITE_BUSY_MS}")
