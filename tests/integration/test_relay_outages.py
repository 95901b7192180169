"""The relay during outages and restarts: no row is lost, and work continues when the outage ends."""

import os
import signal
import subprocess
import sys

import pytest
import sqlalchemy as sa

from order_service.process import utc_now
from order_service.storage.database import Database
from order_service.storage.tables import outbox
from publishers.relay import Relay
from tests.integration import core
from tests.integration.core import Eventually, Log, Start, Wire


def is_empty(database: Database) -> bool:
    return core.count(database, outbox) == 0


@core.SQLITE_ONLY
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_on_sqlite_a_second_relay_waits_until_the_first_process_ends(
    end: signal.Signals, amqp_url: str, database: Database, wire: Wire, eventually: Eventually
) -> None:
    wire.listen("order.created")
    environment = os.environ | {"DATABASE_URL": database.url, "RABBITMQ_URL": amqp_url}
    with subprocess.Popen([sys.executable, "-m", "publishers"], env=environment, stderr=subprocess.DEVNULL) as first:
        try:
            core.place(database, now=utc_now())
            eventually(lambda: is_empty(database), "the first relay to publish")
            with core.opened(database.url) as other:
                assert not other.acquire_relay_role()
                with core.running(lambda stop: Relay(core.settings(amqp_url, other.url), other, stop)) as second:
                    first.send_signal(end)
                    assert first.wait(timeout=10) in (0, -end)
                    core.place(database, now=utc_now())
                    eventually(lambda: is_empty(database), "the second relay to publish")
                    assert second.is_alive
        finally:
            first.kill()
    assert len(wire.take()) == 2


def test_relay_waits_while_the_database_is_unreachable(
    database: Database, wire: Wire, relaying: Start, eventually: Eventually, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire.listen("order.created")
    core.shorten_lock_wait(monkeypatch)
    with core.opened(database.url) as opened_later:
        core.place(opened_later)

        with core.database_unreachable(database.url), relaying():
            warning = "the outcome of published rows could not be recorded, retrying"
            if not database.is_sqlite:
                warning = "the outbox cannot be read, retrying"
            eventually(lambda: log.count(warning), "the outage to be logged")
            if not database.is_sqlite:
                failures: list[object] = []
                sa.event.listen(database.engine, "handle_error", failures.append)
                eventually(lambda: len(failures) > 3, "more attempts")
                assert log.count(warning) == 1
        with relaying():
            eventually(lambda: is_empty(opened_later), "the relay to continue")

    assert {message.properties.type for message in wire.take()} == {"OrderCreated"}
