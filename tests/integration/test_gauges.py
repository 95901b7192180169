"""The gauges of the database and the broker: their values, and what reading them costs."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
import time_machine

from order_service import metrics
from order_service.config import Settings
from order_service.contract.topology import MENU, PAYMENT, QUEUES, QUORUM
from order_service.process import utc_now
from order_service.storage import figures
from order_service.storage.database import Database
from order_service.storage.figures import Figures
from publishers.gauges import Gauges, of_broker, of_database
from sandbox.servers.broker import Broker
from tests.integration import core
from tests.integration.core import Wire
from tests.polling import wait_until


def values(gauges: Gauges) -> dict[tuple[str, str], float]:
    """By name and state or queue."""
    samples = [sample for family in gauges.collect() for sample in family.samples]
    return {(sample.name, next(iter(sample.labels.values()), "")): sample.value for sample in samples}


def test_gauges_count_what_is_open(database: Database) -> None:
    # given
    now = utc_now()
    waiting = core.place(database, 3, now=now - timedelta(seconds=100))
    priced, paid, cancelled = core.place_sent(database, 3, now=now - timedelta(seconds=50))
    core.apply(database, core.reserved(priced), core.reserved(paid), core.completed(paid), now=now)
    core.apply(database, core.reserved(cancelled), now=now)
    core.cancel(database, cancelled, now=now)
    core.clear_outbox(database)
    core.place(database, 2, now=now - timedelta(seconds=20))

    # when
    found = values(of_database(database, compensation_attempts=1))

    # then
    pending = metrics.PENDING.name
    assert found.pop((metrics.OLDEST_PENDING.name, "")) == pytest.approx(100, abs=30)
    assert found.pop((metrics.OUTBOX_OLDEST.name, "")) == pytest.approx(20, abs=15)
    assert found.pop((metrics.CLOCK_OFFSET.name, "")) == pytest.approx(0, abs=1)
    assert found == {
        (pending, "awaiting_menu"): len(waiting) + 2,
        (pending, "awaiting_menu_prepaid"): 0,
        (pending, "awaiting_payment"): 1,
        (metrics.OUTBOX_ROWS.name, ""): 2,
        (metrics.UNCONFIRMED.name, ""): 1,
    }
    assert values(of_database(database, compensation_attempts=2))[metrics.UNCONFIRMED.name, ""] == 0


@core.POSTGRESQL_ONLY
def test_clock_of_this_host_is_compared_with_that_of_the_database(database: Database) -> None:
    with time_machine.travel(datetime.now(UTC) - timedelta(minutes=5), tick=True):
        found = values(of_database(database, compensation_attempts=1))

    assert found[metrics.CLOCK_OFFSET.name, ""] == pytest.approx(-300, abs=5)


def test_confirmed_compensation_is_counted_no_more(database: Database) -> None:
    [order_id] = core.place_sent(database)
    core.apply(database, core.reserved(order_id))
    core.cancel(database, order_id)
    [row] = core.compensation_rows(database)

    core.apply(database, core.released(order_id, row.id))

    assert values(of_database(database, compensation_attempts=1))[metrics.UNCONFIRMED.name, ""] == 0


def test_database_is_queried_once_for_any_number_of_scrapes(database: Database) -> None:
    sent: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    gauges = of_database(database, compensation_attempts=1)

    scrapes = [values(gauges) for _ in range(50)]

    assert len([each for each in sent if each.startswith("SELECT")]) <= 4, sent
    assert scrapes == [scrapes[0]] * 50


def test_a_reading_that_does_not_end_delays_no_scrape_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("publishers.gauges.READ_SECONDS", 0.2)
    answers, readings = threading.Event(), []

    def read() -> Figures:
        readings.append(answers.wait(30))
        return {metrics.OUTBOX_ROWS: {(): 7}}

    gauges = Gauges("a test", read, pause_seconds=0)

    assert [values(gauges) for _ in range(3)] == [{}] * 3

    answers.set()
    assert wait_until(lambda: values(gauges), "the values") == {(metrics.OUTBOX_ROWS.name, ""): 7}
    assert len(readings) == 2


def test_gauges_have_no_values_while_the_database_cannot_be_read() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none")

    assert values(of_database(database, compensation_attempts=1)) == {}


def test_queue_with_other_arguments_is_told_from_one_as_declared_and_one_that_is_not_there(
    wire: Wire, amqp_url: str, broker: Broker
) -> None:
    # given
    settings = Settings(rabbitmq_url=amqp_url, management_url=broker.management_url)
    names = [each.name for queue in QUEUES for each in queue.declarations]
    before = values(of_broker(settings))
    with wire.channel() as channel:
        for name, arguments in ((MENU.dead_letters, QUORUM), (MENU.name, MENU.arguments)):
            channel.queue_delete(name)
            channel.queue_declare(name, durable=True, arguments=arguments | {"x-max-length": 5})
        channel.queue_delete(PAYMENT.dead_letters)

    # when
    after = values(of_broker(settings))

    # then
    metric = metrics.DRIFTED.name
    assert before == {(metric, name): 0 for name in names}
    assert after == {(metric, MENU.dead_letters): 1, (metric, MENU.name): 1, (metric, PAYMENT.name): 0}


def test_gauges_have_no_values_while_the_management_api_does_not_answer() -> None:
    gauges = of_broker(Settings(management_url="http://127.0.0.1:1"))

    assert values(gauges) == {}


def test_only_open_rows_are_read(database: Database) -> None:
    # given: of many rows, few are open
    sent: list[tuple[str, Any]] = []
    core.place_sent(database)
    sa.event.listen(database.engine, "before_cursor_execute", lambda *given: sent.append((given[2], given[3])))
    with database.reading() as connection:
        figures.read(connection, 10)

    # when
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    selects = [each for each in sent if each[0].startswith("SELECT") and "outbox" not in each[0]]
    with database.reading() as connection:
        plans = [
            "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters))
            for statement, parameters in selects
        ]

    # then
    assert "ix_orders_due_at" in plans[0], plans
    assert "ix_compensations_unconfirmed" in plans[1], plans
