"""Transactions on PostgreSQL: what their end says about them."""

import contextlib
from typing import Any

import pytest
import sqlalchemy as sa

from order_service import handlers
from order_service.storage import database as db
from order_service.storage.database import Database
from order_service.storage.tables import orders
from order_service.unit_of_work import UnitOfWork
from tests.integration import core

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def place(database: Database, *, between: Any = None) -> None:
    with core.unit_of_work(database) as work:
        handlers.place_orders(work, [handlers.Placement(7, (1, 2))])
        if between:
            between(work.connection)


def test_wake_up_that_fails_does_not_undo_what_is_committed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(db, "CHANNEL", f"outbox, '{'too long' * 2000}'")

        place(database)

    place(database)
    assert core.count(database, orders) == 2


def test_transaction_that_had_failed_before_its_end_is_no_success(database: Database) -> None:
    def fail(connection: sa.Connection) -> None:
        with contextlib.suppress(sa.exc.DBAPIError):
            connection.exec_driver_sql("SELECT 1 / 0")

    with pytest.raises(sa.exc.DBAPIError):
        place(database, between=fail)

    place(database)
    assert core.count(database, orders) == 1


def test_process_that_stands_still_in_a_transaction_loses_what_it_holds(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = handlers.Placement(7, (1, 2), request={"idempotency_key": "held", "request_hash": "hash"})
    monkeypatch.setattr(db, "IDLE_TRANSACTION_MS", 300)
    with core.opened(database.url) as frozen, frozen.engine.connect() as connection:
        handlers.place_orders(UnitOfWork(connection, core.policy(), core.NOW), [held])

        with core.unit_of_work(database) as another:
            handlers.place_orders(another, [held])

        with pytest.raises(sa.exc.InternalError):
            connection.commit()
    assert core.count(database, orders) == 1


def test_server_notices_a_client_that_vanishes_and_is_more_patient_with_the_relay(database: Database) -> None:
    settings = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count")
    relays = Database(database.url, durable=False)
    for each, idle in (database, "10s"), (relays, "1min"):
        with each.reading() as connection:
            found = {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in settings}
            # Over TCP only; a server on the same machine sees a client's end anyway.
            if connection.exec_driver_sql("SELECT inet_server_port()").scalar_one():
                assert found == dict(zip(settings, ("10", "5", "3"), strict=True))
            assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar_one() == idle
    relays.dispose()


def test_connection_that_is_lost_before_the_end_is_an_error_and_is_replaced(database: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError) as lost:
        place(database, between=lambda _: core.end_connections(database.url))

    assert not db.is_rolled_back(lost.value)
    with contextlib.suppress(sa.exc.DBAPIError):  # one that was idle meanwhile
        place(database)
    before = core.count(database, orders)
    place(database)
    assert core.count(database, orders) == before + 1
