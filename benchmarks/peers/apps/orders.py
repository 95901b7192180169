"""The SQL of all peers, which asyncpg and psycopg's raw cursor both prepare as it is, and the body of a POST."""

from typing import Any

from pydantic import BaseModel, Field

#: The only statement of its transaction.
PLACE = "INSERT INTO orders (user_id, menu_ids) VALUES ($1, $2) RETURNING id"
#: Inserts nothing if the message was applied before.
REMEMBER = "INSERT INTO inbox (message_id) VALUES ($1) ON CONFLICT DO NOTHING"
#: Changes nothing unless the order waits for the menu.
RESERVE = """
UPDATE orders SET state = 'awaiting_payment', items = $2, total_price = $3 WHERE id = $1 AND state = 'awaiting_menu'
"""
#: Changes nothing unless the order waits for a payment of this amount.
PAY = """
UPDATE orders SET state = 'paid', payment_id = $2, paid_at = clock_timestamp()
WHERE id = $1 AND state = 'awaiting_payment' AND total_price = $3
"""


class PlaceOrder(BaseModel):
    user_id: int = Field(ge=1)
    menu_ids: list[int] = Field(min_length=1, max_length=100)


def price_of(items: list[dict[str, Any]]) -> int:
    """In rupiah: the stub of the Menu Service sends whole numbers."""
    return sum(item["price"] for item in items)
