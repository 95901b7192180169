"""Alembic's entry: runs the migrations of the one database whose address order_service.storage.migrate hands over."""

import sqlalchemy as sa
from alembic import context

from order_service.storage.database import Database
from order_service.storage.tables import metadata

database = Database(context.config.attributes["url"])
with database.engine.begin() as connection:
    if not database.is_sqlite:
        # Two deployments at once take turns; SQLite's write transaction does the same.
        connection.execute(sa.text("select pg_advisory_xact_lock(hashtext('order-service migrations'))"))
    # SQLite cannot alter a table: alembic copies it instead.
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    context.run_migrations()
database.dispose()
