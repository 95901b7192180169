"""`python -m order_service doctor`: each fault of an installation is named, with what mends it."""

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pika
import psycopg
import pytest
import sqlalchemy as sa
import time_machine
from click.testing import CliRunner, Result
from pika.adapters.blocking_connection import BlockingChannel

from order_service.cli.main import main
from order_service.config import Settings
from order_service.contract.topology import EXCHANGE, MENU, PAYMENT, PAYMENT_EXCHANGE, QUORUM
from order_service.management import Management
from order_service.storage.database import Database
from sandbox.servers.broker import Broker
from tests.integration import core
from tests.integration.core import Eventually, Wire, reserved

pytestmark = pytest.mark.usefixtures("own_logging")

MENU_QUEUE, PAYMENT_QUEUE = "menu-service.orders", "payment-service.orders"


@dataclass
class Installation:
    """A database and a broker; someone consumes each queue, and acks nothing."""

    database: Database
    wire: Wire
    management_url: str
    consuming: BlockingChannel
    env: dict[str, str] = field(default_factory=dict)

    def examine(self, *options: str) -> Result:
        return CliRunner(env=self.env).invoke(main, ["doctor", *options])

    def failures(self) -> dict[str, list[dict[str, Any]]]:
        """The checks that failed, by name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for each in json.loads(self.examine("--json").stdout):
            if each["status"] == "failed":
                found.setdefault(each["check"], []).append(each)
        return found

    def stop_consuming(self, queue: str) -> None:
        self.consuming.basic_cancel(queue)


@pytest.fixture
def installation(
    database: Database, wire: Wire, amqp_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Installation]:
    monkeypatch.setattr("order_service.cli.doctor.LOCK_SECONDS", 1)
    monkeypatch.setattr("order_service.cli.broker_checks.FIGURES_SECONDS", 1)
    core.shorten_lock_wait(monkeypatch)
    assert broker.management_url
    wire.listen("order.created", "menu.release_requested", queue=MENU_QUEUE)
    wire.listen("payment.requested", queue=PAYMENT_QUEUE)
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as consuming:
        channel = consuming.channel()
        for queue in (MENU.name, PAYMENT.name, MENU_QUEUE, PAYMENT_QUEUE):
            channel.basic_consume(queue, lambda *_: None, consumer_tag=queue)
        env = {"DATABASE_URL": database.url, "RABBITMQ_URL": amqp_url, "RABBITMQ_MANAGEMENT_URL": broker.management_url}
        yield Installation(database, wire, broker.management_url, channel, env)


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


# The faults: each lasts for the length of its block.

Fault = Callable[[Installation], AbstractContextManager[object]]


def lasting(cause: Callable[[Installation], object]) -> Fault:
    """A fault that needs no end."""

    @contextlib.contextmanager
    def fault(installation: Installation) -> Iterator[None]:
        cause(installation)
        yield

    return fault


def broker_down(at: Installation) -> None:
    at.env["RABBITMQ_URL"] = core.UNREACHABLE_BROKER
    at.env["RABBITMQ_MANAGEMENT_URL"] = "http://127.0.0.1:1"
    core.place(at.database, now=ago(12))


def broker_refuses(at: Installation) -> None:
    at.env["RABBITMQ_URL"] = at.env["RABBITMQ_URL"].replace("guest:guest@", "guest:wrong@")


def no_menu(at: Installation) -> None:
    at.stop_consuming(MENU_QUEUE)


def silent_menu(at: Installation) -> None:
    core.place_sent(at.database, now=ago(35))
    core.pass_deadlines(at.database, datetime.now(UTC))
    core.clear_outbox(at.database)


def no_queue_of_the_payment_service(at: Installation) -> None:
    with at.wire.channel() as channel:
        channel.queue_delete(PAYMENT_QUEUE)


def queue_deleted(at: Installation) -> None:
    with at.wire.channel() as channel:
        channel.queue_delete(PAYMENT.name)


def binding_deleted(at: Installation) -> None:
    with at.wire.channel() as channel:
        channel.queue_unbind(PAYMENT.name, PAYMENT_EXCHANGE, "payment.failed")


def drifted_arguments(at: Installation) -> None:
    with at.wire.channel() as channel:
        channel.queue_delete(PAYMENT.dead_letters)
        channel.queue_declare(PAYMENT.dead_letters, durable=True, arguments=QUORUM | {"x-max-length": 5})
        channel.queue_bind(PAYMENT.dead_letters, "order-service.dead-letters")


def exchange_deleted(at: Installation) -> None:
    with at.wire.channel() as channel:
        channel.exchange_delete(EXCHANGE)


def consumers_ended(at: Installation) -> None:
    at.stop_consuming(MENU.name)


def consumers_stopped(at: Installation) -> None:
    """As by SIGSTOP: they have a message, and never ack it."""
    at.wire.send(reserved(1))
    at.consuming.connection.process_data_events(1)


def consumers_stopped_for_long(at: Installation) -> None:
    silent_menu(at)
    consumers_stopped(at)


def relay_stopped(at: Installation) -> None:
    core.place(at.database, now=ago(12))


def event_returned(at: Installation) -> None:
    core.place(at.database, now=ago(12))
    core.note_returned(at.database)


def deadlines_stopped(at: Installation) -> None:
    core.place_sent(at.database, now=ago(300))


def no_file(at: Installation) -> None:
    at.env["DATABASE_URL"] = at.database.url.replace("orders.db", "mistyped.db")


def not_migrated(at: Installation) -> None:
    at.env["DATABASE_URL"] = at.database.url.replace("orders.db", "new.db")
    Database(at.env["DATABASE_URL"]).dispose()  # creates the file


def clock_off(at: Installation) -> AbstractContextManager[object]:
    return time_machine.travel(datetime.now(UTC) + timedelta(minutes=5, seconds=30), tick=True)


@contextlib.contextmanager
def table_locked(at: Installation) -> Iterator[None]:
    with psycopg.connect(at.database.url) as other:
        other.execute("LOCK TABLE orders")
        yield


SQLITE, POSTGRESQL = "sqlite", "postgresql"
#: Which fault, on which database: the checks that fail, and what one of them says.
FAULTS: list[tuple[Fault, str, set[str], str]] = [
    (lasting(broker_down), SQLITE, {"broker"}, "unreachable: BrokerUnreachable"),
    (lasting(broker_refuses), SQLITE, {"broker"}, "refuses this user"),
    (lasting(no_menu), SQLITE, {"siblings"}, "menu: queue menu-service.orders: 0 consumers"),
    (lasting(silent_menu), SQLITE, {"siblings"}, "menu: no answer to 1 order, sent to it more than once"),
    (lasting(no_queue_of_the_payment_service), SQLITE, {"siblings"}, "payment: no queue is bound to payment.requested"),
    (lasting(queue_deleted), SQLITE, {"queue"}, "order-service.payment does not exist"),
    (lasting(binding_deleted), SQLITE, {"queue"}, "is not bound to payment.failed of payment-service.events"),
    (lasting(drifted_arguments), SQLITE, {"queue"}, "order-service.payment.dlq has other arguments"),
    (lasting(exchange_deleted), SQLITE, {"rights", "queue", "siblings"}, "cannot publish to restaurant.events"),
    (lasting(consumers_ended), SQLITE, {"consumers"}, "none is running; queue order-service.menu: 0 consumers"),
    (lasting(consumers_stopped), SQLITE, {"consumers"}, "hold 1 message of order-service.menu and ack none"),
    (lasting(consumers_stopped_for_long), SQLITE, {"consumers"}, "1 order without an answer, which may be in queue"),
    (lasting(relay_stopped), SQLITE, {"relay"}, "1 OrderCreated wait in the outbox, up to 1"),
    (lasting(relay_stopped), POSTGRESQL, {"relay"}, "1 OrderCreated wait in the outbox, up to 1"),
    (lasting(event_returned), SQLITE, {"relay"}, "OrderCreated to order.created: returned or refused, attempts: 1"),
    (lasting(deadlines_stopped), POSTGRESQL, {"deadlines"}, "those of 1 order have passed"),
    (lasting(no_file), SQLITE, {"database"}, "there is no file"),
    (lasting(not_migrated), SQLITE, {"database"}, "the database is at migration none"),
    (lambda at: core.database_unreachable(at.database.url), SQLITE, {"database"}, "locked by another program"),
    (lambda at: core.database_unreachable(at.database.url), POSTGRESQL, {"database"}, "cannot be used"),
    (table_locked, POSTGRESQL, {"database"}, "locked by another program"),
    (lambda at: core.database_read_only(at.database.url), POSTGRESQL, {"database"}, "read-only"),
    (clock_off, POSTGRESQL, {"clock"}, "this host's clock is 5 min ahead of that of the database"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "database_url", "checks", "text"), FAULTS, indirect=["database_url"],
                         ids=[f"{each[1]}: {each[3]}" for each in FAULTS])  # fmt: skip
def test_fault_is_named_with_what_mends_it(
    installation: Installation, eventually: Eventually, fault: Fault, checks: set[str], text: str
) -> None:
    with fault(installation):

        def named() -> dict[str, list[dict[str, Any]]] | None:
            # The figures of the management API are up to 5 s old.
            found = installation.failures()
            return found if found.keys() == checks and text in json.dumps(found) else None

        found = eventually(named, text, seconds=30, details=lambda: json.dumps(installation.failures(), indent=1))

        assert all(each["fix"] for failures in found.values() for each in failures)
        assert installation.examine().exit_code == 1


@core.SQLITE_ONLY
def test_healthy_installation_has_no_failure(installation: Installation) -> None:
    done = installation.examine()

    assert done.exit_code == 0, done.output
    assert "failed" not in done.stdout
    assert "skipped" not in done.stdout


@core.SQLITE_ONLY
def test_without_the_management_api_all_but_bindings_and_the_broker_s_clock_is_checked(
    installation: Installation,
) -> None:
    installation.env["RABBITMQ_MANAGEMENT_URL"] = "http://127.0.0.1:1"

    whole = installation.examine()
    drifted_arguments(installation)

    assert whole.exit_code == 0, whole.output
    assert next(line for line in whole.stdout.splitlines() if line.startswith("skipped")).split()[1] == "broker"
    [failure] = installation.failures()["queue"]
    assert "has other arguments" in failure["text"]
    assert failure["fix"] == "run `python -m order_service topology --recreate`, which keeps its messages"


@core.SQLITE_ONLY
def test_examination_changes_nothing(installation: Installation, management: Any) -> None:
    core.place(installation.database)
    before = core.rows(installation.database, sa.table("outbox", sa.column("id"), sa.column("attempts")))

    installation.examine()

    after = core.rows(installation.database, sa.table("outbox", sa.column("id"), sa.column("attempts")))
    assert after == before
    assert installation.wire.depth() == 0
    assert installation.wire.take(MENU_QUEUE) == []


def test_queues_are_found_by_any_binding_of_a_topic_exchange(wire: Wire, amqp_url: str, broker: Broker) -> None:
    # given: a key for which a regular expression would take years among them
    bound = {
        "all": "#", "any": "*.created", "more": "order.#.created.#", "words": "order.created", "first": "order.#",
        "fewer": "#.#.order.#.*",
    }  # fmt: skip
    other = {"hash": "order." + "#" * 40 + "x", "one": "*", "three": "*.*.*", "case": "Order.created"}
    with wire.channel() as channel:
        for name, key in (bound | other).items():
            channel.queue_declare(name, exclusive=True)
            channel.queue_bind(name, EXCHANGE, key)

        # when
        management = Management(Settings(rabbitmq_url=amqp_url, management_url=broker.management_url))
        found = management.bound(EXCHANGE, "order.created")

    # then
    assert found == sorted(bound)
