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
    """The database is reachable, but its schema is not the one this code was written for."""


def upgrade(url: str) -> None:
    """Bring the schema to the newest migration; may be repeated, also by several processes at once."""
    command.upgrade(_alembic(url), "head")


def downgrade(url: str) -> None:
    """Revert every migration, which drops all tables."""
    command.downgrade(_alembic(url), "base")


def check_migrated(database: Database) -> None:
    """Raise NotMigrated unless the schema is the one this code was written for."""
    head = ScriptDirectory.from_config(_alembic("")).get_current_head()
    with database.reading() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found != head:
        raise NotMigrated(f"the database is at migration {found or 'none'}, this program needs {head}")


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
