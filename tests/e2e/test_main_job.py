"""An order's way from POST to paid, through the real processes, a real broker and both databases."""

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest

from order_service.contract.topology import EXCHANGE
from tests.e2e.house import House

Eventually = Callable[..., Any]
#: `ORDER_TEST_ORDERS=1000` is the full measure.
ORDERS = int(os.environ.get("ORDER_TEST_ORDERS", "200"))


class Tap:
    """A queue of the test's own that gets every message."""

    def __init__(self, connection: pika.BlockingConnection) -> None:
        self._channel = connection.channel()
        self._queue = self._channel.queue_declare("", exclusive=True).method.queue
        self._channel.queue_bind(self._queue, EXCHANGE, "#")
        self.seen: list[tuple[str, pika.BasicProperties, dict[str, Any]]] = []

    def look(self) -> Counter[str]:
        """How many of each type have passed so far."""
        while (message := self._channel.basic_get(self._queue, auto_ack=True))[0]:
            self.seen.append((message[0].routing_key, message[1], json.loads(message[2])))
        return Counter(properties.type for _, properties, _ in self.seen)


@pytest.fixture
def tap(house: House) -> Iterator[Tap]:
    house.declare()
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(house.amqp_url))) as connection:
        yield Tap(connection)


def test_the_clients_example_goes_from_post_to_paid(house: House, tap: Tap, eventually: Eventually) -> None:
    # given: prepared and started as the README says
    for step in ("migrate", "topology"):
        done = house.command(step)
        assert (done.returncode, done.stderr) == (0, "")
    house.start_all()

    # when
    posted = house.post(headers={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})

    # then: the client's answer
    order_id = posted.body["id"]
    assert (posted.status, posted.headers["Location"]) == (201, f"/orders/{order_id}")
    assert posted.body == {
        "id": order_id,
        "user_id": 1,
        "items": [
            {"id": 1, "name": "Nasi Ayam Bakar", "price": 18000, "stock": 14},
            {"id": 2, "name": "Kwetiau Goreng", "price": 20000, "stock": 6},
        ],
        "total_price": 38000,
        "status": posted.body["status"],
        "created_at": posted.body["created_at"],
    }

    # and: paid by itself, with the stock taken once
    paid = eventually(
        lambda: (found := house.ask("GET", f"/orders/{order_id}").body)["status"] == "paid" and found,
        "the order to be paid",
    )
    assert paid == posted.body | {"status": "paid"}
    assert [house.ask("GET", f"/menus/{n}", to="menu").body["stock"] for n in (1, 2)] == [14, 6]

    # and: every message can be read in the console
    expected = {"OrderCreated": 1, "MenuReserved": 1, "PaymentRequested": 1, "PaymentCompleted": 1, "OrderPaid": 1}
    eventually(lambda: tap.look() == expected, "each of the five messages to have passed once")
    for routing_key, properties, event in tap.seen:
        about = f"{routing_key}: {properties}"
        assert properties.type == event["type"], about
        assert properties.message_id == event["id"], about
        assert properties.correlation_id == str(order_id) == str(event["data"]["order_id"]), about
        assert properties.app_id in ("order-service", "menu-service", "payment-service"), about
        assert properties.content_type == "application/cloudevents+json", about
        assert properties.delivery_mode == 2, about
        assert abs(properties.timestamp - time.time()) < 600, about
        assert properties.headers["traceparent"].split("-")[1] == "4bf92f3577b34da6a3ce929d0e0e4736", about
    assert len({properties.message_id for _, properties, _ in tap.seen}) == 5

    # and: an order that cannot be served says so at once
    unknown = house.post({"user_id": 1, "menu_ids": [9]})
    sold_out = house.post({"user_id": 1, "menu_ids": [2] * 7})
    stranger = house.post({"user_id": 99, "menu_ids": [1]})
    assert (unknown.status, unknown.body["message"]) == (404, "Menu item 9 tidak ditemukan.")
    assert (sold_out.status, sold_out.body["message"]) == (400, "Menu item 2 kehabisan stok.")
    assert (stranger.status, stranger.body["message"]) == (404, "Pengguna tidak ditemukan.")
    assert set(house.states().values()) == {"paid", "failed"}


@pytest.mark.timeout(900)
def test_orders_posted_side_by_side_are_each_reserved_and_paid_once(house: House) -> None:
    # given
    house.prepare()
    processes = house.start_all()
    menu_id = house.add_menu()
    cpu_before = {name: process.cpu_seconds() for name, process in processes.items()}
    start = time.monotonic()

    # when
    ids = house.posts(ORDERS, {"user_id": 1, "menu_ids": [menu_id, menu_id]}, threads=16)
    posted_seconds = time.monotonic() - start
    house.wait_until_paid(ids, seconds=60 + ORDERS / 10)
    paid_seconds = time.monotonic() - start

    # then
    cpu = {name: round(process.cpu_seconds() - cpu_before[name], 2) for name, process in processes.items()}
    print(
        f"{ORDERS} orders: posted at {ORDERS / posted_seconds:.0f}/s, paid at {ORDERS / paid_seconds:.0f}/s "
        f"({paid_seconds:.1f} s); CPU seconds {cpu}"
    )
    assert len(set(ids)) == ORDERS == len(house.states())
    house.require_books_in_order(menu_id, quantity=2)

    # and: nothing is left anywhere, nor held unacknowledged by those who stop now
    assert set(house.stop_all().values()) == {0}
    assert set(house.depths().values()) == {0}
    assert house.outbox_rows() == []
