"""The consumer for a Menu Service that only speaks HTTP: its queue, outages of the menu, and dead letters."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from consumers.menu_http.client import Menus
from consumers.menu_http.consumer import PREFETCH, MenuHttpConsumer
from order_service.backoff import Backoff
from order_service.contract import topology
from order_service.contract.envelope import KEPT_BODY_BYTES, MAX_BODY_BYTES
from order_service.contract.topology import MENU_HTTP
from order_service.process import utc_now
from order_service.storage.database import Database
from order_service.storage.tables import outbox
from tests.integration import core
from tests.integration.core import Eventually, Log, Wire
from tests.integration.old_menu import OldMenu

Make = Callable[[threading.Event], MenuHttpConsumer]


@pytest.fixture
def wire(amqp_url: str) -> Wire:
    wire = Wire(amqp_url)
    with wire.channel() as channel:
        topology.declare(channel, (*topology.QUEUES, MENU_HTTP))
    return wire


@pytest.fixture
def consumer(amqp_url: str, database: Database, menu: OldMenu) -> Make:
    return lambda stop: MenuHttpConsumer(core.settings(amqp_url, database.url), database, Menus(menu.url), stop)


def publish(wire: Wire, database: Database) -> None:
    """Publish as the relay does, but keep the events, so that they can be published again."""
    for row in core.rows(database, outbox, outbox.c.routing_key.in_(MENU_HTTP.routing_keys)):
        wire.send_raw(row.routing_key, row.body, type=row.type, message_id=row.message_id, delivery_mode=2)


def test_repeated_orders_are_answered_once(
    consumer: Make, wire: Wire, database: Database, menu: OldMenu, management: Any, eventually: Eventually
) -> None:
    ids = core.place(database, 3, now=utc_now())

    with core.running(consumer):
        publish(wire, database)
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "all orders to be priced")
        management.close_connections()
        publish(wire, database)
        eventually(lambda: wire.depth(MENU_HTTP) == 0, "the repeats to be delivered")

    assert sorted(menu.puts) == [(1, 1)] * 3 + [(2, 1)] * 3
    assert management.depth(MENU_HTTP.dead_letters) == 0


def test_message_waits_while_the_menu_is_unreachable(
    consumer: Make, wire: Wire, database: Database, menu: OldMenu, eventually: Eventually
) -> None:
    ids = core.place(database, now=utc_now())
    menu.stop()
    try:
        with core.running(consumer):
            publish(wire, database)
            eventually(lambda: wire.depth(MENU_HTTP) == 0, "the message to be delivered")
        assert wire.depth(MENU_HTTP) == 1, "the message was acked"
        assert core.states(database, ids) == {"awaiting_menu"}
    finally:
        menu.start()

    with core.running(consumer):
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "the order to be priced")
    assert menu.stock == {1: 14, 2: 6}


def test_outage_of_the_menu_is_logged_again_and_again_and_so_is_its_end(
    consumer: Make, wire: Wire, database: Database, menu: OldMenu, eventually: Eventually, log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("order_service.process.REPORTS", Backoff(first=0.05, longest=0.2))
    ids = core.place(database, now=utc_now())
    menu.stop()

    with core.running(consumer):
        publish(wire, database)
        eventually(lambda: log.count("the Menu Service is unreachable, retrying") >= 3, "the third line")
        assert log.count("the Menu Service is reachable again") == 0
        menu.start()
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "the order to be priced")
        eventually(lambda: log.count("the Menu Service is reachable again") == 1, "the end to be logged")


@pytest.mark.parametrize(
    ("fault", "count"), [("unavailable", 1), ("unavailable", 2 * PREFETCH), ("hanging", PREFETCH + 1)]
)
def test_dish_for_which_the_menu_is_unreachable_delays_no_other_order(
    fault: str, count: int, consumer: Make, wire: Wire, database: Database, menu: OldMenu, eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("consumers.menu_http.client.TOTAL_SECONDS", 0.3)
    monkeypatch.setattr("consumers.menu_http.consumer.RECONNECT", Backoff(first=0.1, longest=0.2))
    menu.faults[3] = fault
    waiting = core.place(database, count, now=utc_now(), menu_ids=(3,))
    others = core.place(database, 3, now=utc_now())

    with core.running(consumer):
        publish(wire, database)
        eventually(lambda: core.states(database, others) == {"awaiting_payment"}, "the others to be priced", seconds=30)

    assert core.states(database, waiting) == {"awaiting_menu"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid"),
        (b'{"type": "OrderCreated", "data": {"order_id": 99}}', "unknown_order"),
        (b'{"type": "OrderCreated", "data": {"order_id": "1"}}', "invalid"),
        (b'{"type": "OrderPaid", "data": {"order_id": 1}}', "invalid"),
        (b'{"type": "StockReleaseRequested", "data": {"order_id": 1, "release_id": "not requested"}}', "invalid"),
        (b'{"type": "OrderCreated", "data": {"order_id": 99}}'.ljust(MAX_BODY_BYTES + 1), "oversized"),
    ],
    ids=lambda value: value[:70] if isinstance(value, bytes) else value,
)
def test_message_that_can_never_be_processed_is_dead_lettered(
    consumer: Make, wire: Wire, database: Database, eventually: Eventually, body: bytes, code: str
) -> None:
    core.place_sent(database, now=utc_now())

    with core.running(consumer):
        wire.send_raw("order.created", body)
        dead = outbox.c.routing_key == MENU_HTTP.dead_letters
        [letter] = eventually(lambda: core.rows(database, outbox, dead), "the dead letter")

    assert f'"x-error": "{code}"' in letter.properties
    assert letter.body == (body[:KEPT_BODY_BYTES] if code == "oversized" else body)


def test_consumer_refuses_to_start_without_its_queue(consumer: Make, amqp_url: str, eventually: Eventually) -> None:
    Wire(amqp_url).declare()

    refused = eventually(core.started(consumer).ended, "the consumer to end")

    assert isinstance(refused, SystemExit)
    assert refused.code == 2


def test_topology_declares_the_queue_only_with_a_menu_service_url(amqp_url: str, management: Any) -> None:
    def declare(**more: str) -> str:
        env = os.environ | {"RABBITMQ_URL": amqp_url} | more
        command = [sys.executable, "-m", "order_service", "topology"]
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    assert MENU_HTTP.name not in declare()
    assert MENU_HTTP.name not in management.queues()

    assert MENU_HTTP.name in declare(MENU_SERVICE_URL="http://localhost:5002")
    queues = management.queues()
    assert queues[MENU_HTTP.name]["type"] == queues[MENU_HTTP.dead_letters]["type"] == "quorum"
    bound = {key for _, key, queue in management.bindings() if queue == MENU_HTTP.name}
    # Its own name is the key of replayed dead letters.
    assert bound == {"order.created", "menu.release_requested", MENU_HTTP.name}
