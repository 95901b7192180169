"""What is logged about an order: one line for each change, once it is committed."""

import logging
from collections.abc import Mapping
from datetime import timedelta

import pytest

from consumers.batch import process_batch
from order_service import handlers, process
from order_service.contract.envelope import Delivery
from order_service.contract.topology import MENU
from order_service.domain.messages import ReportPaid
from order_service.process import Event
from order_service.storage.database import Database
from tests import builders
from tests.builders import NOW
from tests.integration import core

TRACE = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[Event]:
    caplog.set_level(logging.INFO)
    events: list[Event] = []
    monkeypatch.setattr(process, "log_events", lambda _, new: events.extend(new))
    return events


def shown(event: Event) -> tuple[int, str, object, object]:
    level, phrase, fields = event
    return level, phrase, fields.get("type"), fields.get("to")


def test_an_order_that_expires_after_its_reminders_leaves_a_line_for_each_step(
    database: Database, events: list[Event]
) -> None:
    # when
    [order_id] = core.place_sent(database, **TRACE)
    for hour in range(1, 5):
        core.pass_deadlines(database, NOW + timedelta(hours=hour) / 60)
        core.clear_outbox(database)
    [release] = core.compensation_rows(database)
    core.apply(database, core.released(order_id, release.id, id="m1"))

    # then
    reminder = (logging.INFO, "reminder sent", "MenuReminder", None)
    assert [shown(event) for event in events] == [
        (logging.INFO, "order placed", None, "awaiting_menu"),
        reminder,
        reminder,
        reminder,
        (logging.WARNING, "order changed", "MenuDeadline", "failed"),
        (logging.INFO, "compensation requested", "StockReleaseRequested", None),
        (logging.INFO, "compensation confirmed", "StockReleased", None),
    ]
    expired = events[4][2]
    assert (expired["from"], expired["reason"]) == ("awaiting_menu", "expired")
    assert events[5][2]["message_id"] == events[6][2]["compensation_id"] == release.id
    assert events[6][2]["message_id"] == "m1"
    ids = {(fields["order_id"], fields["correlation_id"], fields["trace_id"]) for _, _, fields in events}
    assert ids == {(order_id, str(order_id), "4bf92f3577b34da6a3ce929d0e0e4736")}


def test_a_dead_letter_is_one_line_with_its_reason(database: Database, events: list[Event]) -> None:
    [order_id] = core.place_sent(database)
    body = builders.event(core.reserved(order_id)).replace(b"18000.0", b'"much"')
    properties: Mapping[str, object] = {"correlation_id": "c1", "headers": TRACE}
    events.clear()

    process_batch(database, builders.policy(), [Delivery(MENU.name, "menu.reserved", body, properties)])

    [(level, phrase, fields)] = events
    assert (level, phrase, fields["queue"]) == (logging.WARNING, "message dead-lettered", MENU.name)
    assert (fields["order_id"], fields["type"], fields["error"]) == (order_id, "MenuReserved", "invalid")
    assert (fields["correlation_id"], fields["trace_id"]) == ("c1", "4bf92f3577b34da6a3ce929d0e0e4736")
    assert "data.items" in str(fields["reason"])


def test_what_changes_nothing_or_is_rolled_back_is_not_logged(database: Database, events: list[Event]) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, core.reserved(order_id))
    events.clear()

    def apply_and_fail() -> None:
        with core.unit_of_work(database) as work:
            handlers.change_order(work, order_id, ReportPaid())
            raise ZeroDivisionError

    core.apply(database, core.reserved(order_id, id="repeat"))
    with pytest.raises(ZeroDivisionError):
        apply_and_fail()

    assert events == []
