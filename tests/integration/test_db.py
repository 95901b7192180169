"""Transactions on PostgreSQL: what their end says about them."""

import contextlib
from typing import Any

import pytest
import sqlalchemy as sa

from order_service import db, handlers
from order_service.db import Database
from order_service.tables import orders
from tests.integration import core

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def place(database: Database, *, between: Any = None) -> None:
    with database.writing() as connection:
        handlers.place_orders(connection, [handlers.Placement(7, (1, 2))], core.clock(), reminders=3)
        if between:
            between(connection)


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


def test_connection_that_is_lost_before_the_end_is_an_error_and_is_replaced(database: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError) as lost:
        place(database, between=lambda _: core.end_connections(database.url))

    assert not db.was_undone(lost.value)
    with contextlib.suppress(sa.exc.DBAPIError):  # one that was idle meanwhile
        place(database)
    before = core.count(database, orders)
    place(database)
    assert core.count(database, orders) == before + 1
