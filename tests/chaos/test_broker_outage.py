"""Broker outages: orders are accepted during one, and paid after it without intervention."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.servers import rabbitmq_node
from sandbox.servers.broker import refusal
from tests.e2e.client import RESPOND_ASYNC, order_of
from tests.e2e.deployment import MOSTLY_ON_SQLITE, ON_SQLITE, Deployment
from tests.e2e.proxy import TcpProxy
from tests.polling import wait_until

pytestmark = pytest.mark.chaos
IMAGE = "rabbitmq:4-management"


@dataclass
class OwnBroker:
    """A broker that only one test uses, and which keeps its data when it is stopped."""

    port: int
    start: Callable[[], object]
    stop: Callable[[], object]

    @property
    def amqp_url(self) -> str:
        return f"amqp://guest:guest@localhost:{self.port}/"

    def restart(self) -> None:
        """Start, and wait until it accepts connections."""
        self.start()
        wait_until(lambda: refusal(self.amqp_url) is None, "the broker to accept connections")


@contextlib.contextmanager
def installed_node(directory: Path) -> Iterator[OwnBroker]:
    ports = rabbitmq_node.free_ports()
    with contextlib.ExitStack() as node:
        yield OwnBroker(
            ports.amqp,
            start=lambda: node.enter_context(rabbitmq_node.running(directory, ports, keep=True)),
            stop=node.close,
        )


@contextlib.contextmanager
def container() -> Iterator[OwnBroker]:
    port = rabbitmq_node.free_ports().amqp
    name = f"order-service-chaos-{port}"

    def docker(*arguments: str) -> None:
        subprocess.run(["docker", *arguments], check=True, capture_output=True, timeout=60)

    docker("create", "--name", name, "--publish", f"127.0.0.1:{port}:5672", IMAGE)
    try:
        yield OwnBroker(port, start=lambda: docker("start", name), stop=lambda: docker("stop", "--time", "20", name))
    finally:
        docker("rm", "--force", "--volumes", name)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[OwnBroker]:
    """From the installed package, or else from Docker."""
    if rabbitmq_node.script():
        own = installed_node(tmp_path / "broker")
    elif shutil.which("docker"):
        own = container()
    else:
        pytest.skip("needs rabbitmq-server or Docker for a broker that can be stopped")
    with own as broker:
        broker.restart()
        yield broker


@pytest.mark.timeout(240)
@ON_SQLITE
def test_stopped_and_restarted_broker_delays_orders_and_loses_none(
    own_broker: OwnBroker, database_url: str, tmp_path: Path
) -> None:
    with Deployment(own_broker.amqp_url, database_url, tmp_path) as deployment:
        # given
        deployment.start_all()
        client = deployment.client
        menu_id = client.add_menu()
        body = order_of(menu_id, menu_id)
        ids = client.post_orders(20, body, threads=4)

        # when
        own_broker.stop()
        during = [client.post_order(body, headers={"Prefer": "wait=0"}) for _ in range(20)]
        ready = client.request("GET", "/readyz").status
        own_broker.restart()

        # then
        assert ({response.status for response in during}, ready) == ({202}, 200)
        deployment.wait_until_paid(ids + [response.body["id"] for response in during])
        deployment.records.assert_reserved_and_paid_once(menu_id)
        deployment.assert_all_running()
        deployment.assert_stops_with_empty_queues()


@MOSTLY_ON_SQLITE
def test_broken_connections_to_the_broker_lose_no_message(amqp_url: str, database_url: str, tmp_path: Path) -> None:
    with TcpProxy(amqp_url) as proxy, Deployment(proxy.url, database_url, tmp_path) as deployment:
        # given
        proxy.open()
        deployment.start_all()
        menu_id = deployment.client.add_menu()
        ids: list[int] = []

        def post_orders() -> None:
            body = order_of(menu_id, menu_id)
            ids.extend(deployment.client.post_order(body, headers=RESPOND_ASYNC).body["id"] for _ in range(20))

        # when: sent data is lost, then the connections break, then the broker is reachable again
        for _ in range(2):
            post_orders()
            deployment.wait_until(lambda: deployment.records.count("paid") == len(ids), "all orders to be paid")
            proxy.discard()
            post_orders()
            deployment.wait_until(lambda: proxy.discarded_bytes > 300, "messages to be discarded")
            proxy.close()
            post_orders()
            proxy.open()

        # then
        deployment.wait_until_paid(ids)
        assert len(set(ids)) == 120 == len(deployment.records.order_states())
        deployment.records.assert_reserved_and_paid_once(menu_id)
        deployment.assert_all_running()
        deployment.assert_stops_with_empty_queues()
