"""The schema on both databases: up, down, up again, as the code expects it, and refused when it is not."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from order_service.storage import migrate as schema
from order_service.storage.tables import metadata, orders
from tests.integration import core


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The URL of a database without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'orders.db'}"
    return request.getfixturevalue("postgres_url")


def tables(url: str) -> set[str]:
    with core.opened(url) as database:
        return set(sa.inspect(database.engine).get_table_names())


EVERYTHING = {*metadata.tables, "alembic_version"}


def test_migration_goes_up_twice_down_and_up_again(empty_url: str) -> None:
    schema.upgrade(empty_url)
    schema.upgrade(empty_url)
    assert tables(empty_url) == EVERYTHING

    schema.downgrade(empty_url)
    assert tables(empty_url) == {"alembic_version"}

    schema.upgrade(empty_url)
    assert tables(empty_url) == EVERYTHING
    with core.opened(empty_url) as database:
        schema.check_migrated(database)
        assert core.place(database) == [1]


def test_repeated_migration_keeps_the_orders(database_url: str) -> None:
    with core.opened(database_url) as database:
        [order_id] = core.place(database)

        schema.upgrade(database_url)

        assert core.get(database, order_id).user_id == 7


def test_migrated_schema_is_the_one_the_code_describes(database_url: str) -> None:
    with core.opened(database_url) as database, database.reading() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_id_of_a_deleted_order_is_not_used_again(database_url: str) -> None:
    with core.opened(database_url) as database:
        [first] = core.place(database)
        with database.writing() as connection:
            connection.execute(sa.delete(orders))

        [second] = core.place(database)

        assert second > first


def test_empty_database_is_refused_naming_what_is_missing(empty_url: str) -> None:
    with core.opened(empty_url) as database, pytest.raises(schema.NotMigrated, match="at migration none"):
        schema.check_migrated(database)


def test_old_database_is_refused_naming_its_migration(empty_url: str) -> None:
    schema.upgrade(empty_url)
    with core.opened(empty_url) as database:
        with database.writing() as connection:
            connection.execute(sa.text("update alembic_version set version_num = '0000'"))

        with pytest.raises(schema.NotMigrated, match="at migration 0000"):
            schema.check_migrated(database)


def test_several_migrations_at_once_take_turns(empty_url: str, run_together: Callable[..., list[str]]) -> None:
    assert run_together(3, empty_url) == ["", "", ""]
    assert tables(empty_url) == EVERYTHING
    with core.opened(empty_url) as database:
        schema.check_migrated(database)


@pytest.fixture
def run_together(tmp_path: Path) -> Callable[..., list[str]]:
    """Migrate in several processes that wait for each other just before; returns what went wrong in each."""
    program = (
        "import pathlib, sys\n"
        "from order_service.storage import migrate as schema\n"
        "print(flush=True)\n"
        "input()\n"
        "schema.upgrade(sys.argv[1])\n"
    )

    def run(count: int, url: str) -> list[str]:
        command = [sys.executable, "-c", program, url]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command, **pipes) for _ in range(count)]
        for process in processes:
            process.stdout.readline()
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return [process.communicate(timeout=60)[1] for process in processes]

    return run
