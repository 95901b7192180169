"""A Menu Service that only speaks HTTP: no line is ever taken twice, and nothing half taken goes unnoticed."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from consumers.menu_http import reservation as stock_room
from consumers.menu_http.client import Menus, MenuServiceDown
from consumers.menu_http.consumer import MenuHttpConsumer
from consumers.menu_http.reservation import StockReserver
from order_service import handlers
from order_service.contract import topology
from order_service.contract.envelope import Delivery
from order_service.domain.messages import Cancel
from order_service.process import utc_now
from order_service.storage.database import Database
from order_service.storage.tables import order_history, outbox
from tests.integration import core
from tests.integration.old_menu import OldMenu

Eventually = Callable[..., Any]
TAKEN = {1: 14, 2: 6}
DELIVERY = Delivery(topology.MENU_HTTP.name, "order.created", b"")


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def menu() -> Iterator[OldMenu]:
    menu = OldMenu()
    menu.start()
    yield menu
    menu.stop()


@pytest.fixture
def menus(menu: OldMenu) -> Iterator[Menus]:
    with contextlib.closing(Menus(menu.url)) as menus:
        yield menus


@pytest.fixture
def stock(database: Database, menus: Menus) -> StockReserver:
    return StockReserver(core.policy(), database, menus, threading.Event())


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is said while stock is taken."""
    with capture_logs() as lines:
        monkeypatch.setattr(stock_room, "log", stock_room.structlog.get_logger())
        yield lines


@pytest.fixture
def order_id(database: Database) -> int:
    """An order of one portion of dish 1 and one of dish 2, that waits for the menu."""
    [order_id] = core.place(database, now=utc_now())
    return order_id


def story(database: Database, order_id: int) -> tuple[str, str | None]:
    order = core.get(database, order_id)
    return order.state.value, order.reason


def releases(database: Database) -> list[tuple[str, str | None]]:
    """(id, reservation) of every release asked for and not confirmed."""
    return [(row.id, row.subject) for row in core.given_back(database) if row.confirmed_at is None]


def reports(log: list[Any]) -> list[tuple[dict[int, int], dict[int, int]]]:
    """What was reported: portions to put back, and those that perhaps have to be."""
    return [(line["portions_by_menu_id"], line["perhaps_also"]) for line in log if line["log_level"] == "error"]


def deliver_release(database: Database, stock: StockReserver, order_id: int) -> None:
    """What the consumer does with every release asked for."""
    for release_id, reservation_id in releases(database):
        stock.release(DELIVERY, order_id, release_id, reservation_id)


def pass_all_deadlines(database: Database) -> None:
    """All reminders, and then the end of waiting."""
    core.clear_outbox(database)
    for hours in range(1, 5):
        with core.unit_of_work(database, now=utc_now() + timedelta(hours=hours)) as work:
            handlers.pass_deadlines(work, limit=10)
        core.clear_outbox(database)


def test_order_is_priced_and_each_line_is_taken_once(
    stock: StockReserver, menu: OldMenu, database: Database, order_id: int
) -> None:
    stock.reserve(DELIVERY, order_id)

    order = core.get(database, order_id)
    assert (order.state.value, order.total_price) == ("awaiting_payment", 38000)
    assert [(item.name, item.price, item.stock) for item in order.items] == [
        ("Nasi Ayam Bakar", 18000, 14),
        ("Kwetiau Goreng", 20000, 6),
    ]
    assert sorted(menu.puts) == [(1, 1), (2, 1)]
    assert core.leaving(database, "PaymentRequested")[0]["data"]["amount"] == 38000


def test_repeated_portions_are_taken_together(stock: StockReserver, menu: OldMenu, database: Database) -> None:
    placement = handlers.Placement(user_id=7, menu_ids=(2, 1, 2))
    with core.unit_of_work(database, now=utc_now()) as work:
        [order] = handlers.place_orders(work, [placement])

    stock.reserve(DELIVERY, order.id)

    assert core.get(database, order.id).total_price == 58000
    assert sorted(menu.puts) == [(1, 1), (2, 2)]


def test_reminder_of_an_answered_order_takes_nothing_and_changes_nothing(
    stock: StockReserver, menu: OldMenu, database: Database, order_id: int
) -> None:
    for _ in range(3):
        stock.reserve(DELIVERY, order_id)

    assert menu.stock == TAKEN
    assert len(menu.puts) == 2
    types = [row.type for row in core.rows(database, order_history)]
    assert types == ["MenuReserved"]
    assert len(core.leaving(database, "PaymentRequested")) == 1


@pytest.mark.parametrize("there_is", [None, 0])
def test_order_that_cannot_be_had_whole_is_rejected_and_takes_nothing(
    stock: StockReserver, menu: OldMenu, database: Database, order_id: int, there_is: int | None
) -> None:
    if there_is is None:
        del menu.dishes[2]
    else:
        menu.dishes[2]["stock"] = there_is

    stock.reserve(DELIVERY, order_id)
    stock.reserve(DELIVERY, order_id)

    reason = "menu_not_found" if there_is is None else "out_of_stock"
    assert story(database, order_id) == ("failed", reason)
    assert core.get(database, order_id).rejected_menu_id == 2
    assert menu.puts == []
    assert releases(database) == []


def test_dish_sold_out_between_look_and_take_leaves_nothing_if_it_is_the_scarcest(
    stock: StockReserver, menu: OldMenu, database: Database, order_id: int
) -> None:
    menu.before_put = lambda menu_id: menu.dishes[2].update(stock=0)

    stock.reserve(DELIVERY, order_id)

    assert story(database, order_id) == ("failed", "out_of_stock")
    assert menu.puts == [(2, 1)]
    assert menu.stock[1] == 15
    assert releases(database) == []


def test_half_taken_order_is_rejected_and_its_release_reported_until_confirmed_by_hand(
    stock: StockReserver, menu: OldMenu, database: Database, order_id: int, log: list[Any]
) -> None:
    menu.before_put = lambda menu_id: menu.dishes[1].update(stock=0)

    stock.reserve(DELIVERY, order_id)
    stock.reserve(DELIVERY, order_id)

    assert story(database, order_id) == ("failed", "out_of_stock")
    assert core.get(database, order_id).rejected_menu_id == 1
    assert menu.puts == [(2, 1), (1, 1)]
    [(release_id, reservation_id)] = releases(database)
    assert reservation_id == f"menu-http-{order_id}"
    assert core.leaving(database, "StockReleaseRequested")

    deliver_release(database, stock, order_id)
    deliver_release(database, stock, order_id)
    assert reports(log) == [({2: 1}, {})] * 3
    assert f"release {release_id} stays unconfirmed" in [line["problem"] for line in log]

    assert core.apply(database, core.released(order_id, release_id)) == []
    assert releases(database) == []


@pytest.mark.parametrize("trouble", ["drop_before", "drop_after", "error_after"])
@pytest.mark.parametrize("at", [2, 1])
def test_put_of_unknown_outcome_is_not_repeated_and_the_order_expires_reported(
    stock: StockReserver, menu: OldMenu, database: Database, order_id: int, log: list[Any], trouble: str, at: int
) -> None:
    menu.trouble[at] = trouble

    stock.reserve(DELIVERY, order_id)
    menu.trouble.clear()
    stock.reserve(DELIVERY, order_id)

    assert story(database, order_id) == ("failed", "expired")
    assert menu.puts == [(2, 1), (1, 1)][: 1 if at == 2 else 2]
    [(_, reservation_id)] = releases(database)
    assert reservation_id is None
    deliver_release(database, stock, order_id)
    assert len(releases(database)) == 1
    assert reports(log) == [({}, {2: 1}) if at == 2 else ({2: 1}, {1: 1})] * 2


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("at", [2, 1])
def test_process_killed_around_a_put_never_takes_a_line_twice(
    stock: StockReserver,
    menus: Menus,
    menu: OldMenu,
    database: Database,
    order_id: int,
    log: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    carried_out: bool,
) -> None:
    take = menus.take

    def take_and_die(menu_id: int, quantity: int) -> int | None:
        if menu_id != at:
            return take(menu_id, quantity)
        if carried_out:
            take(menu_id, quantity)
        raise Killed

    monkeypatch.setattr(menus, "take", take_and_die)
    with pytest.raises(Killed):
        stock.reserve(DELIVERY, order_id)
    monkeypatch.setattr(menus, "take", take)
    before = list(menu.puts)

    stock.reserve(DELIVERY, order_id)
    assert story(database, order_id)[0] == "awaiting_menu", "the PUT may still be under way in another process"

    monkeypatch.setattr(stock_room, "IN_PROGRESS", timedelta(0))
    stock.reserve(DELIVERY, order_id)
    assert story(database, order_id) == ("failed", "expired")
    assert menu.puts == before
    deliver_release(database, stock, order_id)
    assert reports(log) == [({}, {2: 1}) if at == 2 else ({2: 1}, {1: 1})] * 2
    assert len(releases(database)) == 1


def test_put_that_cannot_have_left_is_tried_again_and_the_order_goes_on(
    stock: StockReserver, menu: OldMenu, database: Database, order_id: int, log: list[Any]
) -> None:
    # given: a menu that stops listening during the first PUT
    menu.before_put = lambda menu_id: menu.stop()
    for _ in range(2):
        with pytest.raises(MenuServiceDown):
            stock.reserve(DELIVERY, order_id)

    # when
    menu.before_put = lambda menu_id: None
    menu.start()
    stock.reserve(DELIVERY, order_id)

    # then
    assert story(database, order_id)[0] == "awaiting_payment"
    assert menu.puts == [(2, 1), (1, 1)]
    assert [item.stock for item in core.get(database, order_id).items] == [14, 6]
    assert reports(log) == []


def test_order_cancelled_between_two_puts_takes_no_more_and_is_reported(
    stock: StockReserver, menu: OldMenu, database: Database, order_id: int, log: list[Any]
) -> None:
    def cancel(menu_id: int) -> None:
        with core.unit_of_work(database, now=utc_now()) as work:
            handlers.change_order(work, order_id, Cancel())

    menu.before_put = cancel
    stock.reserve(DELIVERY, order_id)
    assert menu.puts == [(2, 1)]

    pass_all_deadlines(database)
    deliver_release(database, stock, order_id)

    assert story(database, order_id)[0] == "cancelled"
    assert [subject for _, subject in releases(database)] == [None]
    assert reports(log) == [({2: 1}, {})]


def test_order_that_expired_unanswered_is_confirmed_to_hold_nothing(
    stock: StockReserver, menu: OldMenu, database: Database, order_id: int
) -> None:
    pass_all_deadlines(database)
    assert story(database, order_id) == ("failed", "expired")

    stock.reserve(DELIVERY, order_id)
    deliver_release(database, stock, order_id)

    assert menu.puts == []
    assert len(core.given_back(database)) == 1
    assert releases(database) == []


def test_unexpected_price_fails_the_order_before_anything_is_taken(
    stock: StockReserver, menu: OldMenu, database: Database
) -> None:
    placement = handlers.Placement(user_id=7, menu_ids=(1, 2), expected_total=Decimal(37000))
    with core.unit_of_work(database, now=utc_now()) as work:
        [order] = handlers.place_orders(work, [placement])

    stock.reserve(DELIVERY, order.id)
    deliver_release(database, stock, order.id)

    assert story(database, order.id) == ("failed", "price_changed")
    assert menu.puts == []
    assert len(core.given_back(database)) == 1
    assert releases(database) == []


def test_release_of_a_whole_reservation_stays_unconfirmed_and_is_reported(
    stock: StockReserver, menu: OldMenu, database: Database, order_id: int, log: list[Any]
) -> None:
    stock.reserve(DELIVERY, order_id)
    with core.unit_of_work(database, now=utc_now()) as work:
        handlers.change_order(work, order_id, Cancel())

    deliver_release(database, stock, order_id)

    assert len(releases(database)) == 1
    assert reports(log) == [({1: 1, 2: 1}, {})]
    assert menu.stock == TAKEN


@pytest.mark.parametrize(
    "wrong", [{"price": None}, {"price": "18000"}, {"price": -1.0}, {"stock": "many"}, {"name": 5}, "broken"]
)
def test_unusable_dish_makes_its_order_wait_for_a_reminder(
    stock: StockReserver, menu: OldMenu, database: Database, order_id: int, wrong: Any
) -> None:
    right = dict(menu.dishes[1])
    if wrong == "broken":
        menu.trouble[1] = "broken"
    else:
        menu.dishes[1] |= wrong

    stock.reserve(DELIVERY, order_id)
    assert story(database, order_id)[0] == "awaiting_menu"
    assert menu.puts == []

    menu.dishes[1], menu.trouble = right, {}
    stock.reserve(DELIVERY, order_id)
    assert story(database, order_id)[0] == "awaiting_payment"


def test_database_that_fails_after_a_put_does_not_cost_the_order(
    stock: StockReserver, menu: OldMenu, database: Database, order_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, failures = database.writing, [False, True, False, False, True, True]

    @contextmanager
    def failing() -> Iterator[sa.Connection]:
        """Every other commit fails, or its answer is lost."""
        if failures and failures.pop(0):
            raise sa.exc.OperationalError("commit", {}, Exception("away"))
        with writing() as connection:
            yield connection
        if len(failures) == 2:
            raise sa.exc.OperationalError("commit", {}, Exception("its answer is lost"))

    monkeypatch.setattr(database, "writing", failing)
    stock.reserve(DELIVERY, order_id)

    assert story(database, order_id)[0] == "awaiting_payment"
    assert sorted(menu.puts) == [(1, 1), (2, 1)]


def test_several_processes_with_the_same_order_take_each_line_once(
    database: Database, menu: OldMenu, stock: StockReserver
) -> None:
    ids = core.place(database, 5, now=utc_now())
    gate = threading.Barrier(4)

    def run(order_id: int) -> None:
        gate.wait()
        stock.reserve(DELIVERY, order_id)

    with ThreadPoolExecutor(4) as pool:
        for order_id in ids:
            list(pool.map(run, [order_id] * 4))

    assert sorted(menu.puts) == [(1, 1)] * 5 + [(2, 1)] * 5
    assert core.states(database, ids) == {"awaiting_payment"}
    assert menu.stock == {1: 10, 2: 2}


@pytest.fixture
def wire(amqp_url: str) -> core.Wire:
    wire = core.Wire(amqp_url)
    with wire.channel() as channel:
        topology.declare(channel, (*topology.QUEUES, topology.MENU_HTTP))
    return wire


@pytest.fixture
def adapter(amqp_url: str, database: Database, menus: Menus) -> Callable[[threading.Event], MenuHttpConsumer]:
    return lambda stop: MenuHttpConsumer(core.settings(amqp_url, database.url), database, menus, stop)


def publish(wire: core.Wire, database: Database) -> None:
    """What the relay does, but leaving the events where they are: they can be published again."""
    for row in core.rows(database, outbox, outbox.c.exchange != ""):
        if row.routing_key in topology.MENU_HTTP.routing_keys:
            wire.send_raw(row.routing_key, row.body, type=row.type, message_id=row.message_id, delivery_mode=2)


def test_orders_over_the_broker_are_answered_once_however_often_they_come(
    adapter: Any, wire: core.Wire, database: Database, menu: OldMenu, management: Any, eventually: Eventually
) -> None:
    ids = core.place(database, 3, now=utc_now())

    with core.running(adapter):
        publish(wire, database)
        eventually(lambda: core.states(database, ids) == {"awaiting_payment"}, "all orders to be priced")
        management.close_connections()
        publish(wire, database)
        eventually(lambda: management.depth("order-service.menu-http") == 0, "the repeats to be worked off")

    assert sorted(menu.puts) == [(1, 1)] * 3 + [(2, 1)] * 3
    assert management.depth("order-service.menu-http.dlq") == 0


def test_message_waits_while_the_menu_is_away(
    adapter: Any, wire: core.Wire, database: Database, menu: OldMenu, order_id: int, management: Any,
    eventually: Eventually,
) -> None:  # fmt: skip
    menu.stop()
    try:
        with core.running(adapter):
            publish(wire, database)
            eventually(lambda: management.depth("order-service.menu-http") == 0, "the message to be delivered")
        assert management.depth("order-service.menu-http") == 1, "not acked, so back after the worker has stopped"
        assert story(database, order_id)[0] == "awaiting_menu"
    finally:
        menu.start()

    with core.running(adapter):
        eventually(lambda: story(database, order_id)[0] == "awaiting_payment", "the order to be priced")
    assert menu.stock == TAKEN


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid"),
        (b'{"type": "OrderCreated", "data": {"order_id": 99}}', "unknown_order"),
        (b'{"type": "OrderCreated", "data": {"order_id": "1"}}', "invalid"),
        (b'{"type": "OrderPaid", "data": {"order_id": 1}}', "invalid"),
        (b'{"type": "StockReleaseRequested", "data": {"order_id": 1, "release_id": "unheard-of"}}', "invalid"),
    ],
)
def test_message_that_is_not_ours_is_dead_lettered(
    adapter: Any, wire: core.Wire, database: Database, order_id: int, eventually: Eventually, body: bytes, code: str
) -> None:
    core.clear_outbox(database)
    with core.running(adapter):
        wire.send_raw("order.created", body)
        found = eventually(
            lambda: core.rows(database, outbox, outbox.c.routing_key == "order-service.menu-http.dlq"), "a dead letter"
        )

    assert f'"x-error": "{code}"' in found[0].properties
    assert found[0].body == body


def test_adapter_refuses_to_start_without_its_queue(adapter: Any, amqp_url: str, eventually: Eventually) -> None:
    core.Wire(amqp_url).declare()
    stop = threading.Event()
    running = core.Running(adapter(stop), stop)
    refused = eventually(running.ended, "the adapter to end")
    assert isinstance(refused, SystemExit)
    assert refused.code == 2


def test_topology_declares_the_queue_only_when_asked_to(amqp_url: str, management: Any) -> None:
    def declare(**more: str) -> str:
        env = os.environ | {"RABBITMQ_URL": amqp_url} | more
        command = [sys.executable, "-m", "order_service", "topology"]
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    assert "menu-http" not in declare()
    assert "order-service.menu-http" not in management.queues()

    assert "order-service.menu-http" in declare(MENU_SERVICE_URL="http://localhost:5002")
    queues = management.queues()
    assert queues["order-service.menu-http"]["type"] == queues["order-service.menu-http.dlq"]["type"] == "quorum"
    bound = {key for _, key, queue in management.bindings() if queue == "order-service.menu-http"}
    assert bound == {"order.created", "menu.release_requested"}
