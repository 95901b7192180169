"""Find the unconfirmed compensations among all, for monitoring."""

import sqlalchemy as sa
from alembic import op

revision = "0004_unconfirmed"
down_revision = "0003_tracestate"


def upgrade() -> None:
    unconfirmed = sa.text("confirmed_at is null")
    op.create_index(
        "ix_compensations_unconfirmed", "compensations", ["order_id"],
        postgresql_where=unconfirmed, sqlite_where=unconfirmed,
    )  # fmt: skip


def downgrade() -> None:
    op.drop_index("ix_compensations_unconfirmed", "compensations")
