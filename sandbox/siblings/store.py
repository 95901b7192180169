"""The SQLite file of one service: a connection per thread, transactions that never fail for being late."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Seconds a writer waits for another one's transaction, which lasts milliseconds.
BUSY_SECONDS = 10.0

OUTBOX = """
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, message_id TEXT NOT NULL, type TEXT NOT NULL,
    order_id INTEGER NOT NULL, body TEXT NOT NULL, traceparent TEXT,
    attempts INTEGER NOT NULL DEFAULT 0, due_at REAL NOT NULL DEFAULT 0
);
"""


def connect(path: Path) -> sqlite3.Connection:
    """A connection for one thread. What it commits is on the disk before anybody is told."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA synchronous = FULL")
    return db


def create(path: Path, schema: str) -> None:
    """Make the file with its tables, the outbox among them, or leave it as it is. May be repeated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(OUTBOX + schema)
    db.close()


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of the block or none of it.

    IMMEDIATE, because a transaction that reads first and then writes fails at once, whatever the timeout,
    when another one wrote in between.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
