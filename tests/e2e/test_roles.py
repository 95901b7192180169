"""Each process does its whole job on PostgreSQL with its own role of `database roles`."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from order_service.contract.topology import EXCHANGE
from tests.e2e.client import EXAMPLE, order_of
from tests.e2e.deployment import Deployment
from tests.roles import Roles, created

#: Seconds that an order waits for its payment.
PAYMENT_SECONDS = 4


@pytest.fixture
def roles(postgres_url: str) -> Iterator[Roles]:
    with created(postgres_url) as roles:
        yield roles


def publish_garbage(amqp_url: str) -> None:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        connection.channel().basic_publish(EXCHANGE, "menu.reserved", b"no event")


def follow(deployment: Deployment, order_id: int) -> list[str]:
    """The statuses that the event stream of an order shows until it has ended."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", deployment.ports["api"], timeout=40)) as connection:
        connection.request("GET", f"/orders/{order_id}/events")
        lines = connection.getresponse().read().decode().splitlines()
    return [json.loads(line.removeprefix("data: "))["status"] for line in lines if line.startswith("data: ")]


def test_every_process_does_its_whole_job_with_its_own_role(roles: Roles, amqp_url: str, tmp_path: Path) -> None:
    settings = {
        "ORDER_PAYMENT_SECONDS": str(PAYMENT_SECONDS), "ORDER_COMPENSATION_SECONDS": "0.5", "ORDER_PENDING_LIMIT": "20",
    }  # fmt: skip
    with Deployment(amqp_url, roles.database_url, tmp_path, **settings) as deployment:
        deployment.declare_topology()
        for process in "api", "consumers", "publishers":
            deployment.start(process, DATABASE_URL=roles.url(process))
        deployment.start("users", "menu", "payment")
        deployment.wait_until_healthy()
        client, records = deployment.client, deployment.records

        def ends(order_id: int) -> str:
            deployment.wait_until(
                lambda: records.order_states()[order_id] in ("paid", "failed", "cancelled"), "the end"
            )
            return records.order_states()[order_id]

        # paid, and the same again with its idempotency key
        key = {"Idempotency-Key": '"k"'}
        paid = client.post_order(headers=key).body["id"]
        assert ends(paid) == "paid"
        assert client.post_order(headers=key).body["id"] == paid
        assert follow(deployment, paid)[-1] == "paid"
        # rejected by the menu
        assert client.post_order(order_of(999)).status == 404
        # declined
        client.request("PUT", "/faults", {"reject": True}, to="payment")
        # Without a wait, in which it may fail already: then the answer is 409.
        declined = client.post_order(headers={"Prefer": "respond-async"}).body["id"]
        assert ends(declined) == "failed"
        # no payment in time: reminded, then expired
        client.request("PUT", "/faults", {"silent": True}, to="payment")
        expired = client.post_order().body["id"]
        assert follow(deployment, expired)[-1] == "failed"
        # cancelled after the reservation
        cancelled = client.post_order().body["id"]
        assert client.request("DELETE", f"/orders/{cancelled}").status == 200
        # paid by PUT, and then cancelled too late
        put = client.post_order().body["id"]
        assert client.request("PUT", f"/orders/{put}/payment", {"payment_status": "paid"}).body["status"] == "paid"
        assert client.request("DELETE", f"/orders/{put}").status == 409
        # a dead letter
        publish_garbage(amqp_url)
        client.request("PUT", "/faults", {}, to="payment")

        deployment.wait_until(lambda: records.queue_depths()["order-service.menu.dlq"] == 1, "the dead letter")
        deployment.wait_until(lambda: not records.outbox_types(), "the outbox to be empty")
        unconfirmed = "SELECT count(*) FROM compensations WHERE confirmed_at IS NULL"
        deployment.wait_until(lambda: roles.administrate(unconfirmed) == [(0,)], "the compensations to be confirmed")
        assert roles.administrate("SELECT count(*) FROM compensations")[0][0] >= 3
        assert client.request("GET", f"/orders/{expired}").body["reason"] == "expired"
        assert client.request("GET", f"/orders/{expired}/history").body["events"][-1]["to"] == "failed"
        assert len(client.request("GET", "/orders?user_id=1").body["orders"]) == 6
        assert client.request("GET", "/readyz").status == 200

        # commands with the role that docs/rights.md names for them
        listed = deployment.run(
            "env", f"DATABASE_URL={roles.url('readonly')}", "python", "-m", "order_service", "compensations", "list"
        )
        assert (listed.returncode, listed.stdout) == (0, ""), listed.stderr
        deployment.assert_all_running()
        for process in deployment.processes:
            assert "permission denied" not in process.log, process.log_tail()
            assert "InsufficientPrivilege" not in process.log, process.log_tail()


def test_a_process_with_the_wrong_role_says_what_it_lacks(roles: Roles, amqp_url: str, tmp_path: Path) -> None:
    """The relay with the role of the API cannot read the outbox: it says so, and nothing is lost."""
    with Deployment(amqp_url, roles.database_url, tmp_path, USER_SERVICE_URL="") as deployment:
        deployment.declare_topology()
        deployment.start("api", DATABASE_URL=roles.url("api"))
        wrong = deployment.start("publishers", DATABASE_URL=roles.url("api"))[0]
        deployment.wait_until_healthy("api")
        posted = deployment.client.post_order(EXAMPLE, headers={"Prefer": "respond-async"})

        deployment.wait_until(lambda: "permission denied for table outbox" in wrong.log, "the refusal")
        assert posted.status == 202
        assert deployment.records.outbox_types() == ["OrderCreated"]
        assert "S3cret" not in wrong.log
