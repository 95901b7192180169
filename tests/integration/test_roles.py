"""Each process can do its job with its role of `database roles`, and nothing else; every right is needed."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from consumers.batch import process_batch, retry_poison_message
from consumers.menu_http import progress
from consumers.menu_http.progress import Progress
from order_service import handlers
from order_service.cli.main import main
from order_service.cli.rehearsal import rehearse
from order_service.contract.envelope import Delivery
from order_service.contract.topology import MENU
from order_service.process import StopFlag
from order_service.storage import facts, figures, history, migrate, orders, schema, timeline
from order_service.storage.bulk import Take
from order_service.storage.claims import Claim, Outcomes
from order_service.storage.database import Database
from order_service.storage.roles import OWNER, RIGHTS, has_sequence
from order_service.storage.tables import compensations, metadata, outbox
from order_service.web.live import Board
from order_service.web.placing import UnreadableOrders
from tests import builders
from tests.integration import core
from tests.roles import PASSWORD, Roles, created

RIGHTS_PAGE = Path(__file__).parents[2] / "docs" / "rights.md"
#: What no process may do, whatever the data of the rights says.
NEVER = {
    "api": ["DELETE FROM orders", "DELETE FROM order_history", "SELECT body FROM outbox", "DELETE FROM outbox",
            "UPDATE orders SET user_id = 1", "UPDATE orders SET idempotency_key = ''", "UPDATE outbox SET exchange = ''",
            "UPDATE order_history SET at = now()", "UPDATE compensations SET confirmed_at = now()",
            "SELECT * FROM suspects"],
    "consumers": ["INSERT INTO orders DEFAULT VALUES", "DELETE FROM orders", "UPDATE orders SET user_id = 1",
                  "SELECT body FROM outbox", "DELETE FROM outbox", "DELETE FROM order_history",
                  "UPDATE compensations SET amount = 1", "DELETE FROM compensations"],
    "publishers": ["INSERT INTO orders DEFAULT VALUES", "DELETE FROM orders", "UPDATE orders SET user_id = 1",
                   "UPDATE outbox SET exchange = ''", "UPDATE outbox SET routing_key = ''", "SELECT * FROM order_history",
                   "UPDATE compensations SET confirmed_at = now()", "UPDATE compensations SET amount = 1",
                   "DELETE FROM compensations"],
    "readonly": ["INSERT INTO outbox DEFAULT VALUES", "UPDATE orders SET due_at = now()", "DELETE FROM suspects",
                 "SELECT id FROM orders FOR UPDATE"],
}  # fmt: skip
#: What only the owner or the server's administrator may do.
ADMINISTRATION = [
    "CREATE TABLE public.mine (id int)", "CREATE TEMP TABLE mine (id int)", "CREATE SCHEMA mine", "DROP TABLE suspects",
    "ALTER TABLE orders ADD mine int", "TRUNCATE suspects", "LOCK TABLE order_history IN ACCESS EXCLUSIVE MODE",
    "SELECT setval('orders_id_seq', 1)", "UPDATE alembic_version SET version_num = ''", "CREATE ROLE mine",
    "CREATE TRIGGER mine AFTER INSERT ON outbox EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "SELECT rolpassword FROM pg_authid", "COPY orders TO PROGRAM 'true'",
]  # fmt: skip


@pytest.fixture(scope="module")
def roles(postgres_server: str) -> Iterator[Roles]:
    from sandbox.servers.postgres import fresh_database

    with fresh_database(postgres_server, "order_roles") as url, created(url) as roles:
        yield roles


@contextlib.contextmanager
def opened(roles: Roles, role: str) -> Iterator[Database]:
    with core.opened(roles.url(role) if role else roles.database_url, pool_size=2) as database:
        yield database


def is_refused(roles: Roles, role: str, statement: str) -> bool:
    """Whether a statement, which is rolled back, is refused for want of a right; another error comes after the check."""
    with contextlib.closing(psycopg.connect(roles.url(role))) as connection:
        try:
            connection.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            return True
        except psycopg.IntegrityError:
            return False
        return False


def statements(table: sa.Table) -> dict[str, str]:
    """A statement for each right on a table: a command, or UPDATE with one column."""
    return {
        "SELECT": f"SELECT * FROM {table.name} LIMIT 0",
        "INSERT": f"INSERT INTO {table.name} DEFAULT VALUES",
        "DELETE": f"DELETE FROM {table.name} WHERE false",
        "TRUNCATE": f"TRUNCATE {table.name}",
        **{
            f"UPDATE ({column.name})": f"UPDATE {table.name} SET {column.name} = DEFAULT WHERE false"
            for column in table.c
        },
    }


def single(commands: tuple[str, ...]) -> set[str]:
    """The commands, with one column each."""
    named = [(command.split(" ")[0], re.findall(r"\w+", command)[1:]) for command in commands]
    return {right for command, columns in named for right in ([f"{command} ({each})" for each in columns] or [command])}


@pytest.mark.parametrize("role", RIGHTS)
def test_each_role_has_its_rights_and_no_others(roles: Roles, role: str) -> None:
    for table in metadata.sorted_tables:
        granted = single(RIGHTS[role].get(table.name, ()))
        for right, statement in statements(table).items():
            assert is_refused(roles, role, statement) == (right not in granted), (role, right, table.name)
        if has_sequence(table):
            draw = f"SELECT nextval('{table.name}_id_seq')"
            assert is_refused(roles, role, draw) == ("INSERT" not in granted), (role, draw)


@pytest.mark.parametrize("role", RIGHTS)
def test_no_role_can_do_what_is_not_its_job(roles: Roles, role: str) -> None:
    for statement in [*NEVER[role], *ADMINISTRATION, f"SET ROLE {roles.name(OWNER)}"]:
        assert is_refused(roles, role, statement), statement


# What each process does; every statement of its code that its role must allow.


def do_api(roles: Roles, api: Database) -> None:
    schema.check_migrated(api)
    listener = api.listen()
    assert listener
    listener.close()
    [order_id] = core.place(
        api, request={"idempotency_key": f"key-{core.count(api, metadata.tables['orders'])}", "request_hash": "h"}
    )
    with api.reading() as connection:
        assert facts.of_order(connection, order_id, policy=builders.policy()).unsent
    with opened(roles, "") as others:
        core.apply(others, core.reserved(order_id))
    core.cancel(api, order_id)
    with api.reading() as connection:
        order = orders.read_orders(connection, [order_id])[order_id]
        assert history.read_history(connection, order, limit=10)
        assert orders.list_orders(connection, user_id=order.user_id, states=(), before=None, limit=5).orders
        assert facts.of_order(connection, order_id, policy=builders.policy()).unconfirmed_compensations == 1
        assert timeline.of_order(connection, order, policy=builders.policy())
    stop = StopFlag()
    board = Board(api, core.settings(core.UNREACHABLE_BROKER, api.url), UnreadableOrders(), stop)
    try:
        assert any("event: snapshot" in piece for piece in board.stream(None, 10, lambda: False))
    finally:
        stop.set()
        board.close()


def do_consumers(roles: Roles, consumers: Database) -> None:
    schema.check_migrated(consumers)
    with opened(roles, "") as others:
        [order_id] = core.place(others)
    core.apply(consumers, core.reserved(order_id), core.completed(order_id))
    core.apply(consumers, core.reserved(order_id), core.completed(order_id, "P2", id="second"))
    with opened(roles, "") as others:
        [refund] = core.rows(others, compensations, compensations.c.order_id == order_id)
    core.apply(consumers, core.refunded(order_id, refund.id))
    assert rehearse(consumers, builders.policy(), [core.reserved(order_id)])
    invalid = Delivery(MENU.name, "menu.reserved", b"no event", {"message_id": "1"}, 3)
    process_batch(consumers, builders.policy(), [invalid])
    retry_poison_message(consumers, builders.policy(), invalid)
    with core.unit_of_work(consumers) as work:
        progress.save(work.connection, Progress(order_id, (1,), 2, work.now))
        assert progress.find(work.connection, order_id)
        progress.delete(work.connection, order_id)


def do_publishers(roles: Roles, publishers: Database) -> None:
    schema.check_migrated(publishers)
    with publishers.reading() as connection:
        assert figures.read(connection, 10)
    listener = publishers.listen()
    assert listener
    listener.close()
    with opened(roles, "") as others:
        core.clear_outbox(others)
        unpaid, waiting, cancelled = core.place(others, 3)
        core.apply(others, core.reserved(unpaid), core.reserved(cancelled))
        core.cancel(others, cancelled)
        # The events are rewritten with later deadlines; then there is a reminder; then an order expires.
        for hours in range(1, 4):
            core.pass_deadlines(publishers, core.NOW + timedelta(hours=hours))
            core.clear_outbox(others)
        assert core.states(others, [unpaid]) == {"failed"}
        assert core.states(others, [waiting]) == {"awaiting_menu"}
        with core.unit_of_work(publishers, now=core.NOW + timedelta(hours=4)) as work:
            orders.make_oldest_due(work.connection, work.now, work.policy.lifetime)
            assert handlers.repeat_compensations(work, Take(100))
        for outcome in "failed", "postponed", "sent":
            with others.writing() as connection:
                connection.execute(sa.update(outbox).values(due_at=core.NOW))
            claim = Claim(publishers, 100)
            ids = [row.id for row in claim.rows]
            assert ids
            claim.settle(Outcomes(**{outcome: dict.fromkeys(ids, 0.0) if outcome == "postponed" else ids}))
        with others.writing() as connection:
            connection.execute(sa.update(metadata.tables["orders"]).values(due_at=None))
            connection.execute(sa.update(compensations).values(due_at=None))


def do_readonly(roles: Roles, readonly: Database) -> None:
    schema.check_migrated(readonly)
    env = {"DATABASE_URL": readonly.url, "RABBITMQ_URL": core.UNREACHABLE_BROKER}
    with opened(roles, "") as others:
        order_id = str(core.place(others)[0])
    commands = [["compensations", "list"], ["outbox", "list"], ["stuck"], ["explain", order_id], ["timeline", order_id]]
    for command in commands:
        done = CliRunner(env=env).invoke(main, command)
        assert done.exit_code in (0, 1), (command, done.output)


JOBS: dict[str, Callable[[Roles, Database], None]] = {
    "api": do_api, "consumers": do_consumers, "publishers": do_publishers, "readonly": do_readonly,
}  # fmt: skip


@pytest.mark.parametrize("role", JOBS)
def test_each_process_can_do_its_job_with_its_role(roles: Roles, role: str) -> None:
    with opened(roles, role) as database:
        JOBS[role](roles, database)


NEEDED = [
    (role, table, command)
    for role in ("api", "consumers", "publishers")
    for table, commands in RIGHTS[role].items()
    for command in commands
]


@pytest.mark.parametrize(("role", "table", "command"), NEEDED, ids=[" ".join(each)[:40] for each in NEEDED])
def test_every_right_is_needed(roles: Roles, role: str, table: str, command: str) -> None:
    name = roles.name(role)
    roles.administrate(f"REVOKE {command} ON {table} FROM {name}")
    try:
        with (
            opened(roles, role) as database,
            pytest.raises(sa.exc.ProgrammingError, match="permission denied for table"),
        ):
            JOBS[role](roles, database)
    finally:
        roles.administrate(f"GRANT {command} ON {table} TO {name}")


def test_the_owner_migrates_and_sets_ids_and_nobody_else_can(roles: Roles) -> None:
    def ids(role: str) -> int:
        return CliRunner(env={"DATABASE_URL": roles.url(role)}).invoke(main, ["ids", "--start-at", "1000"]).exit_code

    assert CliRunner(env={"DATABASE_URL": roles.url(OWNER)}).invoke(main, ["migrate"]).exit_code == 0
    assert ids(OWNER) == 0
    assert {role: ids(role) for role in RIGHTS} == dict.fromkeys(RIGHTS, 2)


def test_a_table_of_a_later_migration_can_be_read_by_readonly_only(roles: Roles) -> None:
    roles.administrate("CREATE TABLE later (id int)", url=roles.url(OWNER))
    try:
        refused = {role: is_refused(roles, role, "SELECT * FROM later") for role in RIGHTS}
    finally:
        roles.administrate("DROP TABLE later", url=roles.url(OWNER))

    assert refused == {role: role != "readonly" for role in RIGHTS}


def test_other_logins_cannot_connect(roles: Roles) -> None:
    login = f"{roles.prefix}_other"
    roles.administrate(f"CREATE ROLE {login} LOGIN PASSWORD 'S3cret'")
    try:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(roles.url_of(login))
    finally:
        roles.administrate(f"DROP ROLE {login}")


def test_an_administrator_without_superuser_creates_the_roles_and_the_owner_renews_their_rights(
    postgres_url: str,
) -> None:
    roles = Roles(postgres_url)
    administrator = f"{roles.prefix}_admin"
    database = sa.make_url(postgres_url).database
    try:
        roles.administrate(
            f"CREATE ROLE {administrator} LOGIN CREATEROLE PASSWORD 'S3cret'; "
            f"ALTER DATABASE {database} OWNER TO {administrator}"
        )
        roles.create(url=roles.url_of(administrator))
        roles.set_passwords()
        migrate.upgrade(roles.url(OWNER))
        roles.create(url=roles.url(OWNER))
        roles.create(url=roles.url_of(administrator))

        with opened(roles, "api") as api:
            do_api(roles, api)
    finally:
        roles.administrate(f"ALTER DATABASE {database} OWNER TO CURRENT_USER")
        roles.drop(administrator)


def test_the_tables_of_an_earlier_login_become_the_owners(postgres_url: str) -> None:
    roles = Roles(postgres_url)
    login = f"{roles.prefix}_earlier"
    try:
        roles.administrate(f"CREATE ROLE {login} LOGIN PASSWORD 'S3cret'; GRANT CREATE ON SCHEMA public TO {login}")
        migrate.upgrade(roles.url_of(login))

        roles.create()
        roles.set_passwords()

        owners = roles.administrate("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        assert owners == [(roles.name(OWNER),)]
        migrate.upgrade(roles.url(OWNER))
        with opened(roles, "api") as api:
            do_api(roles, api)
        # As docs/rights.md says, for the processes that still use it.
        roles.administrate(f"GRANT {roles.name(OWNER)} TO {login}")
        with core.opened(roles.url_of(login)) as database:
            do_consumers(roles, database)
    finally:
        roles.drop(login)


@pytest.mark.skipif(not shutil.which("psql"), reason="needs psql")
def test_the_commands_of_the_page_create_the_roles_and_migrate(postgres_url: str, tmp_path: Path) -> None:
    # given: other names, because roles belong to the whole server, and passwords without the prompt of \\password
    roles = Roles(postgres_url)
    [block] = re.findall(r"^```sh\n([^`]*database roles[^`]*)^```", RIGHTS_PAGE.read_text(), re.MULTILINE)
    for documented, here in (
        ("database roles", f"database roles --prefix {roles.prefix}"),
        ("'\\password order_owner'", f"\"ALTER ROLE {roles.name(OWNER)} PASSWORD 'S3cret'\""),
        ("postgresql://order_owner@db.example/orders", f"'{roles.url(OWNER)}'"),
        ("python -m", f"{sys.executable} -m"),
    ):
        assert documented in block
        block = block.replace(documented, here)
    env = os.environ | {"ADMINISTRATOR_URL": postgres_url, "PYTHONPATH": str(RIGHTS_PAGE.parents[1])}

    try:
        # when
        subprocess.run(["bash", "-euc", block], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=120)

        # then
        roles.set_passwords()
        with opened(roles, "api") as api:
            do_api(roles, api)
    finally:
        roles.drop()


def test_the_command_applies_the_roles_to_a_database_that_one_login_used_and_sets_their_passwords(
    postgres_url: str, tmp_path: Path
) -> None:
    """As docker-compose.yml does, also with a volume of a version without roles."""
    roles = Roles(postgres_url)
    (tmp_path / "api").write_text("1st\n")

    def run(url: str, *command: str, **passwords: str) -> Result:
        return CliRunner(env={"DATABASE_URL": url, **passwords}).invoke(main, command)

    def apply(url: str, **passwords: str) -> Result:
        return run(url, "database", "roles", "--apply", "--prefix", roles.prefix, **passwords)

    def accepts(role: str, password: str) -> bool:
        try:
            roles.administrate("SELECT * FROM alembic_version", url=roles.url(role).replace(PASSWORD, password))
        except psycopg.OperationalError:
            return False
        return True

    try:
        migrate.upgrade(postgres_url)
        passwords = {f"DATABASE_{role.upper()}_PASSWORD": PASSWORD for role in ("owner", "consumers", "publishers")}

        # when: at each start
        for _ in range(2):
            created = apply(postgres_url, **passwords, DATABASE_API_PASSWORD_FILE=str(tmp_path / "api"))
            assert created.exit_code == 0, created.output
            assert run(roles.url(OWNER), "migrate").exit_code == 0
            assert apply(roles.url(OWNER)).exit_code == 0

        # then
        owners = roles.administrate("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        assert owners == [(roles.name(OWNER),)]
        assert [accepts(role, PASSWORD) for role in ("consumers", "publishers")] == [True, True]
        assert accepts("api", "1st")
        assert apply(postgres_url, DATABASE_API_PASSWORD="2nd").exit_code == 0
        assert (accepts("api", "2nd"), accepts("consumers", PASSWORD)) == (True, True)
        assert PASSWORD not in created.output

        # a login that may not
        refused = apply(roles.url("api").replace(PASSWORD, "2nd"))
        assert (refused.exit_code, refused.stderr.startswith("DATABASE_URL: ")) == (2, True), refused.output
        unreadable = apply(postgres_url, DATABASE_API_PASSWORD_FILE=str(tmp_path / "none"))
        assert (unreadable.exit_code, "DATABASE_API_PASSWORD" in unreadable.stderr) == (2, True)
        assert apply(f"sqlite:///{tmp_path}/orders.db").exit_code == 2
    finally:
        roles.drop()


def test_the_sql_contains_no_password_and_refuses_unusable_prefixes() -> None:
    printed = CliRunner().invoke(main, ["database", "roles"]).output

    assert "password" not in printed.lower().replace("the roles get no passwords here", "")
    for prefix in ("", "Order", "1st", "a-b", "a b", "a;b", "x" * 53):
        refused = CliRunner().invoke(main, ["database", "roles", "--prefix", prefix])
        assert refused.exit_code == 2, prefix
        assert "must be small letters" in refused.output


def test_the_documented_rights_are_those_of_the_sql() -> None:
    page = RIGHTS_PAGE.read_text()

    for table in metadata.sorted_tables:
        cells = [", ".join(command.split(" ")[0] for command in RIGHTS[role].get(table.name, ())) for role in JOBS]
        assert f"| `{table.name}` | {' | '.join(cells)} |" in page
    for role, rights in RIGHTS.items():
        for table_name, commands in rights.items():
            for columns in (re.findall(r"\w+", each)[1:] for each in commands if "(" in each):
                assert f"`{', '.join(columns)}`" in " ".join(page.split()), (role, table_name)
