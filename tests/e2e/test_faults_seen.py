"""Faults of running processes: what the probes answer, and the cause that doctor or explain names."""

import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import pytest

from order_service.contract.topology import MENU, PAYMENT, QUORUM
from sandbox.servers.broker import Broker
from tests.e2e.client import RESPOND_ASYNC, order_of
from tests.e2e.deployment import Deployment
from tests.e2e.test_operations import OURS, Listeners
from tests.integration import core
from tests.integration.core import Wire

#: The status of /readyz by process; None: no answer.
Readiness = Mapping[str, int | None]
READY: Readiness = dict.fromkeys(OURS, 200)
WITHOUT_BROKER: Readiness = {**READY, "consumers": 503, "publishers": 503}
WITHOUT_DATABASE: Readiness = dict.fromkeys(OURS, 503)


@dataclass(frozen=True)
class Fault:
    """How a fault comes about and what is seen of it; `cause` lasts for its block, if it has one."""

    text: str
    ready: Readiness = field(default_factory=lambda: READY)
    cause: Callable[[Deployment], AbstractContextManager[None] | None] = lambda _: None
    not_started: str = ""
    #: What replaces login, host and port of the broker's URL.
    broker: str = ""
    command: str = "doctor"
    #: What the publishers export then; an alert asks for it.
    exported: str = ""
    database: str = "sqlite"


def queue_without_consumer(deployment: Deployment) -> None:
    Wire(deployment.amqp_url).listen("order.created", queue="menu-service.orders")


def poison_message(deployment: Deployment) -> None:
    Wire(deployment.amqp_url).send_raw("menu.reserved", b"{", type="MenuReserved")


def queue_deleted(deployment: Deployment) -> None:
    with Wire(deployment.amqp_url).channel() as channel:
        channel.queue_delete(PAYMENT.name)


def drifted_arguments(deployment: Deployment) -> None:
    with Wire(deployment.amqp_url).channel() as channel:
        channel.queue_delete(MENU.dead_letters)
        channel.queue_declare(MENU.dead_letters, durable=True, arguments=QUORUM | {"x-max-length": 5})
        channel.queue_bind(MENU.dead_letters, "order-service.dead-letters")


@contextmanager
def consumers_stopped(deployment: Deployment) -> Iterator[None]:
    [consumers] = [each for each in deployment.processes if each.name == "consumers"]
    os.killpg(consumers.pid, signal.SIGSTOP)
    poison_message(deployment)
    yield
    os.killpg(consumers.pid, signal.SIGCONT)


FAULTS = {
    "broker down": Fault("broker     unreachable: BrokerUnreachable", WITHOUT_BROKER, broker="127.0.0.1:1"),
    "broker refuses": Fault("refuses this user", WITHOUT_BROKER, broker="nobody:wrong@"),
    "menu silent": Fault("menu-service.orders: 0 consumers", cause=queue_without_consumer, not_started="menu"),
    "payment silent": Fault("payment: no queue is bound to payment.requested", not_started="payment"),
    "poison message": Fault("See `dlq list`.", cause=poison_message, not_started="menu", command="explain"),
    "queue deleted": Fault("order-service.payment does not exist", {**READY, "consumers": None}, queue_deleted),
    "drifted arguments": Fault(
        "order-service.menu.dlq has other arguments",
        cause=drifted_arguments,
        exported='order_service_queues_drifted{queue="order-service.menu.dlq"} 1.0',
    ),
    "database locked": Fault(
        "locked by another program", WITHOUT_DATABASE, lambda each: core.database_unreachable(each.database_url)
    ),
    "database read-only": Fault(
        "read-only", WITHOUT_DATABASE, lambda each: core.database_read_only(each.database_url), database="postgresql"
    ),
    "consumers stopped": Fault("and ack none", {**READY, "consumers": None}, consumers_stopped),
    "relay stopped": Fault(
        "1 OrderCreated wait in the outbox", {**READY, "publishers": None}, not_started="publishers"
    ),
}


#: These take longest, and are tried with `make test-field`; doctor's part of them is in test_doctor.py, too.
SLOW = {
    "consumers stopped", "payment silent", "poison message", "drifted arguments", "database locked", "database read-only",
    "relay stopped",
}  # fmt: skip


def _marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.field] if name in SLOW else []


@pytest.mark.parametrize(
    ("fault", "database_url"),
    [pytest.param(fault, fault.database, id=name, marks=_marks(name)) for name, fault in FAULTS.items()],
    indirect=["database_url"],
)
def test_fault_is_seen_by_the_probes_and_its_cause_is_named(
    deployment: Deployment, broker: Broker, fault: Fault
) -> None:
    # given: an order that waits for the menu
    listeners = Listeners()
    settings = {"RABBITMQ_MANAGEMENT_URL": broker.management_url or ""}
    if fault.broker:
        whole = r"//.*@" if fault.broker.endswith("@") else r"//[^/]*"
        settings = {
            "RABBITMQ_URL": re.sub(whole, f"//{fault.broker}", deployment.amqp_url),
            "RABBITMQ_MANAGEMENT_URL": "http://127.0.0.1:1",
        }
    deployment.env |= settings
    deployment.prepare()
    deployment.start(*{"users", "menu", "payment"} - {fault.not_started})
    for name in OURS:
        if name != fault.not_started:
            deployment.start(name.lower(), **listeners.setting(name), **settings)
    deployment.wait_until_healthy("users", "api")
    order = deployment.client.post_order(order_of(1), headers=RESPOND_ASYNC).body["id"]
    if not fault.broker:
        ready = {**READY, fault.not_started: None} if fault.not_started in OURS else READY
        deployment.wait_until(lambda: readiness(listeners) == ready, "the processes to be ready")

    # when
    with fault.cause(deployment) or nullcontext():
        # then
        deployment.wait_until(
            lambda: readiness(listeners) == fault.ready, f"{fault.ready}, last: {readiness(listeners)}", seconds=60
        )
        command = [fault.command, *([str(order)] if fault.command == "explain" else [])]
        deployment.wait_until(lambda: fault.text in deployment.command(*command).stdout, fault.text, seconds=60)
        if fault.exported:
            deployment.wait_until(
                lambda: listeners.answers("publishers", "/metrics", 200, fault.exported), fault.exported
            )
        # A restart would not help against any of these.
        answering = [name for name, status in fault.ready.items() if status]
        assert {name: listeners.get(name, "/healthz")[0] for name in answering} == dict.fromkeys(answering, 200)


def readiness(listeners: Listeners) -> Readiness:
    found: dict[str, int | None] = {}
    for name in OURS:
        try:
            found[name] = listeners.get(name, "/readyz", timeout=8)[0]
        except OSError:
            found[name] = None
    return found
