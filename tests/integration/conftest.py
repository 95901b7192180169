"""What most tests of the messaging core receive: a database, a broker with our topology, processes, their log."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika.data
import pytest

from order_service.storage.database import Database
from publishers.relay import Relay
from tests.integration import core
from tests.integration.old_menu import OldMenu


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with core.opened(database_url) as database:
        yield database


@pytest.fixture
def wire(amqp_url: str) -> core.Wire:
    wire = core.Wire(amqp_url)
    wire.declare()
    return wire


@pytest.fixture
def menu() -> Iterator[OldMenu]:
    menu = OldMenu()
    menu.start()
    yield menu
    menu.stop()


@pytest.fixture
def consuming(amqp_url: str, database: Database) -> core.Start:
    """`with consuming():` consumes for the length of the block."""
    return lambda **more: core.running(core.worker(core.settings(amqp_url, database.url, **more), database))


@pytest.fixture
def relaying(amqp_url: str, database: Database) -> core.Start:
    """`with relaying():` relays for the length of the block."""
    settings = core.settings(amqp_url, database.url)
    return lambda: core.running(lambda stop: Relay(settings, database, stop))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> core.Log:
    """What the processes of this test log."""
    log = core.Log()
    for module in core.LOGGING:
        monkeypatch.setattr(f"{module}.log", log)
    return log


@pytest.fixture
def raw_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests' client send core.RawHeader."""
    encode = pika.data.encode_value

    def encode_value(pieces: list[bytes], value: Any) -> int:
        if isinstance(value, core.RawHeader):
            pieces.append(value.encoded)
            return len(value.encoded)
        return encode(pieces, value)

    monkeypatch.setattr(pika.data, "encode_value", encode_value)


@pytest.fixture
def round_trips(tmp_path: Path) -> Iterator[core.RoundTrips]:
    counter = core.RoundTrips(tmp_path / "trace")
    yield counter
    counter.close()
