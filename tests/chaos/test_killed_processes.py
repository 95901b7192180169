"""Processes killed with SIGKILL and restarted: no order is lost, and none is reserved or paid twice."""

import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.client import RESPOND_ASYNC, order_of, repeating
from tests.e2e.deployment import MOSTLY_ON_POSTGRESQL, MOSTLY_ON_SQLITE, ON_POSTGRESQL, ON_SQLITE, Deployment, api_alone
from tests.e2e.process import PROCFILE
from tests.e2e.proxy import TcpProxy

pytestmark = pytest.mark.chaos


@contextlib.contextmanager
def orders_arriving(deployment: Deployment) -> Iterator[list[int]]:
    """Keep posting orders during the block; then assert that each is reserved and paid once. The list has their ids."""
    menu_id = deployment.client.add_menu()
    body = order_of(menu_id, menu_id)
    with repeating(lambda: deployment.client.post_order_until_accepted(body), threads=4) as ids:
        yield ids
    deployment.wait_until_paid(ids)
    assert len(ids) == len(set(ids))
    deployment.records.assert_reserved_and_paid_once(menu_id)


@MOSTLY_ON_SQLITE
def test_killed_consumers_and_publishers_lose_nothing_and_do_nothing_twice(deployment: Deployment) -> None:
    # given
    processes = deployment.start_all()

    # when
    with orders_arriving(deployment) as ids:
        for name in ["consumers", "publishers", "publishers", "consumers"]:
            deployment.wait_until_more_are_paid(10)
            processes[name].kill()
            [processes[name]] = deployment.start(name)

    # then
    assert deployment.records.order_states().keys() == set(ids)
    deployment.assert_stops_with_empty_queues()


@MOSTLY_ON_POSTGRESQL
@pytest.mark.field
def test_two_consumers_and_two_publishers_share_the_work_and_continue_after_one_of_each_is_killed(
    deployment: Deployment,
) -> None:
    # given
    processes = deployment.start_all()
    consumers, _ = deployment.start("consumers", "publishers")

    # when: on SQLite, the waiting relay takes over
    with orders_arriving(deployment) as ids:
        deployment.wait_until(lambda: "consuming" in consumers.log, "the second consumer")
        deployment.wait_until_more_are_paid(20)
        processes["consumers"].kill()
        processes["publishers"].kill()
        deployment.wait_until_more_are_paid(20)

    # then
    assert deployment.records.order_states().keys() == set(ids)
    deployment.assert_stops_with_empty_queues()


@ON_SQLITE
def test_power_cut_of_everything_but_broker_and_database_loses_no_accepted_order(deployment: Deployment) -> None:
    # given
    processes = deployment.start_all()

    # when: orders whose response was cut off are recorded and paid as well
    with orders_arriving(deployment):
        deployment.wait_until_more_are_paid(20)
        for process in processes.values():
            process.kill()
        deployment.start(*PROCFILE)
        deployment.wait_until_healthy()
        deployment.wait_until_more_are_paid(10)

    # then
    assert not any(depth for name, depth in deployment.records.queue_depths().items() if name.endswith(".dlq"))


@MOSTLY_ON_SQLITE
def test_every_order_that_a_killed_api_accepted_exists(database_url: str, tmp_path: Path) -> None:
    with api_alone(database_url, tmp_path) as deployment:
        # given
        def post() -> int | None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                response = deployment.client.post_order(headers=RESPOND_ASYNC)
                assert response.status == 202
                order_id: int = response.body["id"]
                return order_id
            return None

        def kill_after(count: int) -> None:
            deployment.wait_until(lambda: sum(map(bool, results)) >= count, f"{count} accepted orders")
            deployment.processes[-1].kill()

        # when
        with repeating(post, threads=8) as results:
            kill_after(50)
            deployment.start("api")
            kill_after(100)

        # then
        accepted = [order_id for order_id in results if order_id]
        states = deployment.records.order_states()
        assert len(accepted) == len(set(accepted))
        assert set(accepted) <= states.keys()
        assert set(states.values()) == {"awaiting_menu"}
        assert deployment.records.outbox_types() == ["OrderCreated"] * len(states)


@ON_POSTGRESQL
def test_unreachable_database_dead_letters_nothing_and_loses_nothing(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    with TcpProxy(database_url) as proxy, Deployment(amqp_url, proxy.url, tmp_path) as deployment:
        # given
        proxy.open()
        deployment.start_all()

        # when
        with orders_arriving(deployment):
            for _ in range(3):
                deployment.wait_until_more_are_paid(10)
                proxy.close()
                deployment.wait_until(lambda: deployment.client.request("GET", "/readyz").status == 503, "status 503")
                proxy.open()
            deployment.wait_until_more_are_paid(10)

        # then
        deployment.assert_stops_with_empty_queues()
