"""Many orders in one transaction: what goes wrong with one of them is not the others' trouble."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from order_service import handlers
from order_service.domain.order import Order
from order_service.handlers import Placement
from order_service.storage import outbox
from order_service.storage.database import Database
from order_service.storage.tables import orders
from order_service.web import recording
from order_service.web.recording import Recorder
from tests.integration import core

Eventually = Callable[..., Any]


class Gate:
    """Records as the API does, but no transaction before `open`: so those that wait come together."""

    def __init__(self, database: Database) -> None:
        self.open = threading.Event()
        self.batches: list[int] = []
        self._database = database

    def record(self, placements: list[Placement]) -> list[Order]:
        self.batches.append(len(placements))
        assert self.open.wait(30)
        with self._database.writing() as connection:
            return handlers.place_orders(connection, placements, core.clock(), reminders=3)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    found = Database(database_url, lock_seconds=1)
    yield found
    found.dispose()


@pytest.fixture
def gate(database: Database) -> Gate:
    return Gate(database)


@pytest.fixture
def recorder(gate: Gate) -> Recorder:
    return Recorder(gate.record)


def placement(key: str | None = None) -> Placement:
    request = {"idempotency_key": key, "request_hash": "hash"} if key else {}
    return Placement(user_id=7, menu_ids=(1, 2), request=request)


def place_together(
    recorder: Recorder, gate: Gate, eventually: Eventually, placements: list[Placement]
) -> list[Order | BaseException]:
    """What became of each; those that came after the first batch was taken went into one transaction, or tried to."""
    with ThreadPoolExecutor(len(placements)) as pool:
        futures = [pool.submit(recorder.place, each) for each in placements]
        eventually(lambda: gate.batches and len(recorder._waiting) + gate.batches[0] == len(placements), "all to wait")
        gate.open.set()
    return [future.exception() or future.result() for future in futures]


def test_orders_that_come_during_a_transaction_share_the_next(
    recorder: Recorder, gate: Gate, database: Database, eventually: Eventually
) -> None:
    placed = place_together(recorder, gate, eventually, [placement() for _ in range(20)])

    assert len(gate.batches) == 2
    assert sum(gate.batches) == 20
    ids = [order.id for order in placed if isinstance(order, Order)]
    assert len(set(ids)) == core.count(database, orders) == 20
    created = {event["data"]["order_id"] for event in core.leaving(database, "OrderCreated")}
    assert created == set(ids)


def test_repeated_key_fails_alone(recorder: Recorder, gate: Gate, database: Database, eventually: Eventually) -> None:
    placements = [placement("same"), *(placement() for _ in range(5)), placement("same"), placement("other")]

    placed = place_together(recorder, gate, eventually, placements)

    assert sum(isinstance(each, sa.exc.IntegrityError) for each in placed) == 1
    assert core.count(database, orders) == 7


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_key_that_a_frozen_process_holds_fails_alone(
    recorder: Recorder, gate: Gate, database: Database, eventually: Eventually
) -> None:
    with core.opened(database.url) as frozen, frozen.engine.connect() as connection:
        handlers.place_orders(connection, [placement("held")], core.clock(), reminders=3)

        placed = place_together(recorder, gate, eventually, [placement(), placement("held"), placement()])

        connection.rollback()
    assert [isinstance(each, Order) for each in placed].count(True) == 2
    assert sum(isinstance(each, sa.exc.OperationalError) for each in placed) == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_keys_that_a_frozen_process_holds_keep_no_other_order_waiting_for_long(
    recorder: Recorder, gate: Gate, database: Database, eventually: Eventually
) -> None:
    keys = ("one", "another", "third")
    ended: list[str | None] = []

    def record(placements: list[Placement]) -> list[Order]:
        try:
            return gate.record(placements)
        finally:
            if len(placements) == 1:
                ended.append(placements[0].request.get("idempotency_key"))

    with core.opened(database.url) as frozen, frozen.engine.connect() as connection:
        handlers.place_orders(connection, [placement(key) for key in keys], core.clock(), reminders=3)

        together = [placement(key) for key in keys] + [placement() for _ in range(4)]
        place_together(Recorder(record), gate, eventually, [placement(), *together])  # type: ignore[arg-type]

        connection.rollback()
    # Each alone, and all at the same time: the free ones ended while the others waited for the held keys.
    assert set(ended[-3:]) <= set(keys)


def test_next_order_is_recorded_after_one_that_failed(recorder: Recorder, gate: Gate, database: Database) -> None:
    gate.open.set()
    recorder.place(placement("same"))
    with pytest.raises(sa.exc.IntegrityError):
        recorder.place(placement("same"))

    assert recorder.place(placement()).id
    assert core.count(database, orders) == 2


def test_record_that_loses_an_order_hangs_nobody() -> None:
    losing = Recorder(lambda placements: [])

    for _ in range(2):
        with pytest.raises(ValueError, match="zip"):
            losing.place(placement())


def test_more_orders_than_one_transaction_takes_are_all_recorded(
    recorder: Recorder, gate: Gate, database: Database, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "LIMIT", 4)

    placed = place_together(recorder, gate, eventually, [placement() for _ in range(20)])

    assert max(gate.batches) == 4
    assert len({order.id for order in placed if isinstance(order, Order)}) == core.count(database, orders) == 20


def test_large_dead_letters_are_written_in_parts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_STATEMENT_BYTES", 1000)
    rows = [
        row | {"body": b"x" * size} for row, size in zip(core.outbox_rows(5), (10, 990, 5000, 400, 400), strict=True)
    ]
    sent: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *given: sent.append(given[2]))

    with database.writing() as connection:
        outbox.add(connection, rows)

    assert len([statement for statement in sent if statement.startswith("INSERT")]) == 3
    assert [len(row.body) for row in core.rows(database, core.outbox)] == [10, 990, 5000, 400, 400]
