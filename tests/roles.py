"""The roles of `python -m order_service database roles` on a real server, with passwords that a test sets."""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from click.testing import CliRunner
from psycopg import sql

from order_service.cli.main import main
from order_service.storage.roles import OWNER, RIGHTS

PASSWORD = "S3cret"


@dataclass
class Roles:
    """The roles of one database; roles belong to the whole server, so each test has a prefix of its own."""

    database_url: str
    prefix: str = field(default_factory=lambda: f"t{secrets.token_hex(4)}")

    @property
    def printed(self) -> str:
        done = CliRunner().invoke(main, ["database", "roles", "--prefix", self.prefix])
        assert done.exit_code == 0, done.output
        return done.output

    @property
    def names(self) -> list[str]:
        return [self.name(role) for role in (OWNER, *RIGHTS)]

    def name(self, role: str) -> str:
        return f"{self.prefix}_{role}"

    def url(self, role: str) -> str:
        return self.url_of(self.name(role))

    def url_of(self, login: str) -> str:
        parts = urlsplit(self.database_url)
        return urlunsplit(parts._replace(netloc=f"{login}:{PASSWORD}@{parts.netloc.rpartition('@')[2]}"))

    def administrate(self, statement: str, *, url: str = "") -> list[Any]:
        """Run statements as the server's superuser or as another login; return the rows of the last."""
        with psycopg.connect(url or self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def create(self, *, url: str = "") -> None:
        """Run what the command prints; may be repeated."""
        self.administrate(self.printed, url=url)

    def set_passwords(self) -> None:
        self.administrate("; ".join(f"ALTER ROLE {name} PASSWORD '{PASSWORD}'" for name in self.names))

    def drop(self, *more: str) -> None:
        for name in (*self.names, *more):
            with (
                psycopg.connect(self.database_url, autocommit=True) as connection,
                contextlib.suppress(psycopg.errors.UndefinedObject),
            ):
                connection.execute(sql.SQL("DROP OWNED BY {0} CASCADE; ").format(sql.Identifier(name)))
                connection.execute(sql.SQL("DROP ROLE {0}").format(sql.Identifier(name)))


@contextlib.contextmanager
def created(database_url: str) -> Iterator[Roles]:
    """The roles in an empty database, which the owner has migrated; dropped with all tables after the block."""
    from order_service.storage.migrate import upgrade

    roles = Roles(database_url)
    try:
        roles.create()
        roles.set_passwords()
        upgrade(roles.url(OWNER))
        roles.create()
        yield roles
    finally:
        roles.drop()
