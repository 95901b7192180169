"""An order from POST to paid, through the real processes, a real broker and both databases."""

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pika
import pytest

from order_service.contract.topology import EXCHANGES
from tests.e2e.client import order_of
from tests.e2e.deployment import MOSTLY_ON_POSTGRESQL, MOSTLY_ON_SQLITE, Deployment
from tests.e2e.process import PROCFILE

#: ORDER_TEST_ORDERS=1000 tests a larger load.
ORDERS = int(os.environ.get("ORDER_TEST_ORDERS", "200"))
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


class WireTap:
    """A queue that receives a copy of every message."""

    def __init__(self, connection: pika.BlockingConnection) -> None:
        self._channel = connection.channel()
        self._queue = self._channel.queue_declare("", exclusive=True).method.queue
        for exchange in EXCHANGES:
            self._channel.queue_bind(self._queue, exchange, "#")
        #: Routing key, properties and body.
        self.messages: list[tuple[str, Any, Any]] = []

    def count_by_type(self) -> Counter[str]:
        """Receive what has arrived, and count all messages so far."""
        while (message := self._channel.basic_get(self._queue, auto_ack=True))[0]:
            self.messages.append((str(message[0].routing_key), message[1], json.loads(message[2])))
        return Counter(properties.type for _, properties, _ in self.messages)


@pytest.fixture
def wire_tap(deployment: Deployment) -> Iterator[WireTap]:
    deployment.declare_topology()
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(deployment.amqp_url))) as connection:
        yield WireTap(connection)


@MOSTLY_ON_POSTGRESQL
def test_order_of_the_example_is_placed_reserved_and_paid(deployment: Deployment, wire_tap: WireTap) -> None:
    # given: prepared and started with the commands of the README
    for step in ("migrate", "topology"):
        done = deployment.command(step)
        assert (done.returncode, done.stderr) == (0, "")
    deployment.start(*PROCFILE)
    deployment.wait_until_healthy()
    client = deployment.client

    # when
    posted = client.post_order(headers={"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"})

    # then: the response has the agreed fields
    order_id = posted.body["id"]
    assert (posted.status, posted.headers["Location"]) == (201, f"orders/{order_id}")
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

    # and: the order becomes paid, and the stock is taken once
    deployment.wait_until_paid([order_id])
    assert client.request("GET", f"/orders/{order_id}").body == posted.body | {"status": "paid"}
    assert [client.request("GET", f"/menus/{n}", to="menu").body["stock"] for n in (1, 2)] == [14, 6]

    # and: each message is sent once, with the properties that an operator reads in the console
    expected = {"OrderCreated": 1, "MenuReserved": 1, "PaymentRequested": 1, "PaymentCompleted": 1, "OrderPaid": 1}
    deployment.wait_until(lambda: wire_tap.count_by_type() == expected, "one of each of the five messages")
    for routing_key, properties, event in wire_tap.messages:
        about = f"{routing_key}: {properties}"
        assert properties.type == event["type"], about
        assert properties.message_id == event["id"], about
        assert properties.correlation_id == str(order_id) == str(event["data"]["order_id"]), about
        assert properties.app_id in ("order-service", "menu-service", "payment-service"), about
        assert properties.content_type == "application/cloudevents+json", about
        assert properties.delivery_mode == 2, about
        assert abs(properties.timestamp - time.time()) < 600, about
        assert properties.headers["traceparent"].split("-")[1] == TRACE_ID, about
    assert len({properties.message_id for _, properties, _ in wire_tap.messages}) == 5

    # and: orders that cannot be served are rejected in the response
    unknown_item = client.post_order(order_of(9))
    sold_out = client.post_order(order_of(*[2] * 7))
    unknown_user = client.post_order({"user_id": 99, "menu_ids": [1]})
    assert (unknown_item.status, unknown_item.body["message"]) == (404, "Menu item 9 tidak ditemukan.")
    assert (sold_out.status, sold_out.body["message"]) == (400, "Menu item 2 kehabisan stok.")
    assert (unknown_user.status, unknown_user.body["message"]) == (404, "Pengguna tidak ditemukan.")
    assert set(deployment.records.order_states().values()) == {"paid", "failed"}


@pytest.mark.timeout(900)
@MOSTLY_ON_SQLITE
def test_orders_posted_concurrently_are_each_reserved_and_paid_once(deployment: Deployment) -> None:
    # given
    deployment.start_all()
    menu_id = deployment.client.add_menu()

    # when
    ids = deployment.client.post_orders(ORDERS, order_of(menu_id, menu_id))
    deployment.wait_until_paid(ids, seconds=60 + ORDERS / 10)

    # then
    assert len(set(ids)) == ORDERS == len(deployment.records.order_states())
    deployment.records.assert_reserved_and_paid_once(menu_id)
    deployment.assert_stops_with_empty_queues()
    assert deployment.records.outbox_types() == []
