"""The schema on both databases: migrated up, down and up again; a database that is not migrated is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from order_service.storage import migrate, schema
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


def test_migrations_go_up_twice_keeping_the_orders_and_down_and_up_again(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    with core.opened(empty_url) as database:
        assert schema.revision(database) == schema.head()
        [order_id] = core.place(database)
        migrate.upgrade(empty_url)
        assert core.get(database, order_id).user_id == 7
    assert tables(empty_url) == EVERYTHING

    downgrade = Config(attributes={"url": empty_url})
    downgrade.set_main_option("script_location", str(schema.MIGRATIONS))
    command.downgrade(downgrade, "base")
    assert tables(empty_url) == {"alembic_version"}

    migrate.upgrade(empty_url)
    assert tables(empty_url) == EVERYTHING
    with core.opened(empty_url) as database:
        schema.check_migrated(database)
        assert core.place(database) == [1]


def test_migrations_lead_to_the_schema_of_the_code(database_url: str) -> None:
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


def test_database_at_another_migration_or_none_is_refused_naming_it(empty_url: str) -> None:
    with core.opened(empty_url) as database:
        with pytest.raises(schema.NotMigrated, match="at migration none"):
            schema.check_migrated(database)

        migrate.upgrade(empty_url)
        with database.writing() as connection:
            connection.execute(sa.text("update alembic_version set version_num = '0000'"))

        with pytest.raises(schema.NotMigrated, match="at migration 0000"):
            schema.check_migrated(database)


def test_database_ahead_of_the_code_is_accepted_and_stays_as_it_is(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    with core.opened(empty_url) as database:
        with database.writing() as connection:
            connection.execute(sa.text("update alembic_version set version_num = '9999_later'"))

        migrate.upgrade(empty_url)

        schema.check_migrated(database)
        with database.reading() as connection:
            assert connection.execute(sa.text("select version_num from alembic_version")).scalar_one() == "9999_later"


def test_several_migrations_at_once_take_turns(empty_url: str) -> None:
    # given: processes that wait for a line of input just before they migrate
    program = (
        "import sys\n"
        "from order_service.storage.migrate import upgrade\n"
        "print(flush=True)\n"
        "input()\n"
        "upgrade(sys.argv[1])\n"
    )
    command, pipe = [sys.executable, "-c", program, empty_url], subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout
        process.stdout.readline()

    # when
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()

    # then
    assert [process.communicate(timeout=60)[1] for process in processes] == ["", "", ""]
    assert tables(empty_url) == EVERYTHING
    with core.opened(empty_url) as database:
        schema.check_migrated(database)


def modes(directory: Path) -> dict[str, str]:
    return {path.name: oct(path.stat().st_mode & 0o777) for path in [directory, *directory.iterdir()]}


def test_files_of_sqlite_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    # given
    path = tmp_path / "var" / "orders.db"

    # when
    migrate.upgrade(f"sqlite:///{path}")
    with core.opened(f"sqlite:///{path}") as database:
        core.place(database)
        assert database.acquire_relay_role()
        created = modes(path.parent)

    # then
    names = ["orders.db", "orders.db-wal", "orders.db-shm", "orders.db.relay.lock"]
    assert created == {"var": "0o700", **dict.fromkeys(names, "0o600")}


def test_permissions_of_an_existing_sqlite_file_are_kept(tmp_path: Path) -> None:
    # given
    path = tmp_path / "orders.db"
    path.touch()
    path.chmod(0o660)

    # when
    migrate.upgrade(f"sqlite:///{path}")

    # then
    assert modes(tmp_path)["orders.db"] == "0o660"
