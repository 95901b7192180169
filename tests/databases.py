"""A PostgreSQL database that tests use one after the other, because creating one takes 0.1 s and more."""

import contextlib
from typing import LiteralString

import psycopg
from psycopg import sql

from sandbox.servers.postgres import fresh_database

#: Tables and indexes with their columns: a test that changes them leaves a database that cannot be reused.
SCHEMA: LiteralString = """
    SELECT attrelid::regclass::text, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped ORDER BY 1, 2
"""
END_OTHER_SESSIONS: LiteralString = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
TABLES: LiteralString = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"


class ReusableDatabase:
    """One worker's migrated database; a new copy of the template replaces one whose schema a test has changed."""

    def __init__(self, server_url: str, template: str) -> None:
        self._server_url, self._template = server_url, template
        self._stack = contextlib.ExitStack()
        self._url = ""
        self._schema: list[tuple[str, str]] = []

    def empty(self) -> str:
        """End all sessions, remove all rows, restart the sequences; return the URL."""
        if not (self._url and self._empty_tables()):
            self.close()
            copy = fresh_database(self._server_url, "order_test", template=self._template)
            self._url = self._stack.enter_context(copy)
            with psycopg.connect(self._url) as connection:
                self._schema = connection.execute(SCHEMA).fetchall()
        return self._url

    def close(self) -> None:
        """Drop the database."""
        self._stack.close()
        self._url = ""

    def _empty_tables(self) -> bool:
        """Return whether the database can be reused: it could be emptied and has its original schema."""
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                connection.execute(END_OTHER_SESSIONS)
                if connection.execute(SCHEMA).fetchall() != self._schema:
                    return False
                tables = [sql.Identifier(name) for (name,) in connection.execute(TABLES)]
                connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(sql.SQL(", ").join(tables)))
        except psycopg.Error:
            return False
        return True
