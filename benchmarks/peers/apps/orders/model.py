"""The body of a POST, and the price of what the menu reserved."""

from typing import Any

from pydantic import BaseModel, Field


class PlaceOrder(BaseModel):
    user_id: int = Field(ge=1)
    menu_ids: list[int] = Field(min_length=1, max_length=100)


def price_of(items: list[dict[str, Any]]) -> int:
    """In rupiah, which the stub of the Menu Service sends as whole numbers."""
    return sum(item["price"] for item in items)
