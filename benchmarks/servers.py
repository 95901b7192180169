"""The broker and the database server that all runs share, and the harness's own access to a system's database."""

import contextlib
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from sandbox.servers import broker, postgres

SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Servers:
    """The servers, the directory for logs and results, and the port of the APIs, of which one runs at a time."""

    broker: broker.Broker
    postgres: postgres.Server
    out: Path
    port: int

    @contextlib.contextmanager
    def fresh_database(self, kind: str) -> Iterator[str]:
        """The URL of an empty database, which is deleted at the end of the block."""
        if kind == "postgresql":
            with postgres.fresh_database(self.postgres.url, "bench") as url:
                yield url
        else:
            with tempfile.TemporaryDirectory(dir=self.out, prefix="sqlite-") as directory:
                yield f"{SQLITE}/{directory}/orders.db"


@contextlib.contextmanager
def running(out: Path) -> Iterator[Servers]:
    """Find or start the servers. Raises sandbox.servers.sources.Unavailable if that is not possible."""
    with broker.running(out / "broker") as found, postgres.running(out / "postgres", fsync=True) as server:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        yield Servers(found, server, out, port)


def connect(url: str) -> Any:
    """A connection of sqlite3 or psycopg on which each statement is its own transaction."""
    if url.startswith(SQLITE):
        return sqlite3.connect(url.removeprefix(SQLITE), timeout=30, isolation_level=None)
    return psycopg.connect(url, autocommit=True)


def settle(url: str) -> None:
    """Bring PostgreSQL into a defined state before a measure: statistics up to date, all changes written to disk."""
    if not url.startswith(SQLITE):
        with connect(url) as connection:
            connection.execute("analyze")
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                connection.execute("checkpoint")
