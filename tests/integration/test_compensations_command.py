"""`python -m order_service compensations`, and a Payment Service that only speaks HTTP, on both databases."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from click.testing import CliRunner, Result

from order_service import handlers, process
from order_service.cli.main import main
from order_service.domain.messages import ReportPaid
from order_service.domain.order import State
from order_service.process import Event
from order_service.storage.bulk import Take
from order_service.storage.database import Database
from tests import builders
from tests.integration import core
from tests.integration.core import LATER, completed, rejected, reserved

pytestmark = pytest.mark.usefixtures("own_logging")

Command = Callable[..., Result]
HTTP_ONLY = replace(builders.policy(), payment_events=False)


@pytest.fixture
def command(database: Database, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `python -m order_service compensations` on this database."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    return lambda *arguments: CliRunner().invoke(main, ["compensations", *arguments])


def apply(database: Database, *replies: Any) -> None:
    with core.unit_of_work(database, policy=HTTP_ONLY) as work:
        assert handlers.apply_replies(work, replies) == []


def listed(command: Command) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(command("list", "--json").stdout)
    return found


def test_no_payment_is_requested_of_a_payment_service_without_events_and_the_order_expires(database: Database) -> None:
    [order_id] = core.place_sent(database)

    apply(database, reserved(order_id))

    assert core.states(database, [order_id]) == {State.AWAITING_PAYMENT}
    assert core.unsent_events(database) == []
    with core.unit_of_work(database, now=LATER, policy=HTTP_ONLY) as work:
        handlers.pass_deadlines(work, Take(10))
    order = core.get(database, order_id)
    assert (order.state, order.reason) == (State.FAILED, "expired")


def test_refund_of_a_payment_reported_over_http_is_left_to_the_operator_and_logged_once(
    database: Database, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: paid before the menu rejects
    logged: list[Event] = []
    monkeypatch.setattr(process, "log_events", lambda _, events: logged.extend(events))
    [order_id] = core.place_sent(database)
    with core.unit_of_work(database, policy=HTTP_ONLY) as work:
        handlers.change_order(work, order_id, ReportPaid())

    # when
    apply(database, rejected(order_id))
    with core.unit_of_work(database, now=LATER, policy=HTTP_ONLY) as work:
        assert handlers.repeat_compensations(work, Take(10)) == []

    # then
    assert core.unsent_events(database, "RefundRequested") == []
    [refund] = core.compensation_rows(database)
    fields = {"order_id": order_id, "refund_id": refund.id, "payment_id": None, "amount": None,
              "reason": "out_of_stock"}  # fmt: skip
    errors = [event for event in logged if event[0] == logging.ERROR]
    assert errors == [(logging.ERROR, "payment must be refunded manually", fields)]
    [shown] = listed(command)
    assert (shown["id"], shown["order_id"], shown["type"]) == (refund.id, order_id, "RefundRequested")
    assert (shown["state"], shown["attempts"]) == ("manual", 0)


def test_refund_that_was_requested_before_the_events_were_turned_off_is_left_to_the_operator(
    database: Database, command: Command
) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, completed(order_id), rejected(order_id))
    core.clear_outbox(database)
    assert [each["state"] for each in listed(command)] == ["requested"]

    for _ in range(2):
        with core.unit_of_work(database, now=LATER, policy=HTTP_ONLY) as work:
            handlers.repeat_compensations(work, Take(10))

    assert core.unsent_events(database, "RefundRequested") == []
    assert [(each["state"], each["attempts"]) for each in listed(command)] == [("manual", 1)]


def test_confirmed_refund_is_no_longer_listed_and_is_in_the_history(database: Database, command: Command) -> None:
    # given
    ids = core.place_sent(database, 2)
    apply(database, *[reply for id in ids for reply in (completed(id, amount=Decimal("1.50")), rejected(id))])
    first, second = listed(command)
    assert first["amount"] == "1.5"

    # when
    done = [command("confirm", first["id"]) for _ in range(2)]

    # then
    assert [result.exit_code for result in done] == [0, 0]
    assert done[0].stdout == f"Confirmed: RefundRequested {first['id']} of order {ids[0]}\n"
    assert listed(command) == [second]
    assert core.history_of(database, ids[0])[-1] == ("PaymentRefunded", f"manual {first['id']}")


def test_release_by_hand_is_confirmed_with_an_http_only_menu(
    database: Database, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MENU_SERVICE_URL", "http://localhost:1")
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id))
    core.cancel(database, order_id)
    [release] = listed(command)

    text = command("list").stdout
    done = command("confirm", release["id"])

    assert text == f"{release['id']}  manual       order {order_id}: StockReleaseRequested R1, cancelled\n"
    assert done.exit_code == 0, done.output
    assert listed(command) == []
    with core.unit_of_work(database, now=LATER) as work:
        assert handlers.repeat_compensations(work, Take(10)) == []


def test_unknown_id_is_named(database: Database, command: Command) -> None:
    unknown = command("confirm", "nothing")

    assert (unknown.exit_code, unknown.stderr) == (
        2,
        "Error: no release or refund has the id nothing; `compensations list` has them\n",
    )


def test_release_that_stays_unconfirmed_is_listed_as_such(database: Database, command: Command) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, reserved(order_id))
    core.cancel(database, order_id)
    core.clear_outbox(database)
    for _ in range(9):
        [row] = core.compensation_rows(database)
        with core.unit_of_work(database, now=row.due_at) as work:
            handlers.repeat_compensations(work, Take(10))
        core.clear_outbox(database)

    assert [(each["state"], each["attempts"]) for each in listed(command)] == [("unconfirmed", 10)]
