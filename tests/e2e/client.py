"""The HTTP client of the end-to-end tests."""

import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.polling import wait_until

T = TypeVar("T")

#: `Prefer` headers of POST /orders that do not wait for the menu.
RESPOND_ASYNC = {"Prefer": "respond-async"}


def order_of(*menu_ids: int) -> dict[str, Any]:
    """Return the body of a POST /orders."""
    return {"user_id": 1, "menu_ids": list(menu_ids)}


EXAMPLE = order_of(1, 2)


@dataclass(frozen=True)
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: Any


@contextlib.contextmanager
def repeating(action: Callable[[], T], *, threads: int) -> Iterator[list[T]]:
    """Repeat an action in threads during the block; the list collects the results and is complete after the block."""
    done, results = threading.Event(), list[T]()

    def repeat() -> None:
        while not done.is_set():
            results.append(action())

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(repeat) for _ in range(threads)]
        try:
            yield results
        finally:
            done.set()
    for each in running:
        each.result()


class Client:
    """Requests to processes by name, over one kept-alive connection per thread and process."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = ports
        self._idle: dict[tuple[int, str], http.client.HTTPConnection] = {}

    def close(self) -> None:
        for connection in self._idle.values():
            connection.close()

    def connect(self, name: str = "api") -> http.client.HTTPConnection:
        """Return a connection that the caller closes."""
        return http.client.HTTPConnection("127.0.0.1", self._ports[name], timeout=40)

    def request(
        self, method: str, path: str, body: Any = None, *, to: str = "api", headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send one request. Raises OSError or HTTPException when there is no response."""
        key = threading.get_ident(), to
        connection = self._idle.pop(key, None) or self.connect(to)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            response = Response(answer.status, answer.headers, json.loads(answer.read()))
        except BaseException:
            connection.close()
            raise
        self._idle[key] = connection
        return response

    def is_healthy(self, name: str = "api") -> bool:
        """Tell whether the process answers, and has a broker connection where it reports that."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            response = self.request("GET", "/healthz", to=name)
            return response.status == 200 and response.body.get("broker") != "absent"
        return False

    def post_order(self, body: Any = EXAMPLE, headers: Mapping[str, str] | None = None) -> Response:
        return self.request("POST", "/orders", body, headers=headers)

    def post_order_until_accepted(self, body: Any = EXAMPLE) -> int:
        """Return the id of the first accepted order. An attempt without a response may have placed an order too."""

        def accepted() -> int | None:
            try:
                response = self.post_order(body)
            except (OSError, http.client.HTTPException):
                return None
            assert response.status in (201, 202, 503), response
            order_id: int | None = response.body.get("id")
            return order_id

        return wait_until(accepted, "POST /orders to be accepted", seconds=30)

    def post_orders(self, count: int, body: Any = EXAMPLE, *, threads: int = 16) -> list[int]:
        """Post orders concurrently, each until it is accepted; return their ids."""
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.post_order_until_accepted, [body] * count))

    def add_menu(self, *, price: float = 1250.5, stock: int = 1_000_000) -> int:
        """Add a menu item; return its id."""
        item = {"name": "Es Teh", "price": price, "stock": stock}
        menu_id: int = self.request("POST", "/menus", item, to="menu").body["id"]
        return menu_id
