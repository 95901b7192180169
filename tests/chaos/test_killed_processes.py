"""kill -9 in mid-flow, then a restart: nothing lost, nothing applied twice."""

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.gate import Gate
from tests.e2e.house import House

pytestmark = pytest.mark.chaos


@contextlib.contextmanager
def orders_coming_in(house: House, menu_id: int, *, threads: int = 4) -> Iterator[Callable[[], list[int]]]:
    """Keep posting orders of two of this dish for the length of the block; the value returns the ids acknowledged."""
    done = threading.Event()

    def keep_posting() -> list[int]:
        ids = []
        while not done.is_set():
            ids.append(house.post_until_acknowledged({"user_id": 1, "menu_ids": [menu_id, menu_id]}))
        return ids

    with ThreadPoolExecutor(threads) as pool:
        posting: list[Future[list[int]]] = [pool.submit(keep_posting) for _ in range(threads)]
        try:
            yield lambda: [order_id for each in posting for order_id in each.result()]
        finally:
            done.set()


def paid_more(house: House, more: int) -> None:
    """Wait until so many more orders are paid: the flow is going on."""
    before = list(house.states().values()).count("paid")
    house.wait_until_some_paid(before + more)


def test_killed_consumers_and_publishers_lose_nothing_and_do_nothing_twice(house: House) -> None:
    # given
    house.prepare()
    running = house.start_all()
    menu_id = house.add_menu()

    # when
    with orders_coming_in(house, menu_id) as acknowledged:
        for name in ["consumers", "publishers", "publishers", "consumers"]:
            paid_more(house, 10)
            running[name].kill()
            running[name] = house.start(name)[0]

    # then
    ids = acknowledged()
    house.wait_until_paid(ids)
    assert len(ids) == len(set(ids)) == len(house.states())
    house.require_books_in_order(menu_id, quantity=2)
    assert set(house.stop_all().values()) == {0}
    assert set(house.depths().values()) == {0}


def test_two_consumers_and_two_publishers_share_the_work_and_survive_the_death_of_one_each(house: House) -> None:
    # given
    house.prepare()
    first = house.start_all()
    second = house.start("consumers", "publishers")
    menu_id = house.add_menu()

    # when: the first ones die for good; the relay that stood by on SQLite must take over
    with orders_coming_in(house, menu_id) as acknowledged:
        house.until(lambda: all("consuming" in each.log.read_text() for each in second[:1]), "the second consumer")
        paid_more(house, 20)
        first["consumers"].kill()
        first["publishers"].kill()
        paid_more(house, 20)

    # then
    ids = acknowledged()
    house.wait_until_paid(ids)
    assert len(ids) == len(set(ids)) == len(house.states())
    house.require_books_in_order(menu_id, quantity=2)
    assert set(house.stop_all().values()) == {0}
    assert set(house.depths().values()) == {0}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_power_cut_of_everything_but_broker_and_database_loses_no_acknowledged_order(house: House) -> None:
    # given
    house.prepare()
    processes = house.start_all()
    menu_id = house.add_menu()

    # when
    with orders_coming_in(house, menu_id) as acknowledged:
        paid_more(house, 20)
        for process in processes.values():
            process.kill()
        house.start_all()
        paid_more(house, 10)

    # then: an order may have been recorded whose answer was cut off; it is paid as well
    ids = acknowledged()
    house.wait_until_paid(ids)
    assert len(ids) == len(set(ids)) <= len(house.states())
    house.require_books_in_order(menu_id, quantity=2)
    assert {name: depth for name, depth in house.depths().items() if name.endswith(".dlq")} == {
        "order-service.menu.dlq": 0,
        "order-service.payment.dlq": 0,
    }


def test_every_order_that_a_killed_api_acknowledged_exists(house: House) -> None:
    # given: only the API, which needs nothing but the database
    house.prepare()
    acknowledged: list[int] = []
    done = threading.Event()

    def keep_posting() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = house.post(headers={"Prefer": "respond-async"})
                assert answer.status == 202
                acknowledged.append(answer.body["id"])

    # when
    with ThreadPoolExecutor(8) as pool:
        posting = [pool.submit(keep_posting) for _ in range(8)]
        try:
            for _ in range(2):
                (api,) = house.start("api", USER_SERVICE_URL="")
                enough = len(acknowledged) + 50
                house.until(lambda enough=enough: len(acknowledged) >= enough, "50 more orders")
                api.kill()
        finally:
            done.set()
    for each in posting:
        each.result()

    # then
    states = house.states()
    assert len(acknowledged) == len(set(acknowledged))
    assert set(acknowledged) <= states.keys()
    assert set(states.values()) == {"awaiting_menu"}
    assert house.outbox_rows() == ["OrderCreated"] * len(states)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_database_away_in_mid_flow_dead_letters_nothing_and_loses_nothing(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    # given
    gate = Gate(database_url)
    gate.open()
    with contextlib.closing(House(amqp_url, gate.url, tmp_path)) as house, contextlib.closing(gate):
        house.prepare()
        house.start_all()
        menu_id = house.add_menu()

        # when
        with orders_coming_in(house, menu_id) as acknowledged:
            for _ in range(3):
                paid_more(house, 10)
                gate.close()
                house.until(lambda: house.ask("GET", "/readyz").status == 503, "the API to notice")
                gate.open()
            paid_more(house, 10)

        # then
        ids = acknowledged()
        house.wait_until_paid(ids)
        assert set(ids) <= house.states().keys()
        house.require_books_in_order(menu_id, quantity=2)
        assert set(house.stop_all().values()) == {0}
        assert set(house.depths().values()) == {0}
