"""How far an order has got at a Menu Service that only speaks HTTP."""

import sqlalchemy as sa
from alembic import op

from order_service.tables import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "menu_takings",
        sa.Column("order_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("taken", sa.Text, nullable=False),
        sa.Column("asked", sa.Integer),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("order_id", name="pk_menu_takings"),
    )


def downgrade() -> None:
    op.drop_table("menu_takings")
