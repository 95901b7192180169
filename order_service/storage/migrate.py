"""Schema migrations: bring a database up to date, and recognize one that is not."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from order_service.process import Stop, refuse, supervise
from order_service.storage.database import Database

MIGRATIONS = Path(__file__).parent.parent.parent / "migrations"


class NotMigrated(Exception):
    """The database is reachable, but its schema is older than this code."""


def upgrade(url: str) -> None:
    """Bring the schema to the newest migration; may be repeated, also by several processes at once.

    A schema that is newer than this code stays as it is, so that a rollback of the code can be deployed.
    """
    database = Database(url)
    is_newer = _revision(database) > _head()
    database.dispose()
    if not is_newer:
        command.upgrade(_alembic(url), "head")


def downgrade(url: str) -> None:
    """Revert every migration, which drops all tables."""
    command.downgrade(_alembic(url), "base")


def check_migrated(database: Database) -> None:
    """Raise NotMigrated if the schema is older than this code. A newer one is fine: migrations only add."""
    found, head = _revision(database), _head()
    if found < head:
        raise NotMigrated(f"the database is at migration {found or 'none'}, this program needs {head}")


def _revision(database: Database) -> str:
    """The database's migration, or an empty text. Revisions begin with four digits, so that they sort."""
    with database.reading() as connection:
        return MigrationContext.configure(connection).get_current_revision() or ""


def _head() -> str:
    return str(ScriptDirectory.from_config(_alembic("")).get_current_head())


def wait_for_database(database: Database, stop: Stop) -> None:
    """Return once the database is reachable and migrated, or `stop` is set. Exits with 2 if it is not migrated."""

    def check(_: object) -> None:
        try:
            check_migrated(database)
        except NotMigrated as error:
            refuse(f"{error}: run `python -m order_service migrate` first")

    supervise(check, stop, what="the database", unreachable=(sa.exc.SQLAlchemyError,))


def _alembic(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    return config
