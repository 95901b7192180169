"""The client's original User, Menu and Payment Services, HTTP only, beside ours: same bodies, nothing changed in them.

They stand in here as small Flask programs with their quirks: prices as floats, `requests` as the caller, PUT with only
payment_status. Ours run as processes, over a real broker.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.serving import make_server

from sandbox.servers import process_group as lifeline
from sandbox.servers.process_group import Command

Eventually = Callable[..., Any]
PROJECT_DIR = Path(__file__).parent.parent.parent
SIX_KEYS = ["id", "user_id", "items", "total_price", "status", "created_at"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Original:
    """One of the client's services: its program, on its port, up or down."""

    def __init__(self, app: Flask) -> None:
        self.app, self.port = app, free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    @contextmanager
    def up(self) -> Iterator[None]:
        server = make_server("127.0.0.1", self.port, self.app, threaded=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def user_service() -> Flask:
    app = Flask("users")
    users = {1: {"id": 1, "name": "Budi", "email": "budi@example.com", "payment_status": "pending"}}

    @app.get("/users/<int:id>")
    def get_user(id: int) -> ResponseReturnValue:
        return jsonify(users[id]) if id in users else (jsonify({"message": "User tidak ditemukan"}), 404)

    @app.put("/users/<int:id>/payment-status")
    def update_payment_status(id: int) -> ResponseReturnValue:
        users[id]["payment_status"] = request.get_json()["payment_status"]
        return jsonify(users[id])

    return app


def menu_service() -> Flask:
    app = Flask("menu")
    menus = {
        1: {"id": 1, "name": "Nasi Ayam Bakar", "price": 18000.0, "stock": 15},
        2: {"id": 2, "name": "Kwetiau Goreng", "price": 20000.0, "stock": 7},
        3: {"id": 3, "name": "Es Teh", "price": 4500.5, "stock": 0},
    }

    @app.get("/menus/<int:id>")
    def get_menu(id: int) -> ResponseReturnValue:
        return jsonify(menus[id]) if id in menus else (jsonify({"message": "Menu tidak ditemukan"}), 404)

    @app.put("/menus/<int:id>/update-stock")
    def update_stock(id: int) -> ResponseReturnValue:
        sold = request.get_json()["sold_quantity"]
        if id not in menus:
            return jsonify({"message": "Menu tidak ditemukan"}), 404
        if sold <= 0 or menus[id]["stock"] < sold:
            return jsonify({"message": "Stok tidak mencukupi"}), 400
        menus[id]["stock"] -= sold
        return jsonify({"message": "Stok berhasil diperbarui", "stock": menus[id]["stock"]})

    return app


def payment_service(order_url: str, user_url: str) -> Flask:
    app = Flask("payment")
    payments: list[dict[str, Any]] = []

    @app.post("/payments")
    def create_payment() -> ResponseReturnValue:
        data = request.get_json()
        payments.append({"id": len(payments) + 1, **data, "status": "paid"})
        told = requests.put(
            f"{order_url}/orders/{data['order_id']}/payment", json={"payment_status": "paid"}, timeout=5
        )
        told.raise_for_status()
        requests.put(f"{user_url}/users/{data['user_id']}/payment-status", json={"payment_status": "paid"}, timeout=5)
        return jsonify({"message": "Pembayaran berhasil", "payment_id": len(payments)}), 201

    return app


class Restaurant:
    """The addresses of everything, and the original services."""

    def __init__(self) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.users, self.menu = Original(user_service()), Original(menu_service())
        self.payment = Original(payment_service(self.url, self.users.url))

    def post(self, menu_ids: list[int], **headers: str) -> requests.Response:
        return requests.post(
            f"{self.url}/orders", json={"user_id": 1, "menu_ids": menu_ids}, headers=headers, timeout=9
        )

    def get(self, order_id: int) -> dict[str, Any]:
        body: dict[str, Any] = requests.get(f"{self.url}/orders/{order_id}", timeout=5).json()
        return body

    def pay(self, order: dict[str, Any]) -> requests.Response:
        wanted = {"order_id": order["id"], "user_id": order["user_id"], "amount": order["total_price"]}
        return requests.post(f"{self.payment.url}/payments", json=wanted, timeout=9)

    def stock(self) -> list[int]:
        return [requests.get(f"{self.menu.url}/menus/{id}", timeout=5).json()["stock"] for id in (1, 2)]

    def is_ready(self) -> bool:
        with suppress(requests.ConnectionError):
            return requests.get(f"{self.url}/readyz", timeout=5).ok
        return False


@pytest.fixture
def restaurant(amqp_url: str, tmp_path: Path, eventually: Eventually) -> Iterator[Restaurant]:
    """Our three processes, and the User and Payment Services; the Menu Service is left to the test."""
    restaurant = Restaurant()
    env = os.environ | {
        "DATABASE_URL": f"sqlite:///{tmp_path / 'orders.db'}",
        "RABBITMQ_URL": amqp_url,
        "USER_SERVICE_URL": restaurant.users.url,
        "MENU_SERVICE_URL": restaurant.menu.url,
        "PORT": restaurant.url.rpartition(":")[2],
        "ORDER_WAIT_SECONDS": "5",
        "ORDER_MENU_REPLY_SECONDS": "2",
        "ORDER_MENU_REMINDERS": "30",
    }
    for step in ("migrate", "topology"):
        subprocess.run([sys.executable, "-m", "order_service", step], cwd=PROJECT_DIR, env=env, check=True)
    with ExitStack() as stack:
        stack.enter_context(restaurant.users.up())
        stack.enter_context(restaurant.payment.up())
        for number, arguments in enumerate((["api.py"], ["-m", "consumers"], ["-m", "publishers"])):
            log = tmp_path / f"{number}.log"
            started = lifeline.serving(Command([sys.executable, *arguments], env, log, cwd=PROJECT_DIR))
            stack.enter_context(started)
        eventually(restaurant.is_ready, "the API to answer", seconds=60)
        yield restaurant


def test_order_is_placed_taken_and_paid_with_the_original_services(
    restaurant: Restaurant, eventually: Eventually
) -> None:
    with restaurant.menu.up():
        eventually(lambda: first_priced(restaurant), "an order that is priced at once", seconds=60)
        before = restaurant.stock()
        placed = restaurant.post([1, 2])

        assert placed.status_code == 201
        order = placed.json()
        assert list(order) == SIX_KEYS
        assert order["items"] == [
            {"id": 1, "name": "Nasi Ayam Bakar", "price": 18000, "stock": before[0] - 1},
            {"id": 2, "name": "Kwetiau Goreng", "price": 20000, "stock": before[1] - 1},
        ]
        assert '"total_price":38000,' in placed.text.replace(" ", "")
        assert restaurant.stock() == [before[0] - 1, before[1] - 1]

        paid = restaurant.pay(order)

        assert (paid.status_code, paid.json()) == (201, {"message": "Pembayaran berhasil", "payment_id": 1})
        assert restaurant.get(order["id"]) == order | {"status": "paid"}
        user = requests.get(f"{restaurant.users.url}/users/1", timeout=5).json()
        assert user["payment_status"] == "paid"

        out_of_stock, unknown = restaurant.post([1, 3]), restaurant.post([9])
        assert (out_of_stock.status_code, out_of_stock.json()["message"]) == (400, "Menu item 3 kehabisan stok.")
        assert (unknown.status_code, unknown.json()["message"]) == (404, "Menu item 9 tidak ditemukan.")
        assert restaurant.stock() == [before[0] - 1, before[1] - 1]


def first_priced(restaurant: Restaurant) -> bool:
    """Order one portion, until consumers and publishers are up and one is priced while the POST waits."""
    return restaurant.post([1]).status_code == 201


def test_order_placed_while_the_original_menu_is_down_is_paid_later(
    restaurant: Restaurant, eventually: Eventually
) -> None:
    placed = restaurant.post([1, 2, 1], Prefer="wait=1")
    assert placed.status_code == 202
    order_id = placed.json()["id"]

    def is_reminded() -> bool:
        events = requests.get(f"{restaurant.url}/orders/{order_id}/history", timeout=5).json()["events"]
        return "MenuReminder" in [event["type"] for event in events]

    eventually(is_reminded, "the menu to be reminded", seconds=60)
    with restaurant.menu.up():
        eventually(lambda: restaurant.get(order_id)["total_price"] == 56000, "the order to be priced")
        assert restaurant.pay(restaurant.get(order_id)).status_code == 201
        assert restaurant.get(order_id)["status"] == "paid"
        assert restaurant.stock() == [13, 6]
