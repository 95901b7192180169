"""A Menu Service that only speaks HTTP: what is this dish, and take some of its stock."""

import json
import time
from decimal import Decimal
from typing import Any

import httpx2 as httpx
from pydantic import ValidationError

from order_service.contract.events import ReservedItem
from order_service.domain.messages import Item

#: What one call may take, in seconds.
TOTAL_SECONDS = 5.0
#: A dish is described in less; more is not read.
MAX_ANSWER_BYTES = 64 * 1024
#: What a proxy answers for a service that is down.
DOWN = (502, 503, 504)


class MenuServiceDown(Exception):
    """The Menu Service cannot be reached just now. Nothing was changed there."""


class NoUsableAnswer(Exception):
    """It did not answer, or not what was agreed. What it did is not known."""


class Refused(Exception):
    """It says that the dish cannot be had, for one of the contract's reasons. Nothing was taken."""

    def __init__(self, reason: str, menu_id: int) -> None:
        super().__init__(f"{reason}: menu item {menu_id}")
        self.reason, self.menu_id = reason, menu_id


class Menus:
    """Asks `GET {url}/menus/{id}` and `PUT {url}/menus/{id}/update-stock`."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        # A connection of its own for each call: one kept open may have been closed by the other side meanwhile,
        # and a PUT that fails on it could have been carried out, for all we know.
        self._client = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))

    def read(self, menu_id: int) -> Item:
        """The dish with its stock. Raises Refused if there is none, MenuServiceDown, NoUsableAnswer."""
        try:
            status, answer = self._call("GET", f"/menus/{menu_id}")
        except httpx.HTTPError as error:
            raise MenuServiceDown(f"{type(error).__name__}: {error}") from error
        if status in DOWN:
            raise MenuServiceDown(f"it answered {status}")
        if status == 404:
            raise Refused("menu_not_found", menu_id)
        if status != 200 or not isinstance(answer, dict):
            raise NoUsableAnswer(f"GET /menus/{menu_id} was answered {status}, {str(answer)[:100]}")
        try:
            item = ReservedItem.model_validate(answer | {"id": menu_id})
        except ValidationError as error:
            fields = ", ".join(str(part["loc"][0]) for part in error.errors())
            raise NoUsableAnswer(f"GET /menus/{menu_id} was answered with unusable {fields}") from None
        return Item(item.id, item.name, item.price, item.stock)

    def take(self, menu_id: int, quantity: int) -> int | None:
        """Take stock: once, no attempt is repeated. Returns what remains, if it says so.

        Raises Refused, MenuServiceDown (the request did not leave) or NoUsableAnswer (it may have been carried out).
        """
        path = f"/menus/{menu_id}/update-stock"
        try:
            status, answer = self._call("PUT", path, {"sold_quantity": quantity})
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise MenuServiceDown(f"{type(error).__name__}: {error}") from error
        except httpx.HTTPError as error:
            raise NoUsableAnswer(f"PUT {path}: {type(error).__name__}: {error}") from error
        if status in (400, 404, 409):
            raise Refused("menu_not_found" if status == 404 else "out_of_stock", menu_id)
        if status not in range(200, 300):
            raise NoUsableAnswer(f"PUT {path} was answered {status}")
        stock = answer.get("stock") if isinstance(answer, dict) else None
        return stock if type(stock) is int and 0 <= stock < 2**31 else None

    def _call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """The status and the JSON, if it is any. Once the status is known, it stands, whatever becomes of the body."""
        deadline = time.monotonic() + TOTAL_SECONDS
        content = b""
        with self._client.stream(method, self._url + path, json=body, timeout=TOTAL_SECONDS) as response:
            try:
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                        break
                return response.status_code, json.loads(content, parse_float=Decimal)
            except (httpx.HTTPError, ValueError, RecursionError):
                return response.status_code, None
