"""The relay during outages and restarts: no row is lost, and work continues when the outage ends."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from typing import Any

import pytest

from order_service.process import utc_now
from order_service.storage.database import Database
from order_service.storage.tables import outbox
from publishers import pipeline
from publishers.relay import Relay
from tests import builders
from tests.integration import core
from tests.integration.core import Eventually, Log, Start, Wire


def is_empty(database: Database) -> bool:
    return core.count(database, outbox) == 0


@core.SQLITE_ONLY
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_on_sqlite_a_second_relay_stands_by_until_the_first_process_ends(
    end: signal.Signals, amqp_url: str, database: Database, wire: Wire, eventually: Eventually
) -> None:
    wire.listen("order.created")
    environment = os.environ | {"DATABASE_URL": database.url, "RABBITMQ_URL": amqp_url}
    with subprocess.Popen([sys.executable, "-m", "publishers"], env=environment, stderr=subprocess.DEVNULL) as first:
        try:
            core.place(database, now=utc_now())
            eventually(lambda: is_empty(database), "the first relay to publish")
            with core.opened(database.url) as other:
                assert not other.acquire_role("relay")
                with core.running(lambda stop: Relay(core.settings(amqp_url, other.url), other, stop)) as second:
                    first.send_signal(end)
                    assert first.wait(timeout=10) in (0, -end)
                    core.place(database, now=utc_now())
                    eventually(lambda: is_empty(database), "the second relay to publish")
                    assert second.is_alive
        finally:
            first.kill()
    assert len(wire.take()) == 2


@core.SQLITE_ONLY
def test_on_sqlite_a_relay_that_stands_by_stops_when_asked(amqp_url: str, database: Database, wire: Wire) -> None:
    assert database.acquire_role("relay")
    with (
        core.opened(database.url) as other,
        core.running(lambda stop: Relay(core.settings(amqp_url, other.url), other, stop)) as second,
    ):
        assert second.is_alive


@core.POSTGRESQL_ONLY
def test_everything_is_published_when_broker_connections_are_cut(
    database: Database, wire: Wire, management: Any, relaying: Start, eventually: Eventually, log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(pipeline, "WINDOW", 20)
    wire.listen("order.created")

    with relaying():
        eventually(lambda: log.count("relaying"), "the relay to start")
        core.add_to_outbox(database, builders.outgoing(150))
        eventually(management.close_connections, "the relay's connection to be cut")
        core.add_to_outbox(database, builders.outgoing(150))
        eventually(lambda: is_empty(database), "300 rows to be published")

    assert log.count("relaying") == 2
    counts = Counter(message.properties.message_id for message in wire.take())
    assert len(counts) == 150
    assert min(counts.values()) >= 2


@core.POSTGRESQL_ONLY
def test_relay_continues_when_its_database_connections_are_ended(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually
) -> None:
    wire.listen("order.created")

    with relaying():
        for _ in range(2):
            core.place(database)
            eventually(lambda: is_empty(database), "the relay to publish")
            core.end_connections(database.url)
        core.place(database)
        eventually(lambda: is_empty(database), "the relay to publish again")

    assert len(wire.take()) == 3


def test_relay_waits_while_the_database_is_unreachable(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire.listen("order.created")
    core.shorten_lock_wait(monkeypatch)
    with core.opened(database.url) as opened_later:
        core.place(opened_later)

        with core.database_unreachable(database.url), relaying():
            warning = "sent rows could not be deleted, they are published again"
            if not database.is_sqlite:
                warning = "the outbox cannot be read, retrying"
            eventually(lambda: log.count(warning), "the outage to be logged")
        with relaying():
            eventually(lambda: is_empty(opened_later), "the relay to continue")

    assert {message.properties.type for message in wire.take()} == {"OrderCreated"}


def test_relay_refuses_a_broker_without_topology_naming_the_command(
    database: Database, amqp_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    relay = Relay(core.settings(amqp_url, database.url), database, threading.Event())

    with pytest.raises(SystemExit) as refused:
        relay.run()

    assert refused.value.code == 2
    assert "python -m order_service topology" in capsys.readouterr().err


def test_relay_waits_for_an_unreachable_broker_and_stops_when_asked(database: Database) -> None:
    settings = core.settings(core.UNREACHABLE_BROKER, database.url)
    core.place(database)

    with core.running(lambda stop: Relay(settings, database, stop)) as process:
        assert process.is_alive

    assert [row.attempts for row in core.rows(database, outbox)] == [0]
