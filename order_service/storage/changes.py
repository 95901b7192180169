"""Notice the commits of all processes, at a fraction of the cost of a query."""

import sqlite3
from typing import Any

import psycopg

from order_service.storage.database import Database


class Changes:
    """The commits since the last call of `any`. Connects at the first call; for one thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: psycopg.Connection[Any] | sqlite3.Connection | None = None
        self._is_pooled = False
        self._data_version: object = None

    def any(self) -> bool | None:
        """Whether a transaction may have been committed since the last call; None if a pooler hides it.

        Raises sqlalchemy.exc.SQLAlchemyError or psycopg.Error if the database is unavailable; then call `close`.
        """
        if self._connection is None and not self._is_pooled:
            return self._connect()
        if isinstance(self._connection, sqlite3.Connection):
            # Another one if another connection has committed: https://www.sqlite.org/pragma.html#pragma_data_version
            before = self._data_version
            [self._data_version] = self._connection.execute("PRAGMA data_version").fetchone()
            return self._data_version != before
        return None if self._connection is None else bool(list(self._connection.notifies(timeout=0)))

    def close(self) -> None:
        """Close the connection; `any` opens another one."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._is_pooled = None, False

    def _connect(self) -> bool:
        """Connect, and return True, because earlier commits are unknown."""
        if self._database.is_sqlite:
            pooled = self._database.engine.raw_connection()
            self._connection = pooled.driver_connection
            pooled.detach()
        else:
            self._connection = self._database.listen()
            self._is_pooled = self._connection is None
        return True
