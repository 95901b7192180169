"""The schema's version: bringing a database up to date, and refusing one that is not."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from order_service.storage.database import Database

MIGRATIONS = Path(__file__).parent.parent.parent / "migrations"


class NotMigrated(Exception):
    """The database answers, but its schema is not the one this code was written for."""


def upgrade(url: str) -> None:
    """Bring the schema to the newest migration; may be repeated, and by several at once."""
    command.upgrade(_alembic(url), "head")


def downgrade(url: str) -> None:
    """Take every migration back: all tables are gone afterwards."""
    command.downgrade(_alembic(url), "base")


def check_migrated(database: Database) -> None:
    """Raise NotMigrated unless the schema is this code's."""
    head = ScriptDirectory.from_config(_alembic("")).get_current_head()
    with database.reading() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found != head:
        raise NotMigrated(f"the database is at migration {found or 'none'}, this program needs {head}")


def _alembic(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    return config
