"""Many orders in one transaction: an error of one of them does not affect the others."""

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from order_service import handlers
from order_service.domain.order import Order
from order_service.handlers import Placement
from order_service.storage import outbox
from order_service.storage.database import Database
from order_service.storage.tables import orders
from order_service.unit_of_work import UnitOfWork
from order_service.web import placing
from order_service.web.placing import Recorder
from tests.builders import NOW, outgoing, policy
from tests.integration import core
from tests.integration.core import Eventually

#: What the recorder calls, without the gate.
PLACE_ORDERS = handlers.place_orders


class Gate:
    """Holds every transaction until it is opened, so that placements gather, and notes what each transaction records."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._is_open = threading.Event()
        self.begun: list[Sequence[Placement]] = []
        self.ended: list[Sequence[Placement]] = []
        monkeypatch.setattr(handlers, "place_orders", self._record)

    def open(self) -> None:
        self._is_open.set()

    def _record(self, work: UnitOfWork, placements: Sequence[Placement]) -> list[Order]:
        self.begun.append(placements)
        assert self._is_open.wait(30)
        try:
            return PLACE_ORDERS(work, placements)
        finally:
            self.ended.append(placements)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, lock_seconds=1)
    yield database
    database.dispose()


@pytest.fixture
def recorder(database: Database) -> Recorder:
    return Recorder(database, policy())


def placement(key: str | None = None) -> Placement:
    request = {"idempotency_key": key, "request_hash": "hash"} if key else {}
    return Placement(user_id=7, menu_ids=(1, 2), request=request)


def place_together(
    recorder: Recorder, gate: Gate, eventually: Eventually, placements: list[Placement]
) -> list[Order | BaseException]:
    """The order or error of each placement; all but those of the first transaction are offered to the second."""
    with ThreadPoolExecutor(len(placements)) as pool:
        futures = [pool.submit(recorder.place, each) for each in placements]
        eventually(
            lambda: gate.begun and recorder.backlog + len(gate.begun[0]) == len(placements),
            "all other placements to wait for the first transaction",
        )
        gate.open()
    return [future.exception() or future.result() for future in futures]


@pytest.mark.parametrize("limit", [4, 100])
def test_orders_that_arrive_during_a_transaction_share_the_next_ones(
    recorder: Recorder, gate: Gate, database: Database, eventually: Eventually, monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(placing, "BATCH_LIMIT", limit)

    placed = place_together(recorder, gate, eventually, [placement() for _ in range(20)])

    assert len(gate.begun) <= 1 + math.ceil(20 / limit)
    assert max(map(len, gate.begun)) <= limit
    assert sum(map(len, gate.begun)) == 20
    ids = [order.id for order in placed if isinstance(order, Order)]
    assert len(set(ids)) == core.count(database, orders) == 20
    created = {event["data"]["order_id"] for event in core.unsent_events(database, "OrderCreated")}
    assert created == set(ids)


def test_repeated_key_fails_alone(recorder: Recorder, gate: Gate, database: Database, eventually: Eventually) -> None:
    placements = [placement("same"), *(placement() for _ in range(5)), placement("same"), placement("other")]

    placed = place_together(recorder, gate, eventually, placements)

    assert sum(isinstance(each, sa.exc.IntegrityError) for each in placed) == 1
    assert core.count(database, orders) == 7


@core.POSTGRESQL_ONLY
def test_keys_locked_by_a_suspended_process_fail_alone_and_do_not_delay_other_orders(
    recorder: Recorder, gate: Gate, database: Database, eventually: Eventually
) -> None:
    keys = ("one", "another", "third")
    with core.opened(database.url) as suspended, suspended.engine.connect() as connection:
        PLACE_ORDERS(UnitOfWork(connection, policy(), NOW), [placement(key) for key in keys])

        together = [placement(key) for key in keys] + [placement() for _ in range(4)]
        placed = place_together(recorder, gate, eventually, [placement(), *together])

        connection.rollback()
    is_placed = [isinstance(each, Order) for each in placed]
    assert is_placed == [True, False, False, False, True, True, True, True]
    assert all(isinstance(each, sa.exc.OperationalError) for each in placed[1:4])
    # Each is retried alone and at the same time: the free ones end while the others wait for the locked keys.
    alone = [placements[0] for placements in gate.ended if len(placements) == 1]
    assert {each.request.get("idempotency_key") for each in alone[-3:]} <= set(keys)


def test_lost_order_is_an_error_and_blocks_no_later_one(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "place_orders", lambda *given, **options: [])

    for _ in range(2):
        with pytest.raises(ValueError, match="zip"):
            recorder.place(placement())


def test_large_dead_letters_are_written_in_parts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_STATEMENT_BYTES", 1000)
    sizes = (10, 990, 5000, 400, 400)
    messages = [each._replace(body=b"x" * size) for each, size in zip(outgoing(5), sizes, strict=True)]
    sent: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *given: sent.append(given[2]))

    core.add_to_outbox(database, messages)

    assert len([statement for statement in sent if statement.startswith("INSERT")]) == 3
    assert [len(row.body) for row in core.rows(database, core.outbox)] == list(sizes)
