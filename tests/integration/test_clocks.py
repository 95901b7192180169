"""Hosts whose clocks differ: on PostgreSQL every time that processes compare is the server's."""

from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

import time_machine

from order_service.domain.order import State
from order_service.storage.database import Database, current_time
from order_service.storage.tables import compensations, orders, outbox
from tests.http_service import Service
from tests.integration import core
from tests.integration.core import Eventually

pytestmark = core.POSTGRESQL_ONLY


def skewed(**by: float) -> AbstractContextManager[object]:
    """For the length of the block this host's clock differs from the server's."""
    return time_machine.travel(datetime.now(UTC) + timedelta(**by), tick=True)


def test_order_of_a_host_60_seconds_ahead_is_published_at_once_with_the_right_times(
    service: Service, wire: core.Wire, relaying: core.Start, eventually: Eventually
) -> None:
    wire.listen("order.created")

    with skewed(seconds=60):
        service.order_in(State.AWAITING_MENU)
    with relaying():
        [created] = eventually(wire.take, "the event", seconds=10)

    age = datetime.now(UTC) - datetime.fromisoformat(created.event["data"]["created_at"])
    assert timedelta(0) <= age < timedelta(seconds=30)


def test_relay_on_a_host_60_seconds_behind_publishes_and_retries_at_once(
    service: Service, wire: core.Wire, relaying: core.Start, eventually: Eventually
) -> None:
    service.order_in(State.AWAITING_MENU)

    with skewed(seconds=-60), relaying():
        eventually(lambda: core.rows(service.database, outbox, outbox.c.attempts > 0), "the first return", seconds=10)
        wire.listen("order.created")
        eventually(wire.take, "the event", seconds=10)


def test_host_20_minutes_ahead_expires_no_order_and_repeats_no_compensation_early(
    service: Service, database: Database, passing: core.Start, eventually: Eventually
) -> None:
    # given
    for state in (State.AWAITING_MENU, State.AWAITING_PAYMENT, State.FAILED):
        service.order_in(state)
    service.receive(3, core.completed(3).message)
    [refund] = core.compensation_rows(database)
    waiting = core.rows(database, orders)
    [overdue] = core.place(database, reminders=0)
    core.clear_outbox(database)

    # when
    with skewed(minutes=20), passing(database):
        eventually(lambda: core.states(database, [overdue]) == {"failed"}, "the overdue order to expire")

    # then
    assert core.rows(database, orders, orders.c.id != overdue) == waiting
    assert core.rows(database, compensations, compensations.c.id == refund.id) == [refund]


def test_host_20_minutes_behind_passes_a_deadline_in_time(
    database: Database, passing: core.Start, eventually: Eventually
) -> None:
    core.place_sent(database, reminders=0, now=datetime.now(UTC) - timedelta(minutes=5))

    with skewed(minutes=-20), passing(database):
        eventually(lambda: core.states(database, [1]) == {"failed"}, "the order to expire")


def test_time_of_a_transaction_is_after_the_end_of_the_one_before(database: Database, database_url: str) -> None:
    with core.opened(database_url) as other:
        times = []
        for each in [database, other] * 50:
            with each.writing() as connection:
                times += current_time(connection), current_time(connection)

    assert times == sorted(times)
