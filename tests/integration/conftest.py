"""What most tests of the messaging core are given: a database of ours that is open, and a broker that is declared."""

from collections.abc import Iterator

import pytest

from order_service.storage.database import Database
from tests.integration import core


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with core.opened(database_url) as database:
        yield database


@pytest.fixture
def wire(amqp_url: str) -> core.Wire:
    wire = core.Wire(amqp_url)
    wire.declare()
    return wire
