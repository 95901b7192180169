"""The sandbox's fault switches: each drives our real consumers, relay and clock to what the decision table says."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from order_service import handlers
from order_service.db import Database
from order_service.startup import utc_now
from order_service.tables import order_history
from publishers.deadlines import Deadlines
from publishers.relay import Relay
from sandbox.siblings import faults, menu, payment
from sandbox.siblings.consumer import Service
from sandbox.siblings.faults import Faults, UnknownFault
from sandbox.siblings.process import workers
from sandbox.siblings.store import connect, create
from tests.integration import core

Eventually = Callable[..., Any]
FULL = {1: 15, 2: 7}
TAKEN = {1: 14, 2: 6}


class Restaurant:
    """Our processes and the sandbox's Menu and Payment Services as threads, over a real broker."""

    def __init__(self, stack: ExitStack, amqp_url: str, database: Database, directory: Path) -> None:
        self.database = database
        self.settings = core.settings(
            amqp_url, database.url, menu_reply_seconds=1, menu_reminders=2, compensation_seconds=0.5
        )
        self.menu, self.payment = Faults(menu.DECIDING), Faults(payment.DECIDING)
        create(directory / "menu.db", menu.SCHEMA)
        create(directory / "payment.db", payment.SCHEMA)
        self._menus = stack.enter_context(closing(connect(directory / "menu.db")))
        self._payments = stack.enter_context(closing(connect(directory / "payment.db")))
        for service in (
            menu.service(directory / "menu.db", self.menu),
            payment.service(directory / "payment.db", "auto", self.payment),
        ):
            stack.enter_context(serving(service, amqp_url))
        stack.enter_context(core.running(core.worker(self.settings, database)))
        stack.enter_context(core.running(lambda stop: Relay(self.settings, database, stop)))
        stack.enter_context(core.running(lambda stop: Deadlines(self.settings, database, stop)))

    def place(self, expected_total: Decimal | None = None) -> int:
        """An order of one portion of each dish, placed now."""
        clock = core.clock(utc_now(), reply_seconds=self.settings.menu_reply_seconds)
        placement = handlers.Placement(user_id=1, menu_ids=(1, 2), expected_total=expected_total)
        with self.database.writing() as connection:
            [placed] = handlers.place_orders(connection, [placement], clock, reminders=self.settings.menu_reminders)
            return placed.id

    def state(self, order_id: int) -> tuple[str, str | None]:
        order = core.get(self.database, order_id)
        return order.state.value, order.reason

    def history(self, order_id: int) -> list[str]:
        return [row.type for row in core.rows(self.database, order_history, order_history.c.order_id == order_id)]

    def confirmed(self) -> list[str]:
        """What was given back and confirmed; empty while anything is not."""
        rows = core.given_back(self.database)
        return [row.type for row in rows] if all(row.confirmed_at for row in rows) else []

    def stock(self) -> dict[int, int]:
        return {row["id"]: row["stock"] for row in self._menus.execute("SELECT id, stock FROM menus")}

    def payments(self) -> list[tuple[str, str]]:
        return [tuple(row) for row in self._payments.execute("SELECT amount, status FROM payments ORDER BY id")]


@contextlib.contextmanager
def serving(service: Service, amqp_url: str) -> Iterator[None]:
    both = workers(service, amqp_url)
    threads = [threading.Thread(target=each.run, daemon=True) for each in both]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for each in both:
            each.stop()
        for thread in threads:
            thread.join(5)
        both[1]._loop.close()  # as the end of its process would


@pytest.fixture
def restaurant(amqp_url: str, migrated_sqlite: Path, tmp_path: Path) -> Iterator[Restaurant]:
    core.Wire(amqp_url).declare()
    with closing(connect(migrated_sqlite)) as template, closing(connect(tmp_path / "orders.db")) as copy:
        template.backup(copy)
    with core.opened(f"sqlite:///{tmp_path / 'orders.db'}") as database, ExitStack() as stack:
        yield Restaurant(stack, amqp_url, database, tmp_path)


def test_rejecting_menu_holds_nothing_and_stays_with_its_answer(restaurant: Restaurant, eventually: Eventually) -> None:
    restaurant.menu.switch({"reject": True})

    order_id = restaurant.place()

    eventually(lambda: restaurant.state(order_id) == ("failed", "out_of_stock"), "the order to fail")
    assert restaurant.stock() == FULL
    assert restaurant.confirmed() == restaurant.payments() == []


def test_rejecting_payment_takes_nothing_and_the_stock_is_given_back(
    restaurant: Restaurant, eventually: Eventually
) -> None:
    restaurant.payment.switch({"reject": True})

    order_id = restaurant.place()

    eventually(lambda: restaurant.state(order_id) == ("failed", "payment_failed"), "the order to fail")
    eventually(lambda: restaurant.confirmed() == ["StockReleaseRequested"], "the release to be confirmed")
    assert restaurant.stock() == FULL
    assert restaurant.payments() == []


def test_wrong_amount_fails_the_order_and_all_of_it_is_refunded(restaurant: Restaurant, eventually: Eventually) -> None:
    restaurant.payment.switch({"wrong_amount": True})

    order_id = restaurant.place()

    eventually(lambda: restaurant.state(order_id) == ("failed", "amount_mismatch"), "the order to fail")
    both = ["RefundRequested", "StockReleaseRequested"]
    eventually(lambda: sorted(restaurant.confirmed()) == both, "refund and release to be confirmed")
    assert restaurant.payments() == [("38001", "refunded")]
    assert restaurant.stock() == FULL


def test_changed_price_fails_the_order_that_expected_another_before_any_payment(
    restaurant: Restaurant, eventually: Eventually
) -> None:
    restaurant.menu.switch({"price": True})

    expecting, trusting = restaurant.place(Decimal(38000)), restaurant.place()

    eventually(lambda: restaurant.state(expecting) == ("failed", "price_changed"), "the expecting order to fail")
    eventually(lambda: restaurant.state(trusting)[0] == "paid", "the other one to be paid")
    eventually(lambda: restaurant.confirmed() == ["StockReleaseRequested"], "the release to be confirmed")
    assert restaurant.payments() == [("40000", "paid")]
    assert restaurant.stock() == TAKEN


def test_silent_menu_is_reminded_then_the_order_expires_and_all_is_asked_back(
    restaurant: Restaurant, eventually: Eventually
) -> None:
    restaurant.menu.switch({"silent": True})

    order_id = restaurant.place()

    eventually(lambda: restaurant.state(order_id) == ("failed", "expired"), "the order to expire")
    assert restaurant.history(order_id) == ["MenuReminder", "MenuReminder", "MenuDeadline"]
    [release] = core.given_back(restaurant.database)
    assert (release.type, release.subject) == ("StockReleaseRequested", None)
    eventually(lambda: restaurant.stock() == FULL, "the stock to be given back")
    assert restaurant.confirmed() == []

    restaurant.menu.switch({})
    eventually(lambda: restaurant.confirmed() == ["StockReleaseRequested"], "the release to be confirmed at a repeat")
    assert restaurant.stock() == FULL


def test_late_menu_is_reminded_and_takes_the_stock_once(restaurant: Restaurant, eventually: Eventually) -> None:
    restaurant.menu.switch({"delay": 1.6})

    order_id = restaurant.place()

    eventually(lambda: restaurant.state(order_id)[0] == "paid", "the order to be paid")
    assert "MenuReminder" in restaurant.history(order_id)
    assert restaurant.stock() == TAKEN
    assert restaurant.payments() == [("38000", "paid")]


def test_menu_later_than_its_deadline_gets_its_reservation_back(restaurant: Restaurant, eventually: Eventually) -> None:
    restaurant.menu.switch({"delay": 4})

    order_id = restaurant.place()

    eventually(lambda: restaurant.state(order_id) == ("failed", "expired"), "the order to expire")
    both = ["StockReleaseRequested"] * 2
    eventually(lambda: restaurant.confirmed() == both, "both releases to be confirmed")
    assert restaurant.stock() == FULL


@pytest.mark.parametrize("fault", ["duplicate", "reorder"])
def test_answers_sent_twice_or_out_of_order_leave_every_order_paid_once(
    restaurant: Restaurant, eventually: Eventually, fault: str
) -> None:
    restaurant.menu.switch({fault: True})
    restaurant.payment.switch({fault: True})

    ids = [restaurant.place() for _ in range(4)]

    eventually(lambda: core.states(restaurant.database, ids) == {"paid"}, "all orders to be paid")
    assert restaurant.stock() == {1: 11, 2: 3}
    assert restaurant.payments() == [("38000", "paid")] * 4
    assert [restaurant.history(order_id).count("PaymentCompleted") for order_id in ids] == [1] * 4
    assert restaurant.confirmed() == []


def test_faults_can_be_combined(restaurant: Restaurant, eventually: Eventually) -> None:
    restaurant.menu.switch({"delay": 0.3, "duplicate": True, "reorder": True})
    restaurant.payment.switch({"duplicate": True, "wrong_amount": True})

    order_id = restaurant.place()

    eventually(lambda: restaurant.state(order_id) == ("failed", "amount_mismatch"), "the order to fail")
    eventually(lambda: len(restaurant.confirmed()) == 2, "refund and release to be confirmed")
    assert restaurant.payments() == [("38001", "refunded")]
    assert restaurant.stock() == FULL


def test_copies_share_an_id_and_every_other_answer_waits() -> None:
    switched = Faults((), "duplicate,reorder")

    first, second = [list(switched.departures()) for _ in range(2)]

    (id1, at1), (id2, at2) = first
    assert id1 == id2
    assert at1 == at2 > 0
    assert [at for _, at in second] == [0, 0]
    assert not list(Faults((), "silent").departures())


def test_environment_switches_faults_at_start() -> None:
    assert faults.read("MENU_FAULTS", " delay=2 , duplicate,reject", menu.DECIDING).active == {
        "delay": 2.0,
        "duplicate": True,
        "reject": True,
    }
    with pytest.raises(SystemExit, match="MENU_FAULTS: unknown fault wrong_amount; known are reject, price, silent"):
        faults.read("MENU_FAULTS", "wrong_amount", menu.DECIDING)


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("loud", "unknown fault loud"),
        ("delay", "delay must be a number of seconds"),
        ("delay=soon", "delay must be a number of seconds"),
        ("delay=nan", "delay must be a number of seconds"),
        ("delay=0", "delay must be a number of seconds"),
        ("silent=2", "silent must be true or false"),
    ],
)
def test_impossible_fault_in_the_environment_is_named(wanted: str, problem: str) -> None:
    with pytest.raises(UnknownFault, match=problem):
        Faults(menu.DECIDING, wanted)


def apps(directory: Path) -> Iterator[Any]:
    create(directory / "menu.db", menu.SCHEMA)
    create(directory / "payment.db", payment.SCHEMA)
    yield menu.create_app(directory / "menu.db").test_client()
    yield payment.create_app(directory / "payment.db").test_client()


def test_faults_are_switched_over_http(tmp_path: Path) -> None:
    for client in apps(tmp_path):
        assert client.get("/faults").json["active"] == {}

        put = client.put("/faults", data=b'{"delay": 2, "duplicate": true, "silent": false}')

        assert put.status_code == 200
        assert put.json == client.get("/faults").json
        assert put.json["active"] == {"delay": 2, "duplicate": True}
        assert client.put("/faults", data=b"{}").json["active"] == {}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"duplicate": true, "loud": true}', "unknown fault loud; known are "),
        (b'{"delay": true}', "delay must be a number of seconds up to 86400"),
        (b'{"delay": -1}', "delay must be a number of seconds up to 86400"),
        (b'{"silent": "yes"}', "silent must be true or false"),
        (b'["silent"]', "faults must be a JSON object"),
        (b"silent", "Expecting value"),
        (b"\xff", "can't decode"),
    ],
)
def test_impossible_fault_is_400_and_switches_nothing(tmp_path: Path, body: bytes, problem: str) -> None:
    for client in apps(tmp_path):
        client.put("/faults", data=b'{"silent": true}')

        refused = client.put("/faults", data=body)

        assert refused.status_code == 400
        assert problem in refused.json["message"]
        assert client.get("/faults").json["active"] == {"silent": True}
