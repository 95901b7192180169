"""Alembic's entry point: migrate the database whose URL order_service.storage.migrate passes on."""

import sqlalchemy as sa
from alembic import context

from order_service.storage.database import Database
from order_service.storage.tables import metadata

database = Database(context.config.attributes["url"])
try:
    with database.engine.begin() as connection:
        if not database.is_sqlite:
            # Serializes concurrent deployments; on SQLite the write transaction does.
            connection.execute(sa.text("select pg_advisory_xact_lock(hashtext('order-service migrations'))"))
        # SQLite cannot alter most of a table; alembic copies the table instead.
        context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
        context.run_migrations()
finally:
    database.dispose()
