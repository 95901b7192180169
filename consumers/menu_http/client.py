"""A client of a Menu Service that only speaks HTTP: reads dishes and takes their stock."""

from pydantic import ValidationError

from order_service.contract.events import MAX_ID, ReservedItem
from order_service.domain.messages import Item
from order_service.http_client import HttpClient, RequestFailed

#: The time limit of one request, in seconds.
TOTAL_SECONDS = 5.0
#: The statuses that a proxy returns for a service that is down.
DOWN = (502, 503, 504)


class MenuServiceDown(Exception):
    """The Menu Service is unreachable. It changed nothing."""


class NoUsableAnswer(Exception):
    """There was no response, or not one that the contract allows. Whether the request was executed is unknown."""


class Refused(Exception):
    """The Menu Service refused the dish for one of the contract's reasons. It took no stock."""

    def __init__(self, reason: str, menu_id: int) -> None:
        super().__init__(f"{reason}: menu item {menu_id}")
        self.reason, self.menu_id = reason, menu_id


def stock_of(item: Item) -> int:
    """The stock of a dish that `Menus.read` returned: it is always counted."""
    return item.stock or 0


class Menus:
    """Sends `GET {url}/menus/{id}` and `PUT {url}/menus/{id}/update-stock`."""

    def __init__(self, url: str) -> None:
        # A new connection for each request: the server may have closed an idle one, and a PUT that fails on it may
        # or may not have been carried out.
        self._client = HttpClient(url, total_seconds=TOTAL_SECONDS, reuses_connections=False)

    def read(self, menu_id: int) -> Item:
        """Return the dish with its stock. Raises Refused if there is none, MenuServiceDown or NoUsableAnswer."""
        try:
            answer = self._client.request("GET", f"/menus/{menu_id}")
        except RequestFailed as error:
            raise MenuServiceDown(str(error)) from error
        if answer.status in DOWN:
            raise MenuServiceDown(f"status {answer.status}")
        if answer.status == 404:
            raise Refused("menu_not_found", menu_id)
        dish = answer.json()
        if answer.status != 200 or not isinstance(dish, dict):
            raise NoUsableAnswer(f"GET /menus/{menu_id} was answered {answer.status}, {str(dish)[:100]}")
        try:
            item = ReservedItem.model_validate(dish | {"id": menu_id})
        except ValidationError as error:
            fields = ", ".join(str(part["loc"][0]) for part in error.errors())
            raise NoUsableAnswer(f"GET /menus/{menu_id} was answered with unusable {fields}") from None
        if item.stock is None:
            raise NoUsableAnswer(f"GET /menus/{menu_id} was answered without a stock")
        return Item(item.id, item.name, item.price, item.stock)

    def take(self, menu_id: int, quantity: int) -> int | None:
        """Take stock; the request is never repeated. Returns the remaining stock, if the answer has it.

        Raises Refused, MenuServiceDown (the request was not sent) or NoUsableAnswer (it may have been carried out).
        """
        path = f"/menus/{menu_id}/update-stock"
        try:
            answer = self._client.request("PUT", path, {"sold_quantity": quantity})
        except RequestFailed as error:
            if error.is_sent:
                raise NoUsableAnswer(f"PUT {path}: {error}") from error
            raise MenuServiceDown(str(error)) from error
        if answer.status in (400, 404, 409):
            raise Refused("menu_not_found" if answer.status == 404 else "out_of_stock", menu_id)
        if answer.status not in range(200, 300):
            raise NoUsableAnswer(f"PUT {path} was answered {answer.status}")
        body = answer.json()
        stock = body.get("stock") if isinstance(body, dict) else None
        return stock if type(stock) is int and 0 <= stock <= MAX_ID else None
