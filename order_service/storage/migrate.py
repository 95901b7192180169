"""Bring the schema of a database up to date."""

from alembic import command
from alembic.config import Config

from order_service.storage.database import Database
from order_service.storage.schema import MIGRATIONS, head, revision, usable


def upgrade(url: str) -> None:
    """Bring the schema to the newest migration; may be repeated, also by several processes at once.

    A schema that is newer than this code stays as it is, so that a rollback of the code can be deployed. Raises
    AccessRefused, or exits with 2, as `usable`.
    """
    with usable(url):
        with Database(url) as database:
            is_newer = revision(database) > head()
        if not is_newer:
            config = Config(attributes={"url": url})
            config.set_main_option("script_location", str(MIGRATIONS))
            command.upgrade(config, "head")
