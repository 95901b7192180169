"""Transactions on PostgreSQL: how they end when a connection is lost, a client hangs or a server is dead."""

import contextlib
from typing import Any

import pytest
import sqlalchemy as sa

from order_service import handlers
from order_service.config import Settings
from order_service.domain import messages
from order_service.domain.order import UnknownOrder
from order_service.storage import claims
from order_service.storage import database as database_module
from order_service.storage.database import Database
from order_service.storage.errors import is_rolled_back
from order_service.storage.tables import orders
from order_service.unit_of_work import UnitOfWork
from tests import builders
from tests.builders import NOW
from tests.integration import core

pytestmark = core.POSTGRESQL_ONLY


def test_idle_transaction_is_ended_and_its_locks_are_freed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    placement = builders.placement(request={"idempotency_key": "held", "request_hash": "hash"})
    monkeypatch.setattr(database_module, "IDLE_TRANSACTION_MS", 300)
    with core.opened(database.url) as hanging, hanging.engine.connect() as connection:
        handlers.place_orders(UnitOfWork(connection, builders.policy(), NOW), [placement])

        # when
        with core.unit_of_work(database) as other:
            handlers.place_orders(other, [placement])

        # then
        with pytest.raises(sa.exc.InternalError):
            connection.commit()
    assert core.count(database, orders) == 1


def test_server_ends_vanished_clients_and_lets_the_relay_be_idle_longer(database: Database) -> None:
    keepalives = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
    relay_database = Database(database.url, durable=False)
    for each, idle in (database, "10s"), (relay_database, "1min"):
        with each.reading() as connection:
            found = {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in keepalives}
            # Only TCP has keepalives; through a local socket the server sees the client's end.
            if connection.exec_driver_sql("SELECT inet_server_port()").scalar_one():
                assert found == keepalives
            assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar_one() == idle
    relay_database.dispose()


@pytest.mark.parametrize("options", [{"lock_seconds": 3}, {"durable": False}], ids=["api", "relay"])
def test_commits_that_may_be_lost_are_never_a_setting_of_a_session(database_url: str, options: dict[str, Any]) -> None:
    database = Database(database_url, pool_size=1, **options)
    core.place(database)
    with pytest.raises(UnknownOrder), core.unit_of_work(database) as work:
        handlers.change_order(work, 2, messages.Cancel())
    claim = claims.Claim(database, 1)
    claim.settle(claims.Outcomes(failed=[claim.rows[0].id]))

    with contextlib.closing(database.engine.raw_connection()) as connection:
        found = connection.cursor().execute("SELECT name FROM pg_settings WHERE source = 'session'").fetchall()

    # Through a pooler, which this connection is not, nothing is set: tests/integration/test_pooler.py.
    assert "enable_seqscan" in {name for (name,) in found}
    assert "synchronous_commit" not in {name for (name,) in found}
    database.dispose()


def test_of_several_servers_the_one_that_accepts_writes_is_used(database: Database) -> None:
    url = sa.make_url(database.url)
    hosts = ["127.0.0.1:1", f"{url.host}:{url.port}"]
    several = url.set(host=None, port=None, query={"host": hosts, "target_session_attrs": "read-write"})
    settings = Settings(database_url=several.render_as_string(hide_password=False))

    with core.opened(settings.database_url) as failing_over:
        core.place(failing_over)
        failing_over.dispose()
        with core.database_read_only(database.url), pytest.raises(sa.exc.OperationalError, match="read-only"):
            core.place(failing_over)

    assert core.count(database, orders) == 1


def place_and_lose_the_connection(database: Database) -> None:
    with database.writing() as connection:
        work = UnitOfWork(connection, builders.policy(), NOW)
        handlers.place_orders(work, [builders.placement()])
        work.write()
        core.end_connections(database.url)


def test_connection_lost_before_a_transaction_is_an_error_once(database_url: str) -> None:
    database = Database(database_url, pool_size=1, pre_ping=False)
    core.place(database)
    core.end_connections(database_url)

    with pytest.raises(sa.exc.OperationalError):
        core.place(database)

    core.place(database)
    assert core.count(database, orders) == 2
    database.dispose()


def test_connection_lost_before_the_commit_is_an_error_and_is_replaced(database: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError) as lost:
        place_and_lose_the_connection(database)

    assert not is_rolled_back(lost.value)
    with contextlib.suppress(sa.exc.DBAPIError):  # a pooled connection that was ended too
        core.place(database)
    before = core.count(database, orders)
    core.place(database)
    assert core.count(database, orders) == before + 1
