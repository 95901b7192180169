"""PostgreSQL databases for tests that each want one of their own: used again, as making one takes 0.1 s and more."""

import contextlib
from typing import LiteralString

import psycopg
from psycopg import sql

from sandbox.servers.postgres import fresh_database

#: Tables and indexes with their columns: what a test must leave as it found it for its database to be used again.
SHAPE: LiteralString = """
    SELECT attrelid::regclass::text, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped ORDER BY 1, 2
"""
END_OTHERS: LiteralString = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
TABLES: LiteralString = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"


class Databases:
    """One worker's migrated database, used again and again; a new copy of the template when a test has changed it."""

    def __init__(self, server_url: str, template: str) -> None:
        self._server_url, self._template = server_url, template
        self._stack = contextlib.ExitStack()
        self._url = ""
        self._shape: list[tuple[str, str]] = []

    def empty(self) -> str:
        """The URL of a migrated database without rows, without clients, its sequences at the start."""
        if not (self._url and self._swept()):
            self.close()
            copy = fresh_database(self._server_url, "order_test", template=self._template)
            self._url = self._stack.enter_context(copy)
            with psycopg.connect(self._url) as connection:
                self._shape = connection.execute(SHAPE).fetchall()
        return self._url

    def close(self) -> None:
        """Drop it."""
        self._stack.close()
        self._url = ""

    def _swept(self) -> bool:
        """Whether the database could be emptied, and is otherwise as it was."""
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                connection.execute(END_OTHERS)
                if connection.execute(SHAPE).fetchall() != self._shape:
                    return False
                tables = [sql.Identifier(name) for (name,) in connection.execute(TABLES)]
                connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(sql.SQL(", ").join(tables)))
        except psycopg.Error:
            return False
        return True
