"""How the harness itself looks into a system's database, whichever it is."""

import contextlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from sandbox.servers import postgres

Rows = list[tuple[Any, ...]]
SQLITE = "sqlite:///"


@contextlib.contextmanager
def fresh(kind: str, server: postgres.Server, out: Path) -> Iterator[str]:
    """The URL of an empty database for the length of the block. SQLite's file lies beside the results."""
    if kind == "postgresql":
        with postgres.fresh_database(server.url, "bench") as url:
            yield url
    else:
        with tempfile.TemporaryDirectory(dir=out, prefix="sqlite-") as directory:
            yield f"{SQLITE}/{directory}/orders.db"


@contextlib.contextmanager
def reader(url: str) -> Iterator[Callable[[str], Rows]]:
    """A function that runs a statement, each in a transaction of its own, and returns its rows."""
    if url.startswith(SQLITE):
        with contextlib.closing(sqlite3.connect(url.removeprefix(SQLITE), timeout=30, isolation_level=None)) as file:
            yield lambda sql: file.execute(sql).fetchall()
    else:
        with psycopg.connect(url, autocommit=True) as connection:

            def run(sql: str) -> Rows:
                cursor = connection.execute(sql)
                return cursor.fetchall() if cursor.description else []

            yield run


def settle(url: str) -> None:
    """Bring PostgreSQL to a known point before a measure: what was written is on disk, and its planner knows it."""
    if not url.startswith(SQLITE):
        with reader(url) as run:
            run("analyze")
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                run("checkpoint")
