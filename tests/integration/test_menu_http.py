"""Reservations at a Menu Service that only speaks HTTP: no line is taken twice, half-taken orders are reported."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from consumers.menu_http.client import Menus, MenuServiceDown
from consumers.menu_http.reservation import StockReserver
from order_service.contract.envelope import Delivery
from order_service.contract.topology import MENU_HTTP
from order_service.domain.order import Order
from order_service.ops import Loop
from order_service.process import utc_now
from order_service.storage.database import Database
from order_service.storage.tables import menu_takings, order_history
from tests import builders
from tests.builders import NOW
from tests.integration import core
from tests.integration.core import Log
from tests.integration.old_menu import OldMenu

#: The stock after one order.
TAKEN = {1: 14, 2: 6}
DELIVERY = Delivery(MENU_HTTP.name, "order.created", b"")


def reserver(database: Database, menus: Menus) -> StockReserver:
    return StockReserver(builders.policy(), database, menus, threading.Event(), Loop("menu"))


class Case:
    """An order of one portion of dish 1 and one of dish 2, and what reserves its stock."""

    def __init__(self, database: Database, menu: OldMenu, **placement: Any) -> None:
        self.database, self.menu = database, menu
        self.stock = reserver(database, Menus(menu.url))
        [self.order_id] = core.place(database, now=utc_now(), **placement)

    def reserve(self) -> None:
        self.stock.reserve(DELIVERY, self.order_id)

    @property
    def order(self) -> Order:
        return core.get(self.database, self.order_id)

    @property
    def result(self) -> tuple[str, str | None]:
        return self.order.state.value, self.order.reason

    def releases(self) -> list[tuple[str, str | None]]:
        """(id, reservation) of every release that is requested and not confirmed."""
        return [(row.id, row.subject) for row in core.compensation_rows(self.database) if row.confirmed_at is None]

    def deliver_releases(self) -> None:
        """Process every release that is requested, as the consumer does."""
        for release_id, reservation_id in self.releases():
            self.stock.release(DELIVERY, self.order_id, release_id, reservation_id)

    def cancel(self) -> None:
        core.cancel(self.database, self.order_id, now=utc_now())

    def pass_all_deadlines(self) -> None:
        for hours in range(5):
            core.clear_outbox(self.database)
            core.pass_deadlines(self.database, utc_now() + timedelta(hours=hours))
        core.clear_outbox(self.database)


@pytest.fixture
def case(database: Database, menu: OldMenu, log: Log) -> Case:
    return Case(database, menu)


def reports(log: Log) -> list[tuple[dict[int, int], dict[int, int]]]:
    """The portions that were reported to be returned manually, and those that were possibly taken."""
    return [(error["portions_by_menu_id"], error["possibly_taken"]) for error in log.errors()]


# An answer from the menu.


def test_order_is_priced_and_each_line_is_taken_exactly_once(database: Database, menu: OldMenu) -> None:
    case = Case(database, menu, menu_ids=(2, 1, 2))

    case.reserve()

    order = case.order
    assert (order.state.value, order.total_price) == ("awaiting_payment", Decimal(58000))
    assert {item.id: (item.name, item.price, item.stock) for item in order.items} == {
        1: ("Nasi Ayam Bakar", Decimal(18000), 14), 2: ("Kwetiau Goreng", Decimal(20000), 5),
    }  # fmt: skip
    assert sorted(menu.puts) == [(1, 1), (2, 2)]
    assert core.unsent_events(database, "PaymentRequested")[0]["data"]["amount"] == 58000


def test_reminder_for_an_answered_order_takes_nothing_and_changes_nothing(case: Case) -> None:
    for _ in range(3):
        case.reserve()

    assert case.menu.stock == TAKEN
    assert len(case.menu.puts) == 2
    assert [row.type for row in core.rows(case.database, order_history)] == ["MenuReserved"]
    assert len(core.unsent_events(case.database, "PaymentRequested")) == 1


@pytest.mark.parametrize("stock", [None, 0])
def test_order_that_is_not_available_is_rejected_and_takes_nothing(case: Case, stock: int | None) -> None:
    if stock is None:
        del case.menu.dishes[2]
    else:
        case.menu.dishes[2]["stock"] = stock

    case.reserve()
    case.reserve()

    assert case.result == ("failed", "menu_not_found" if stock is None else "out_of_stock")
    assert case.order.rejected_menu_id == 2
    assert case.menu.puts == []
    assert case.releases() == []


def test_scarcest_dish_is_taken_first_so_that_its_refusal_leaves_nothing_taken(case: Case) -> None:
    case.menu.before_put = lambda menu_id: case.menu.dishes[2].update(stock=0)

    case.reserve()

    assert case.result == ("failed", "out_of_stock")
    assert case.menu.puts == [(2, 1)]
    assert case.menu.stock[1] == 15
    assert case.releases() == []


def test_partially_taken_order_is_rejected_and_its_release_is_reported_until_confirmed_manually(
    case: Case, log: Log
) -> None:
    # given
    case.menu.before_put = lambda menu_id: case.menu.dishes[1].update(stock=0)

    # when
    case.reserve()
    case.reserve()

    # then
    assert case.result == ("failed", "out_of_stock")
    assert case.order.rejected_menu_id == 1
    assert case.menu.puts == [(2, 1), (1, 1)]
    [(release_id, reservation_id)] = case.releases()
    assert reservation_id == f"menu-http-{case.order_id}"
    assert core.unsent_events(case.database, "StockReleaseRequested")

    case.deliver_releases()
    case.deliver_releases()
    assert reports(log) == [({2: 1}, {})] * 3
    assert log.errors()[-1]["problem"] == f"release {release_id} stays unconfirmed"

    assert core.apply(case.database, core.released(case.order_id, release_id)) == []
    assert case.releases() == []


def test_unexpected_price_fails_the_order_before_anything_is_taken(database: Database, menu: OldMenu) -> None:
    case = Case(database, menu, expected_total=Decimal(37000))

    case.reserve()
    case.deliver_releases()

    assert case.result == ("failed", "price_changed")
    assert menu.puts == []
    assert len(core.compensation_rows(database)) == 1
    assert case.releases() == []


# No answer, or one that cannot be used.


def unanswered(at: int) -> tuple[list[tuple[int, int]], tuple[dict[int, int], dict[int, int]]]:
    """The PUTs sent and the report where the PUT of this dish has no known answer; dish 2 is taken first."""
    return ([(2, 1)], ({}, {2: 1})) if at == 2 else ([(2, 1), (1, 1)], ({2: 1}, {1: 1}))


@pytest.mark.parametrize("fault", ["drop_before", "drop_after", "error_after"])
@pytest.mark.parametrize("at", [2, 1])
def test_put_without_a_known_answer_is_not_repeated_and_the_order_expires_and_is_reported(
    case: Case, log: Log, fault: str, at: int
) -> None:
    case.menu.faults[at] = fault

    case.reserve()
    case.menu.faults.clear()
    case.reserve()

    puts, report = unanswered(at)
    assert case.result == ("failed", "expired")
    assert case.menu.puts == puts
    assert [reservation_id for _, reservation_id in case.releases()] == [None]
    case.deliver_releases()
    assert len(case.releases()) == 1
    assert reports(log) == [report] * 2


class Killed(BaseException):
    """The process has ended."""


class KilledAtPut(Menus):
    """The process ends at the PUT of one dish, before or after it is carried out."""

    def __init__(self, url: str, at: int, *, carried_out: bool) -> None:
        super().__init__(url)
        self._at, self._carried_out = at, carried_out

    def take(self, menu_id: int, quantity: int) -> int | None:
        if menu_id == self._at and not self._carried_out:
            raise Killed
        left = super().take(menu_id, quantity)
        if menu_id == self._at:
            raise Killed
        return left


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("at", [2, 1])
def test_process_killed_at_a_put_never_takes_a_line_twice(case: Case, log: Log, at: int, carried_out: bool) -> None:
    # given
    killed = reserver(case.database, KilledAtPut(case.menu.url, at, carried_out=carried_out))
    with pytest.raises(Killed):
        killed.reserve(DELIVERY, case.order_id)
    before = list(case.menu.puts)

    # when
    case.reserve()
    assert case.result[0] == "awaiting_menu", "the PUT may still be in progress in another process"
    with case.database.writing() as connection:
        connection.execute(sa.update(menu_takings).values(at=NOW))
    case.reserve()

    # then
    assert case.result == ("failed", "expired")
    assert case.menu.puts == before
    case.deliver_releases()
    assert reports(log) == [unanswered(at)[1]] * 2
    assert len(case.releases()) == 1


def test_put_that_was_not_sent_is_retried_and_the_order_continues(case: Case, log: Log) -> None:
    def stop_menu(menu_id: int) -> None:
        case.menu.before_put = lambda _: None
        case.menu.stop()

    case.menu.before_put = stop_menu
    for _ in range(2):
        with pytest.raises(MenuServiceDown):
            case.reserve()
    case.menu.start()
    case.reserve()

    assert case.result[0] == "awaiting_payment"
    assert case.menu.puts == [(2, 1), (1, 1)]
    assert [item.stock for item in case.order.items] == [14, 6]
    assert reports(log) == []


@pytest.mark.parametrize(
    "wrong",
    [{"price": None}, {"price": "much"}, {"price": -1.0}, {"stock": "many"}, {"stock": None}, {"name": 5}, "broken"],
)
def test_order_waits_for_a_reminder_after_an_unusable_answer(case: Case, wrong: Any) -> None:
    right = dict(case.menu.dishes[1])
    if wrong == "broken":
        case.menu.faults[1] = "broken"
    else:
        case.menu.dishes[1] |= wrong

    case.reserve()
    assert case.result[0] == "awaiting_menu"
    assert case.menu.puts == []

    case.menu.dishes[1], case.menu.faults = right, {}
    case.reserve()
    assert case.result[0] == "awaiting_payment"


# Orders that end, and faults of the database.


def test_order_cancelled_between_two_puts_takes_no_more_and_is_reported(case: Case, log: Log) -> None:
    case.menu.before_put = lambda menu_id: case.cancel()
    case.reserve()
    assert case.menu.puts == [(2, 1)]

    case.pass_all_deadlines()
    case.deliver_releases()

    assert case.result[0] == "cancelled"
    assert [reservation_id for _, reservation_id in case.releases()] == [None]
    assert reports(log) == [({2: 1}, {})]


def test_release_for_an_order_that_expired_unanswered_is_confirmed(case: Case) -> None:
    case.pass_all_deadlines()
    assert case.result == ("failed", "expired")

    case.reserve()
    case.deliver_releases()

    assert case.menu.puts == []
    assert len(core.compensation_rows(case.database)) == 1
    assert case.releases() == []


def test_release_of_a_whole_reservation_stays_unconfirmed_and_is_reported(case: Case, log: Log) -> None:
    case.reserve()
    case.cancel()

    case.deliver_releases()

    assert len(case.releases()) == 1
    assert reports(log) == [({1: 1, 2: 1}, {})]
    assert case.menu.stock == TAKEN


class FailingDatabase(Database):
    """Some transactions fail, and the answer to one COMMIT is lost."""

    def __init__(self, url: str, *outcomes: str) -> None:
        super().__init__(url)
        self._outcomes = iter(outcomes)

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        outcome = next(self._outcomes, "committed")
        error = sa.exc.OperationalError("COMMIT", {}, Exception(outcome))
        if outcome == "failed":
            raise error
        with super().writing() as connection:
            yield connection
        if outcome == "answer lost":
            raise error


def test_database_that_fails_after_a_put_does_not_fail_the_order(case: Case) -> None:
    outcomes = ("committed", "failed", "committed", "answer lost", "failed", "failed")
    database = FailingDatabase(case.database.url, *outcomes)

    reserver(database, Menus(case.menu.url)).reserve(DELIVERY, case.order_id)

    database.dispose()
    assert case.result[0] == "awaiting_payment"
    assert sorted(case.menu.puts) == [(1, 1), (2, 1)]


def test_several_processes_with_the_same_order_take_each_line_once(database: Database, menu: OldMenu) -> None:
    cases = [Case(database, menu) for _ in range(5)]
    gate = threading.Barrier(4)

    for case in cases:

        def reserve(case: Case = case) -> None:
            gate.wait()
            case.reserve()

        core.run_in_threads(*[reserve] * 4)

    assert sorted(menu.puts) == [(1, 1)] * 5 + [(2, 1)] * 5
    assert core.states(database, [case.order_id for case in cases]) == {"awaiting_payment"}
    assert menu.stock == {1: 10, 2: 2}


def test_process_stopped_during_a_put_still_records_its_answer(case: Case) -> None:
    # given
    stop = threading.Event()
    case.stock = StockReserver(builders.policy(), case.database, Menus(case.menu.url), stop, Loop("menu"))
    case.menu.before_put = lambda menu_id: stop.set()

    # when
    case.reserve()

    # then
    assert case.result == ("awaiting_payment", None)
