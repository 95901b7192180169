"""The client's original siblings, which only speak HTTP, beside the processes of the service.

The Menu Service has prices as floats; the Payment Service calls with `requests` and sends only `payment_status`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from order_service.storage import migrate
from tests.e2e.client import order_of
from tests.e2e.deployment import ON_SQLITE, Deployment
from tests.integration.old_menu import OldMenu

pytestmark = ON_SQLITE

FIELDS = ["id", "user_id", "items", "total_price", "status", "created_at"]


@pytest.fixture
def deployment(amqp_url: str, database_url: str, tmp_path: Path) -> Iterator[Deployment]:
    """The three processes of the service, and a User Service; the Menu Service is down."""
    settings = {"ORDER_WAIT_SECONDS": "5", "ORDER_MENU_REPLY_SECONDS": "2", "ORDER_MENU_REMINDERS": "30"}
    with Deployment(amqp_url, database_url, tmp_path, **settings) as deployment:
        deployment.env["MENU_SERVICE_URL"] = f"http://127.0.0.1:{deployment.ports['menu']}"
        migrate.upgrade(database_url)
        assert deployment.command("topology").returncode == 0  # with the queue of the HTTP-only menu
        deployment.start("users", "api", "consumers", "publishers")
        deployment.wait_until_healthy("users", "api")
        yield deployment


@contextmanager
def menu_serving(deployment: Deployment) -> Iterator[OldMenu]:
    menu = OldMenu()
    menu.port = deployment.ports["menu"]
    menu.dishes[3] = {"id": 3, "name": "Es Teh", "price": 4500.5, "stock": 0}
    menu.start()
    try:
        yield menu
    finally:
        menu.stop()


def pay(deployment: Deployment, order_id: int) -> int:
    """Report the payment as the Payment Service does; return the status."""
    url = f"http://127.0.0.1:{deployment.ports['api']}/orders/{order_id}/payment"
    return requests.put(url, json={"payment_status": "paid"}, timeout=5).status_code


def test_order_is_reserved_and_paid_with_the_original_services(deployment: Deployment) -> None:
    client = deployment.client
    with menu_serving(deployment) as menu:
        # given: the consumers are up, so that an order is priced while its POST waits
        deployment.wait_until(lambda: client.post_order(order_of(1)).status == 201, "an order to be priced at once")
        after = {**menu.stock, 1: menu.stock[1] - 1, 2: menu.stock[2] - 1}

        # when
        placed = client.post_order(order_of(1, 2))
        paid = pay(deployment, placed.body["id"])

        # then
        assert placed.status == 201
        assert list(placed.body) == FIELDS
        assert placed.body["items"] == [
            {"id": 1, "name": "Nasi Ayam Bakar", "price": 18000, "stock": after[1]},
            {"id": 2, "name": "Kwetiau Goreng", "price": 20000, "stock": after[2]},
        ]
        assert json.dumps(placed.body["total_price"]) == "38000"
        assert paid == 200
        assert client.request("GET", f"/orders/{placed.body['id']}").body == placed.body | {"status": "paid"}

        # and: rejected orders take no stock
        sold_out, unknown = client.post_order(order_of(1, 3)), client.post_order(order_of(9))
        assert (sold_out.status, sold_out.body["message"]) == (400, "Menu item 3 kehabisan stok.")
        assert (unknown.status, unknown.body["message"]) == (404, "Menu item 9 tidak ditemukan.")
        assert menu.stock == after


@pytest.mark.field
def test_order_placed_while_the_original_menu_is_down_is_paid_later(deployment: Deployment) -> None:
    # given
    client = deployment.client
    placed = client.post_order(order_of(1, 2, 1), headers={"Prefer": "wait=1"})
    assert placed.status == 202
    path = f"/orders/{placed.body['id']}"

    def is_reminded() -> bool:
        events = client.request("GET", f"{path}/history").body["events"]
        return "MenuReminder" in [event["type"] for event in events]

    deployment.wait_until(is_reminded, "a reminder to the menu")

    # when
    with menu_serving(deployment) as menu:
        deployment.wait_until(lambda: client.request("GET", path).body["total_price"] == 56000, "the price")
        paid = pay(deployment, placed.body["id"])

        # then
        assert paid == 200
        assert client.request("GET", path).body["status"] == "paid"
        assert menu.stock == {1: 13, 2: 6, 3: 0}
