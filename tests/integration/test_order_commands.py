"""The commands about orders, on both databases: explain, timeline, stuck, outbox and compensations retry."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

from order_service import handlers
from order_service.cli.main import main
from order_service.contract.topology import MENU
from order_service.domain.order import State
from order_service.storage.bulk import Take
from order_service.storage.database import Database
from order_service.storage.tables import outbox
from sandbox.servers.broker import Broker
from tests.http_service import Service
from tests.integration import core
from tests.integration.core import SQLITE_ONLY, Start, Wire, completed, rejected, released, reserved
from tests.polling import wait_until

pytestmark = pytest.mark.usefixtures("own_logging")

Command = Callable[..., Result]
#: A management API that does not exist.
UNREACHABLE = "http://127.0.0.1:1"


@pytest.fixture
def command(database: Database) -> Command:
    """Runs `python -m order_service` on this test's database, without a broker unless one is given."""
    env = {
        "DATABASE_URL": database.url,
        "RABBITMQ_URL": core.UNREACHABLE_BROKER,
        "RABBITMQ_MANAGEMENT_URL": UNREACHABLE,  # and not one that this machine happens to run
    }
    return lambda *arguments, **more: CliRunner(env=env | more).invoke(main, arguments)


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def causes(result: Result) -> dict[int, str]:
    return {each["order_id"]: each["cause"] for each in json.loads(result.stdout)}


def remind(database: Database) -> None:
    """Send the reminders that are due, of which the broker confirms each."""
    core.pass_deadlines(database, datetime.now(UTC))
    core.clear_outbox(database)


def test_stuck_orders_are_listed_with_their_causes(database: Database, command: Command) -> None:
    # given: one that is on time, one whose menu is silent, one without the deadlines process
    [silent] = core.place_sent(database, now=ago(35))
    remind(database)
    [unpaid] = core.place_sent(database, now=ago(500))
    core.apply(database, reserved(unpaid), now=ago(499))
    core.clear_outbox(database)
    remind(database)
    core.place_sent(database)
    [overdue] = core.place_sent(database, now=ago(300))
    core.cancel(database, 3)
    core.place_sent(database, now=ago(1))
    core.clear_outbox(database)
    none = command("stuck", "--json")

    # when
    [unsent] = core.place(database, now=ago(20))
    found, text = command("stuck", "--json"), command("stuck")

    # then
    assert (none.exit_code, found.exit_code, text.exit_code) == (1, 1, 1)
    assert causes(found) == {silent: "silent", unpaid: "silent", overdue: "overdue", unsent: "unsent"}
    assert f"unsent    Order {unsent} waits for the Menu Service" in text.stdout
    core.note_returned(database)
    assert causes(command("stuck", "--json"))[unsent] == "returned"


@pytest.fixture(params=[True, False], ids=["management", "broker alone"])
def asking(request: pytest.FixtureRequest, amqp_url: str, broker: Broker) -> dict[str, str]:
    """The environment of a command that asks the management API, or the broker because that API is unreachable."""
    management = str(broker.management_url if request.param else UNREACHABLE)
    return {"RABBITMQ_URL": amqp_url, "RABBITMQ_MANAGEMENT_URL": management}


@SQLITE_ONLY
def test_answer_that_the_consumers_do_not_process_is_not_missed_from_the_sibling(
    database: Database, command: Command, wire: Wire, asking: dict[str, str]
) -> None:
    # given: both siblings seem to be silent; replies of one wait in our queue
    core.place_sent(database, now=ago(500))
    core.apply(database, reserved(1), now=ago(499))
    core.clear_outbox(database)
    core.place_sent(database, now=ago(35))
    remind(database)
    wire.send_raw("menu.reserved", b"{}")

    # when
    def found() -> dict[int, str]:
        return causes(command("stuck", "--json", **asking))

    # then
    wait_until(lambda: found() == {1: "silent", 2: "unread"}, "the figures of the queue")
    explained = command("explain", "2", **asking)
    assert explained.exit_code == 1
    assert "the answer may be among the messages that the consumers do not process" in explained.stdout
    assert "Menu Service has not" not in explained.stdout
    assert causes(command("stuck", "--json")) == {1: "silent", 2: "silent"}


def test_id_that_is_no_number_is_named_with_what_to_give(command: Command) -> None:
    wrong = [command(*each) for each in (["explain", "x"], ["timeline", "0"], ["dlq", "replay", "--order", "1.5"])]
    unknown = command("timeline", "99")

    assert [each.exit_code for each in (*wrong, unknown)] == [2, 2, 2, 2]
    for given, each in zip(("'x'", "'0'", "'1.5'"), wrong, strict=True):
        assert f"{given} is no order's id; give a whole number from 1 to 2147483647" in each.stderr
    assert "no order has the id 99; check the id, and that DATABASE_URL names its database" in unknown.stderr


@SQLITE_ONLY
def test_locked_database_is_named_with_what_to_look_for(
    database: Database, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("order_service.cli.open_database.LOCK_SECONDS", 0.2)
    core.shorten_lock_wait(monkeypatch)
    with core.database_unreachable(database.url):
        found = command("outbox", "retry")

    assert found.exit_code == 2
    assert "DATABASE_URL: the database is locked by another program" in found.stderr
    assert "stop the program that holds it: fuser -v /" in found.stderr


def test_nothing_is_stuck(database: Database, command: Command) -> None:
    core.place(database, now=ago(1))

    found = command("stuck")

    assert (found.exit_code, found.stdout, found.stderr) == (0, "", "0 stuck\n")


def test_explanation_is_complete_without_a_broker(database: Database, command: Command) -> None:
    [order_id, other] = core.place_sent(database, 2, now=ago(12))
    core.apply(database, reserved(other), now=ago(5))
    core.clear_outbox(database)

    text, facts, unknown = command("explain", "1"), command("explain", "1", "--json"), command("explain", "9")

    assert (text.exit_code, facts.exit_code, unknown.exit_code) == (0, 0, 2)
    assert f"Order {order_id} waits for the Menu Service to reserve its dishes, since" in text.stdout
    assert "last answered an order" in text.stdout
    assert "The broker could not be asked: BrokerUnreachable" in text.stdout
    found = json.loads(facts.stdout)
    assert (found["cause"], found["waits_for"], found["queues"]) == ("on_time", "menu", [])
    assert found["last_answer_at"] is not None
    assert "no order has the id 9" in unknown.stderr


@SQLITE_ONLY
def test_explanation_tells_whether_the_other_side_consumes(
    database: Database, command: Command, wire: Wire, asking: dict[str, str]
) -> None:
    with_management = asking["RABBITMQ_MANAGEMENT_URL"] != UNREACHABLE
    core.place_sent(database, now=ago(12))
    wire.listen("order.#", queue="kitchen" if with_management else "menu-service.orders")
    wire.send_raw("order.created", b"{}")
    wire.send_raw("menu.reserved", b"{}")

    def shown() -> dict[str, Any]:
        found = command("explain", "1", "--json", **asking)
        return {each["name"]: (each["consumers"], each["ready"]) for each in json.loads(found.stdout)["queues"]}

    assert set(shown()) == {"kitchen" if with_management else "menu-service.orders", MENU.name, MENU.dead_letters}
    if not with_management:
        assert shown()["menu-service.orders"] == (0, 1)
        text = command("explain", "1", **asking).stdout
        assert "queue menu-service.orders: 0 consumers, 1 ready." in text


def test_explanation_over_http_is_in_the_language_of_the_client(service: Service) -> None:
    order_id = service.order_in(State.AWAITING_PAYMENT)

    indonesian, english = (
        service.get(f"/orders/{order_id}/explain", headers={"Accept-Language": each}) for each in ("id", "en")
    )

    assert "menunggu pembayaran sebesar Rp38.000" in indonesian.json["explanation"]
    assert "waits for the payment of Rp38.000" in english.json["explanation"]
    assert english.json["cause"] == "on_time"
    assert english.json["expires_at"] > english.json["next_reminder_at"] > english.json["since"]
    assert "Accept-Language" in english.headers["Vary"]


def test_timeline_has_request_events_replies_states_and_compensations(database: Database, command: Command) -> None:
    # given: an order that was paid twice and cancelled between, whose release is confirmed
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id))
    core.clear_outbox(database)
    core.cancel(database, order_id)
    core.apply(database, completed(order_id))
    release, refund = sorted(core.compensation_rows(database), key=lambda row: row.type, reverse=True)
    core.apply(database, released(order_id, release.id))

    # when
    done, text = command("timeline", str(order_id), "--json"), command("timeline", str(order_id))

    # then
    assert (done.exit_code, text.exit_code, command("timeline", "99").exit_code) == (0, 0, 2)
    entries = [(each["kind"], each["type"]) for each in json.loads(done.stdout)]
    assert entries == [
        ("request", "OrderPlaced"), ("outbox", "OrderCreated"), ("confirmed", "OrderCreated"),
        ("reply", "MenuReserved"), ("outbox", "PaymentRequested"), ("confirmed", "PaymentRequested"),
        ("request", "Cancel"), ("outbox", "OrderCancelled"), ("waiting", "OrderCancelled"),
        ("reply", "PaymentCompleted"), ("reply", "StockReleased"),
        ("outbox", "StockReleaseRequested"), ("waiting", "StockReleaseRequested"),
        ("compensation", "StockReleaseRequested"),
        ("outbox", "RefundRequested"), ("waiting", "RefundRequested"), ("compensation", "RefundRequested"),
    ]  # fmt: skip
    for expected in ("awaiting_menu -> awaiting_payment", "pay-1", refund.id, "cancelled: confirmed by the sibling"):
        assert expected in text.stdout


def test_outbox_is_listed_and_retried(database: Database, command: Command, wire: Wire, relaying: Start) -> None:
    # given
    core.place(database, 2, now=ago(60))
    with database.writing() as connection:
        connection.execute(outbox.update().values(attempts=4, due_at=ago(-3600)))

    # when
    listed, text, retried = command("outbox", "list", "--json"), command("outbox", "list"), command("outbox", "retry")

    # then
    [row] = json.loads(listed.stdout)
    assert (row["type"], row["routing_key"], row["rows"], row["failed"], row["attempts"]) == (
        "OrderCreated", "order.created", 2, 2, 4,
    )  # fmt: skip
    assert (listed.exit_code, retried.exit_code) == (1, 0)
    assert "OrderCreated to restaurant.events order.created: 2, up to 1 min old, 2 failed up to 4 times" in text.stdout
    assert retried.stdout == "2 messages tried again now\n"
    wire.listen("order.created")
    with relaying():
        wait_until(lambda: core.count(database, outbox) == 0, "both to be published")
    assert command("outbox", "list").exit_code == 0
    nothing = command("outbox", "retry")
    assert (nothing.exit_code, nothing.stdout) == (1, "0 messages tried again now\n")


def test_ids_of_a_sender_imitate_no_line_and_drive_no_terminal(database: Database, command: Command) -> None:
    odd = "\x1b[2J\nFAKE"
    [order_id] = core.place_sent(database, now=ago(5))
    core.apply(database, rejected(order_id), completed(order_id, odd, id=odd), now=ago(4))

    printed = command("compensations", "list").stdout + command("timeline", str(order_id)).stdout

    assert printed.count(r"\x1b[2J\nFAKE") == 2
    assert not re.search(r"\x1b|^FAKE", printed, re.MULTILINE)


def test_compensation_is_requested_again_at_once(database: Database, command: Command) -> None:
    [order_id] = core.place_sent(database, now=ago(5))
    core.apply(database, completed(order_id), rejected(order_id), now=ago(4))
    core.clear_outbox(database)
    [refund] = core.compensation_rows(database)

    retried, unknown = command("compensations", "retry", refund.id), command("compensations", "retry", "nothing")

    assert (retried.exit_code, retried.stdout, unknown.exit_code) == (0, "1 request repeated now\n", 2)
    assert "no release or refund has the id nothing; `compensations list` has them" in unknown.stderr
    with core.unit_of_work(database, now=datetime.now(UTC)) as work:
        handlers.repeat_compensations(work, Take(10))
    assert [event["id"] for event in core.unsent_events(database, "RefundRequested")] == [refund.id]


def test_database_that_cannot_be_used_is_exit_code_2(command: Command) -> None:
    commands = (["explain", "1"], ["timeline", "1"], ["stuck"], ["outbox", "list"], ["outbox", "retry"],
                ["compensations", "list"], ["compensations", "retry"], ["compensations", "confirm", "x"])  # fmt: skip

    codes = [command(*each, DATABASE_URL="sqlite:////nowhere/orders.db").exit_code for each in commands]

    assert codes == [2] * len(commands)
