"""The broker goes and comes back: orders are taken meanwhile, and paid afterwards without help."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.servers import rabbitmq_node
from sandbox.servers.broker import refusal
from tests.e2e.gate import Gate
from tests.e2e.house import House

pytestmark = pytest.mark.chaos
IMAGE = "rabbitmq:4-management"


class OwnBroker:
    """A broker of this test's own that can be stopped and started again, with its data."""

    def __init__(self, amqp_url: str, start: Callable[[], None], stop: Callable[[], None]) -> None:
        self.amqp_url, self._start, self.stop = amqp_url, start, stop

    def start(self) -> None:
        self._start()
        deadline = time.monotonic() + 90
        while reason := refusal(self.amqp_url):
            assert time.monotonic() < deadline, reason


@contextlib.contextmanager
def installed_node(directory: Path) -> Iterator[OwnBroker]:
    ports = rabbitmq_node.free_ports()
    with contextlib.ExitStack() as node:
        yield OwnBroker(
            f"amqp://guest:guest@localhost:{ports.amqp}/",
            lambda: node.enter_context(rabbitmq_node.running(directory, ports, keep=True)),
            node.close,
        )


@contextlib.contextmanager
def container() -> Iterator[OwnBroker]:
    port = rabbitmq_node.free_ports().amqp

    def docker(*arguments: str) -> None:
        subprocess.run(["docker", *arguments], check=True, capture_output=True, timeout=60)

    name = f"order-service-chaos-{port}"
    docker("create", "--name", name, "--publish", f"127.0.0.1:{port}:5672", IMAGE)
    try:
        yield OwnBroker(
            f"amqp://guest:guest@localhost:{port}/",
            lambda: docker("start", name),
            lambda: docker("stop", "--time", "20", name),
        )
    finally:
        docker("rm", "--force", "--volumes", name)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[OwnBroker]:
    """From the installed package, or else from Docker."""
    if rabbitmq_node.script():
        way = installed_node(tmp_path / "broker")
    elif shutil.which("docker"):
        way = container()
    else:
        pytest.skip("needs rabbitmq-server or Docker for a broker that may be stopped")
    with way as broker:
        broker.start()
        yield broker


@pytest.mark.timeout(240)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_stopped_and_restarted_broker_delays_orders_and_loses_none(
    own_broker: OwnBroker, database_url: str, tmp_path: Path
) -> None:
    with contextlib.closing(House(own_broker.amqp_url, database_url, tmp_path)) as house:
        # given
        house.prepare()
        processes = house.start_all()
        menu_id = house.add_menu()
        body = {"user_id": 1, "menu_ids": [menu_id, menu_id]}
        ids = house.posts(20, body, threads=4)

        # when
        own_broker.stop()
        during = [house.post(body, headers={"Prefer": "wait=0"}) for _ in range(20)]
        ready = house.ask("GET", "/readyz").status
        own_broker.start()

        # then
        assert ({answer.status for answer in during}, ready) == ({202}, 200)
        ids += [answer.body["id"] for answer in during]
        house.wait_until_paid(ids)
        house.require_books_in_order(menu_id, quantity=2)
        assert all(process.is_running for process in processes.values()), house.logs()
        assert set(house.stop_all().values()) == {0}
        assert set(house.depths().values()) == {0}


def test_connection_to_the_broker_lost_in_mid_flow_loses_no_message(
    amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    gate = Gate(amqp_url)
    gate.open()
    with contextlib.closing(House(gate.url, database_url, tmp_path)) as house, contextlib.closing(gate):
        # given
        house.prepare()
        processes = house.start_all()
        menu_id = house.add_menu()
        body = {"user_id": 1, "menu_ids": [menu_id, menu_id]}

        def post(count: int) -> list[int]:
            return [house.post(body, headers={"Prefer": "respond-async"}).body["id"] for _ in range(count)]

        # when: what is sent vanishes for a while, then the connections break, then they can be had again
        ids = []
        for _ in range(2):
            ids += post(20)
            house.wait_until_some_paid(len(ids))
            before, gate.swallows = gate.swallowed_bytes, True
            ids += post(20)
            house.until(lambda before=before: gate.swallowed_bytes > before + 300, "messages to vanish")
            gate.close()
            ids += post(20)
            gate.open()

        # then
        house.wait_until_paid(ids)
        assert len(set(ids)) == 120 == len(house.states())
        house.require_books_in_order(menu_id, quantity=2)
        assert all(process.is_running for process in processes.values()), house.logs()
        assert set(house.stop_all().values()) == {0}
        assert set(house.depths().values()) == {0}
