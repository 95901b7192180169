"""The sandbox's faults: with each, the real consumers, relay and deadlines do what the decision table says."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from order_service import handlers
from order_service.storage.database import Database
from order_service.storage.tables import order_history
from order_service.unit_of_work import unit_of_work
from publishers.deadlines import Deadlines
from publishers.relay import Relay
from sandbox.siblings import faults, menu, payment
from sandbox.siblings.faults import Faults
from sandbox.siblings.kit import Service, connect
from tests.integration import core

Eventually = Callable[..., Any]
FULL = {1: 15, 2: 7}
RESERVED = {1: 14, 2: 6}


class Restaurant:
    """The Order Service's processes and the sandbox's Menu and Payment Services as threads, over a real broker."""

    def __init__(self, stack: ExitStack, amqp_url: str, database: Database, directory: Path) -> None:
        self.database = database
        self.settings = core.settings(
            amqp_url, database.url, menu_reply_seconds=1, menu_reminders=2, compensation_seconds=0.5
        )
        menus = menu.create_service(directory / "menu.db")
        payments = payment.create_service(directory / "payment.db")
        self.menu, self.payment = menus.faults, payments.faults
        self._menus = stack.enter_context(closing(connect(menus.database)))
        self._payments = stack.enter_context(closing(connect(payments.database)))
        for service in (menus, payments):
            stack.enter_context(serving(service))
        stack.enter_context(core.running(core.worker(self.settings, database)))
        stack.enter_context(core.running(lambda stop: Relay(self.settings, database, stop)))
        stack.enter_context(core.running(lambda stop: Deadlines(self.settings, database, stop)))

    def place(self, expected_total: Decimal | None = None) -> int:
        """An order of one portion of each menu item, placed now."""
        placement = handlers.Placement(user_id=1, menu_ids=(1, 2), expected_total=expected_total)
        with unit_of_work(self.database, self.settings.policy) as work:
            [placed] = handlers.place_orders(work, [placement])
            return placed.id

    def state(self, order_id: int) -> tuple[str, str | None]:
        order = core.get(self.database, order_id)
        return order.state.value, order.reason

    def history(self, order_id: int) -> list[str]:
        return [row.type for row in core.rows(self.database, order_history, order_history.c.order_id == order_id)]

    def confirmed(self) -> list[str]:
        """The confirmed compensations; empty while one is unconfirmed."""
        rows = core.compensation_rows(self.database)
        return [row.type for row in rows] if all(row.confirmed_at for row in rows) else []

    def stock(self) -> dict[int, int]:
        return {row["id"]: row["stock"] for row in self._menus.execute("SELECT id, stock FROM menus")}

    def payments(self) -> list[tuple[str, str]]:
        return [tuple(row) for row in self._payments.execute("SELECT amount, status FROM payments ORDER BY id")]


@contextlib.contextmanager
def serving(service: Service) -> Iterator[None]:
    stopping = threading.Event()
    thread = threading.Thread(target=service.run, args=[stopping], daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(5)


@pytest.fixture
def restaurant(
    amqp_url: str, migrated_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Restaurant]:
    monkeypatch.setenv("RABBITMQ_URL", amqp_url)
    core.Wire(amqp_url).declare()
    with closing(connect(migrated_sqlite)) as template, closing(connect(tmp_path / "orders.db")) as copy:
        template.backup(copy)
    with core.opened(f"sqlite:///{tmp_path / 'orders.db'}") as database, ExitStack() as stack:
        yield Restaurant(stack, amqp_url, database, tmp_path)


RELEASE, REFUND = "StockReleaseRequested", "RefundRequested"


@pytest.mark.parametrize(
    ("menu_faults", "payment_faults", "reason", "confirmed", "payments"),
    [
        ({"reject": True}, {}, "out_of_stock", [], []),
        ({}, {"reject": True}, "payment_failed", [RELEASE], []),
        ({}, {"wrong_amount": True}, "amount_mismatch", [REFUND, RELEASE], [("38001", "refunded")]),
        (
            {"delay": 0.3, "duplicate": True, "reorder": True},
            {"duplicate": True, "wrong_amount": True},
            "amount_mismatch",
            [REFUND, RELEASE],
            [("38001", "refunded")],
        ),
    ],
    ids=["the menu rejects", "the payment is rejected", "the amount is wrong", "faults are combined"],
)
def test_order_fails_and_is_compensated(
    restaurant: Restaurant,
    eventually: Eventually,
    menu_faults: dict[str, object],
    payment_faults: dict[str, object],
    reason: str,
    confirmed: list[str],
    payments: list[tuple[str, str]],
) -> None:
    restaurant.menu.replace(menu_faults)
    restaurant.payment.replace(payment_faults)

    order_id = restaurant.place()

    eventually(lambda: restaurant.state(order_id) == ("failed", reason), "the order to fail")
    eventually(lambda: sorted(restaurant.confirmed()) == confirmed, "compensations to be confirmed")
    assert restaurant.payments() == payments
    assert restaurant.stock() == FULL


def test_changed_price_fails_the_order_that_expected_another_before_any_payment(
    restaurant: Restaurant, eventually: Eventually
) -> None:
    restaurant.menu.replace({"price": True})

    expecting, trusting = restaurant.place(Decimal(38000)), restaurant.place()

    eventually(lambda: restaurant.state(expecting) == ("failed", "price_changed"), "the expecting order to fail")
    eventually(lambda: restaurant.state(trusting)[0] == "paid", "the other one to be paid")
    eventually(lambda: restaurant.confirmed() == [RELEASE], "the release to be confirmed")
    assert restaurant.payments() == [("40000", "paid")]
    assert restaurant.stock() == RESERVED


def test_silent_menu_is_reminded_then_the_order_expires_and_its_release_is_requested(
    restaurant: Restaurant, eventually: Eventually
) -> None:
    restaurant.menu.replace({"silent": True})

    order_id = restaurant.place()

    eventually(lambda: restaurant.state(order_id) == ("failed", "expired"), "the order to expire")
    assert restaurant.history(order_id) == ["MenuReminder", "MenuReminder", "MenuDeadline"]
    [release] = core.compensation_rows(restaurant.database)
    assert (release.type, release.subject) == (RELEASE, None)
    eventually(lambda: restaurant.stock() == FULL, "the stock to be released")
    assert restaurant.confirmed() == []

    restaurant.menu.replace({})
    eventually(lambda: restaurant.confirmed() == [RELEASE], "the release to be confirmed at a repeat")
    assert restaurant.stock() == FULL


def test_late_menu_is_reminded_and_reserves_the_stock_once(restaurant: Restaurant, eventually: Eventually) -> None:
    restaurant.menu.replace({"delay": 1.6})

    order_id = restaurant.place()

    eventually(lambda: restaurant.state(order_id)[0] == "paid", "the order to be paid")
    assert "MenuReminder" in restaurant.history(order_id)
    assert restaurant.stock() == RESERVED
    assert restaurant.payments() == [("38000", "paid")]


def test_reservation_after_the_deadline_is_released(restaurant: Restaurant, eventually: Eventually) -> None:
    restaurant.menu.replace({"delay": 4})

    order_id = restaurant.place()

    eventually(lambda: restaurant.state(order_id) == ("failed", "expired"), "the order to expire")
    eventually(lambda: restaurant.confirmed() == [RELEASE] * 2, "both releases to be confirmed")
    assert restaurant.stock() == FULL


@pytest.mark.parametrize("fault", ["duplicate", "reorder"])
def test_replies_sent_twice_or_out_of_order_leave_every_order_paid_once(
    restaurant: Restaurant, eventually: Eventually, fault: str
) -> None:
    restaurant.menu.replace({fault: True})
    restaurant.payment.replace({fault: True})

    ids = [restaurant.place() for _ in range(4)]

    eventually(lambda: core.states(restaurant.database, ids) == {"paid"}, "all orders to be paid")
    assert restaurant.stock() == {1: 11, 2: 3}
    assert restaurant.payments() == [("38000", "paid")] * 4
    assert [restaurant.history(order_id).count("PaymentCompleted") for order_id in ids] == [1] * 4
    assert restaurant.confirmed() == []


def test_copies_share_an_id_and_every_other_reply_is_delayed() -> None:
    switched = Faults()
    switched.replace({"duplicate": True, "reorder": True})

    (id1, at1), (id2, at2) = switched.copies()
    assert id1 == id2
    assert at1 == at2 > time.time()
    assert [at for _, at in switched.copies()] == [0, 0]
    switched.replace({"silent": True})
    assert not list(switched.copies())


def test_environment_sets_faults_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MENU_FAULTS", " delay=2 , duplicate,reject")
    active = faults.from_environment("MENU_FAULTS", menu.DECIDING).active
    assert active == {"delay": 2.0, "duplicate": True, "reject": True}


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("wrong_amount", "unknown fault wrong_amount; known are reject, price, silent"),
        ("delay", "delay must be a number of seconds"),
        ("delay=soon", "could not convert string to float: 'soon'"),
        ("delay=nan", "delay must be a number of seconds"),
        ("delay=0", "delay must be a number of seconds"),
        ("silent=2", "silent must be true or false"),
    ],
)
def test_invalid_fault_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch, wanted: str, problem: str) -> None:
    monkeypatch.setenv("MENU_FAULTS", wanted)
    with pytest.raises(SystemExit, match=f"MENU_FAULTS: {problem}"):
        faults.from_environment("MENU_FAULTS", menu.DECIDING)


@pytest.fixture(params=[menu, payment], ids=["menu", "payment"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> FlaskClient:
    app: Flask = request.param.create_app(request.param.create_service(tmp_path / "sibling.db"))
    return app.test_client()


def test_faults_are_replaced_over_http(client: FlaskClient) -> None:
    def active() -> Any:
        return (client.get("/faults").json or {})["active"]

    assert active() == {}

    put = client.put("/faults", data=b'{"delay": 2, "duplicate": true, "silent": false}')

    assert (put.status_code, put.json) == (200, client.get("/faults").json)
    assert active() == {"delay": 2, "duplicate": True}
    client.put("/faults", data=b"{}")
    assert active() == {}


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
def test_invalid_fault_is_400_and_changes_nothing(client: FlaskClient, body: bytes, problem: str) -> None:
    client.put("/faults", data=b'{"silent": true}')

    refused = client.put("/faults", data=body)

    assert refused.status_code == 400
    assert problem in (refused.json or {})["message"]
    assert (client.get("/faults").json or {})["active"] == {"silent": True}
