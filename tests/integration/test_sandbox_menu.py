"""The sandbox's Menu Service: what it decides, its REST, and the process at a real broker."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pika
import pytest
from flask.testing import FlaskClient
from pika.adapters.blocking_connection import BlockingChannel

from sandbox.siblings.consumer import Delivery, answer
from sandbox.siblings.menu import SCHEMA, create_app, service
from sandbox.siblings.store import connect, create, transaction

Eventually = Callable[..., Any]
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Menu:
    """The service without a broker: messages in, outbox messages out."""

    def __init__(self, database: Path) -> None:
        self.service = service(database)
        self.db = connect(database)

    def tell(self, *messages: bytes) -> list[dict[str, Any]]:
        """Deliver the messages as one batch. Returns the answers, as they would go out."""
        deliveries = [Delivery(tag, pika.BasicProperties(), body) for tag, body in enumerate(messages, 1)]
        answer(self.db, self.service, deliveries)
        with transaction(self.db):
            rows = self.db.execute("DELETE FROM outbox RETURNING seq, body").fetchall()
        return [json.loads(row["body"]) for row in sorted(rows, key=lambda row: int(row["seq"]))]

    def stock(self) -> dict[int, int]:
        return {row["id"]: row["stock"] for row in self.db.execute("SELECT id, stock FROM menus")}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    create(tmp_path / "menu.db", SCHEMA)
    return tmp_path / "menu.db"


@pytest.fixture
def menu(database: Path) -> Iterator[Menu]:
    menu = Menu(database)
    with closing(menu.db):
        yield menu


@pytest.fixture
def client(database: Path) -> FlaskClient:
    return create_app(database).test_client()


def event(type: str, data: dict[str, Any]) -> bytes:
    return json.dumps({"specversion": "1.0", "id": str(uuid.uuid4()), "type": type, "data": data}).encode()


def order(order_id: int, lines: dict[int, int]) -> bytes:
    wanted = [{"menu_id": menu_id, "quantity": quantity} for menu_id, quantity in lines.items()]
    return event("OrderCreated", {"order_id": order_id, "user_id": 1, "lines": wanted, "unheard_of": []})


def release(order_id: int, reservation_id: object, release_id: object = "release-1") -> bytes:
    data = {"order_id": order_id, "release_id": release_id, "reservation_id": reservation_id}
    return event("StockReleaseRequested", data)


def types(answers: list[dict[str, Any]]) -> list[str]:
    return [each["type"] for each in answers]


def test_order_reserves_all_its_lines_and_says_what_remains(menu: Menu) -> None:
    [reserved] = menu.tell(order(5, {1: 1, 2: 1}))

    assert reserved["type"] == "MenuReserved"
    assert reserved["data"]["order_id"] == 5
    assert reserved["data"]["items"] == [
        {"id": 1, "name": "Nasi Ayam Bakar", "price": 18000, "stock": 14},
        {"id": 2, "name": "Kwetiau Goreng", "price": 20000, "stock": 6},
    ]
    assert menu.stock() == {1: 14, 2: 6}


def test_answer_is_a_cloud_event_about_the_order(menu: Menu) -> None:
    [reserved] = menu.tell(order(5, {1: 1}))

    assert {name: reserved[name] for name in ("specversion", "source", "subject", "correlationid")} == {
        "specversion": "1.0",
        "source": "/menu-service",
        "subject": "5",
        "correlationid": "5",
    }
    assert reserved["datacontenttype"] == "application/json"


@pytest.mark.parametrize(
    ("lines", "reason", "culprit"),
    [({1: 1, 2: 8}, "out_of_stock", 2), ({1: 1, 9: 1}, "menu_not_found", 9), ({2: 8, 9: 1}, "out_of_stock", 2)],
)
def test_order_that_cannot_be_had_whole_takes_nothing(
    menu: Menu, lines: dict[int, int], reason: str, culprit: int
) -> None:
    [rejected] = menu.tell(order(5, lines))

    assert rejected["type"] == "MenuRejected"
    assert rejected["data"] == {"order_id": 5, "reason": reason, "menu_id": culprit}
    assert menu.stock() == {1: 15, 2: 7}


def test_lines_of_the_same_menu_count_together(menu: Menu) -> None:
    line = {"menu_id": 2, "quantity": 4}

    [rejected] = menu.tell(event("OrderCreated", {"order_id": 1, "lines": [line, line]}))
    [reserved] = menu.tell(event("OrderCreated", {"order_id": 2, "lines": [line, line | {"quantity": 3}]}))

    assert rejected["data"]["reason"] == "out_of_stock"
    assert [(item["id"], item["stock"]) for item in reserved["data"]["items"]] == [(2, 0)]


def test_last_portion_goes_to_one_order_only(menu: Menu) -> None:
    answers = menu.tell(order(1, {2: 7}), order(2, {2: 1}))
    assert types(answers) == ["MenuReserved", "MenuRejected"]
    assert menu.stock()[2] == 0


def test_repeated_order_gets_the_same_answer_and_takes_nothing_more(menu: Menu) -> None:
    [first] = menu.tell(order(5, {1: 2}))
    [again] = menu.tell(order(5, {1: 2}))

    assert again["data"] == first["data"]
    assert again["id"] != first["id"]
    assert menu.stock()[1] == 13


def test_rejected_order_stays_rejected_when_stock_comes_back(menu: Menu) -> None:
    [reserved, first] = menu.tell(order(1, {2: 7}), order(2, {2: 1}))
    [_, again] = menu.tell(release(1, reserved["data"]["reservation_id"]), order(2, {2: 1}))
    assert again["data"] == first["data"]
    assert menu.stock()[2] == 7


def test_reservation_is_given_back_once_and_every_request_confirmed(menu: Menu) -> None:
    [reserved] = menu.tell(order(5, {1: 2, 2: 1}))
    reservation_id = reserved["data"]["reservation_id"]

    [first] = menu.tell(release(5, reservation_id, "release-1"))
    assert menu.stock() == {1: 15, 2: 7}

    again = menu.tell(release(5, reservation_id), release(5, reservation_id, 2), release(5, None, "3"))
    assert first["data"] == {"order_id": 5, "release_id": "release-1"}
    assert [each["data"]["release_id"] for each in again] == ["release-1", 2, "3"]
    assert menu.stock() == {1: 15, 2: 7}


def test_order_repeated_after_its_release_takes_nothing_and_is_not_answered(menu: Menu) -> None:
    [reserved] = menu.tell(order(5, {1: 2}))
    menu.tell(release(5, reserved["data"]["reservation_id"]))

    assert menu.tell(order(5, {1: 2})) == []
    assert menu.stock()[1] == 15


def test_release_of_everything_gives_back_what_is_held(menu: Menu) -> None:
    menu.tell(order(5, {1: 2}), order(6, {1: 1}))

    assert types(menu.tell(release(5, None))) == ["StockReleased"]
    assert menu.stock()[1] == 14


def test_release_of_everything_before_the_order_keeps_it_from_reserving(menu: Menu) -> None:
    answers = menu.tell(release(5, None), order(5, {1: 2}), release(5, None, "release-2"))

    assert [each["data"].get("release_id") for each in answers] == ["release-1", "release-2"]
    assert menu.stock()[1] == 15


@pytest.mark.parametrize("reservation_id", ["unheard-of", 7])
def test_release_of_unknown_reservation_is_confirmed_in_vain(menu: Menu, reservation_id: object) -> None:
    assert types(menu.tell(release(5, reservation_id))) == ["StockReleased"]
    assert types(menu.tell(order(5, {1: 1}))) == ["MenuReserved"]
    assert types(menu.tell(release(5, reservation_id))) == ["StockReleased"]
    assert menu.stock()[1] == 14


def test_reservation_of_another_order_is_not_given_back(menu: Menu) -> None:
    [reserved] = menu.tell(order(5, {1: 1}))
    assert types(menu.tell(release(6, reserved["data"]["reservation_id"]))) == ["StockReleased"]
    assert menu.stock()[1] == 14


@pytest.mark.parametrize(
    "unreadable",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"type": "OrderCreated"}',
        event("OrderPaid", {"order_id": 5}),
        order(5, {}),
        order(2**31, {1: 1}),
        order(5, {1: 0}),
        event("StockReleaseRequested", {"order_id": 5, "release_id": "1"}),
    ],
)
def test_unreadable_message_is_left_behind_alone(menu: Menu, unreadable: bytes) -> None:
    answers = menu.tell(order(1, {1: 1}), unreadable, order(2, {1: 1}))
    assert [each["data"]["order_id"] for each in answers] == [1, 2]
    assert menu.stock() == {1: 13, 2: 7}


def test_handler_that_fails_halfway_leaves_no_trace_of_its_message(menu: Menu) -> None:
    class Broken(Exception):
        pass

    def take_and_fail(db: sqlite3.Connection, data: dict[str, Any]) -> list[Any]:
        db.execute("UPDATE menus SET stock = 0")
        raise Broken

    handlers = {**menu.service.handlers, "StockReleaseRequested": take_and_fail}
    menu.service = replace(menu.service, handlers=handlers)

    assert types(menu.tell(order(1, {1: 1}), release(1, None), order(2, {1: 1}))) == ["MenuReserved"] * 2
    assert menu.stock() == {1: 13, 2: 7}


def test_fractional_price_stays_exact_from_rest_to_event(menu: Menu, client: FlaskClient) -> None:
    created = client.post("/menus", data=b'{"name": "Es Teh", "price": 4500.10, "stock": 3}')
    assert (created.status_code, created.json) == (201, {"id": 3, "name": "Es Teh", "price": 4500.1, "stock": 3})

    menu.tell(order(1, {3: 1}))
    [again] = menu.tell(order(1, {3: 1}))
    assert again["data"]["items"] == [{"id": 3, "name": "Es Teh", "price": 4500.1, "stock": 2}]


def test_whole_price_is_written_without_a_fraction(client: FlaskClient) -> None:
    client.post("/menus", data=b'{"name": "Es Teh", "price": 4500.00, "stock": 3}')
    assert b"4500," in client.get("/menus/3").data.replace(b"\n", b"")


def test_menus_are_listed_and_found(client: FlaskClient) -> None:
    first = {"id": 1, "name": "Nasi Ayam Bakar", "price": 18000, "stock": 15}
    second = {"id": 2, "name": "Kwetiau Goreng", "price": 20000, "stock": 7}
    assert client.get("/menus").json == [first, second]
    assert client.get("/menus/1").json == first


def test_sale_lowers_the_stock(client: FlaskClient) -> None:
    answer = client.put("/menus/1/update-stock", json={"sold_quantity": 3})
    assert (answer.status_code, answer.json) == (200, {"message": "Stok berhasil diperbarui.", "stock": 12})
    assert (client.get("/menus/1").json or {})["stock"] == 12


@pytest.mark.parametrize(
    ("quantity", "message"),
    [
        (16, "Stok tersedia tidak mencukupi."),
        (10**30, "Stok tersedia tidak mencukupi."),
        (0, "Invalid quantity."),
        (-1, "Invalid quantity."),
        ("3", "Data tidak valid: sold_quantity."),
        (True, "Data tidak valid: sold_quantity."),
        (None, "Data tidak valid: sold_quantity."),
    ],
)
def test_impossible_sale_is_400(client: FlaskClient, quantity: object, message: str) -> None:
    answer = client.put("/menus/1/update-stock", json={"sold_quantity": quantity})
    assert (answer.status_code, answer.json) == (400, {"message": message})
    assert (client.get("/menus/1").json or {})["stock"] == 15


def test_unknown_menu_is_404(client: FlaskClient) -> None:
    found, sold = client.get("/menus/9"), client.put("/menus/9/update-stock", json={"sold_quantity": 1})
    assert (found.status_code, sold.status_code) == (404, 404)
    assert found.json == sold.json == {"message": "Menu tidak ditemukan."}


@contextmanager
def running(directory: Path, amqp_url: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The service as a process, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    own = {"MENU_PORT": str(port), "SANDBOX_DIR": str(directory), "RABBITMQ_URL": amqp_url}
    with subprocess.Popen([sys.executable, "-m", "sandbox.menu"], env=os.environ | own) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def health(url: str) -> dict[str, str] | None:
    with suppress(httpx2.TransportError):
        answer: dict[str, str] = httpx2.get(f"{url}/healthz").json()
        return answer
    return None


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=5)


@pytest.fixture
def channel(amqp_url: str) -> Iterator[BlockingChannel]:
    """The Order Service's place at the broker: the exchange is there, its queue is not yet."""
    with closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        channel = connection.channel()
        channel.exchange_declare("restaurant.events", "topic", durable=True)
        channel.confirm_delivery()
        yield channel


def listen(channel: BlockingChannel) -> None:
    channel.queue_declare("listener", exclusive=True)
    for routing_key in ("menu.reserved", "menu.rejected", "menu.released"):
        channel.queue_bind("listener", "restaurant.events", routing_key)


def publish(channel: BlockingChannel, routing_key: str, body: bytes) -> None:
    """Raises when no queue takes it."""
    properties = pika.BasicProperties(delivery_mode=2, headers={"traceparent": TRACE})
    channel.basic_publish("restaurant.events", routing_key, body, properties, mandatory=True)


Heard = tuple[str, pika.BasicProperties, dict[str, Any]]


def hear(channel: BlockingChannel) -> Heard | None:
    method, properties, body = channel.basic_get("listener", auto_ack=True)
    if method is None or properties is None or body is None:
        return None
    return str(method.routing_key), properties, json.loads(body)


def test_process_answers_orders_over_the_broker(
    amqp_url: str, channel: BlockingChannel, tmp_path: Path, eventually: Eventually
) -> None:
    listen(channel)
    with running(tmp_path / "sandbox", amqp_url) as (process, url):
        well = {"status": "ok", "broker": "connected"}
        eventually(lambda: health(url) == well, "the Menu Service at the broker")

        publish(channel, "order.created", order(5, {1: 1, 2: 1}))
        routing_key, properties, reserved = eventually(lambda: hear(channel), "MenuReserved")
        publish(channel, "menu.release_requested", release(5, reserved["data"]["reservation_id"]))
        released: Heard = eventually(lambda: hear(channel), "StockReleased")

        assert routing_key == "menu.reserved"
        assert (properties.type, properties.message_id) == ("MenuReserved", reserved["id"])
        assert (properties.correlation_id, properties.app_id) == ("5", "menu-service")
        assert (properties.content_type, properties.delivery_mode) == ("application/cloudevents+json", 2)
        assert properties.headers == {"traceparent": TRACE}
        assert properties.timestamp
        assert released[0] == "menu.released"
        assert httpx2.get(f"{url}/menus/1").json()["stock"] == 15
        assert stop(process) == 0


def test_answer_waits_until_somebody_listens(
    amqp_url: str, channel: BlockingChannel, tmp_path: Path, eventually: Eventually
) -> None:
    with running(tmp_path / "sandbox", amqp_url) as (_, url):
        eventually(lambda: (health(url) or {}).get("broker") == "connected", "the Menu Service at the broker")
        publish(channel, "order.created", order(5, {1: 1}))
        outbox = connect(tmp_path / "sandbox" / "menu.db")
        with closing(outbox):
            query = "SELECT 1 FROM outbox WHERE attempts > 0"
            eventually(lambda: outbox.execute(query).fetchone(), "an answer that came back unroutable")

            listen(channel)
            eventually(lambda: hear(channel), "MenuReserved")
            query = "SELECT count(*) FROM outbox"
            eventually(lambda: outbox.execute(query).fetchone()[0] == 0, "an empty outbox")


def test_process_comes_back_after_its_queue_is_taken_away(
    amqp_url: str, channel: BlockingChannel, tmp_path: Path, eventually: Eventually
) -> None:
    listen(channel)
    with running(tmp_path / "sandbox", amqp_url) as (_, url):
        eventually(lambda: (health(url) or {}).get("broker") == "connected", "the Menu Service at the broker")
        publish(channel, "order.created", order(1, {1: 1}))
        eventually(lambda: hear(channel), "the first answer")

        channel.queue_delete("menu-service.orders")
        eventually(lambda: routed(channel, order(2, {1: 1})), "the queue to be declared again")
        eventually(lambda: hear(channel), "the second answer")


def routed(channel: BlockingChannel, body: bytes) -> bool:
    try:
        publish(channel, "order.created", body)
    except pika.exceptions.UnroutableError:
        return False
    return True


def test_thousand_orders_are_answered_once_each(
    amqp_url: str, channel: BlockingChannel, tmp_path: Path, eventually: Eventually
) -> None:
    listen(channel)
    orders = range(1, 1001)
    with running(tmp_path / "sandbox", amqp_url) as (_, url):
        eventually(lambda: (health(url) or {}).get("broker") == "connected", "the Menu Service at the broker")
        created = httpx2.post(f"{url}/menus", json={"name": "Es Teh", "price": 5000, "stock": 600}).json()
        for order_id in orders:
            publish(channel, "order.created", order(order_id, {created["id"]: 1}))

        answers: list[str] = []

        def take() -> bool:
            while heard := hear(channel):
                answers.append(heard[2]["type"])
            return len(answers) >= len(orders)

        eventually(take, "a thousand answers")
        assert sorted(answers) == ["MenuRejected"] * 400 + ["MenuReserved"] * 600
        assert httpx2.get(f"{url}/menus/{created['id']}").json()["stock"] == 0


def test_http_answers_and_sigterm_is_obeyed_without_a_broker(tmp_path: Path, eventually: Eventually) -> None:
    with running(tmp_path / "sandbox", "amqp://guest:guest@127.0.0.1:1/") as (process, url):
        eventually(lambda: health(url) == {"status": "ok", "broker": "absent"}, "the Menu Service to answer")
        assert httpx2.get(f"{url}/menus/1").json()["stock"] == 15
        assert stop(process) == 0
