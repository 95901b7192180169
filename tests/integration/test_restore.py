"""`python -m order_service ids`, and a restore from a backup as docs/operations.md shows it, on both databases."""

import contextlib
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from order_service.cli.main import main
from order_service.contract.events import MAX_ID
from order_service.domain.order import State
from order_service.storage.database import Database
from tests.http_service import Eventually, Service
from tests.integration import core
from tests.integration.core import POSTGRESQL_ONLY, completed, reserved

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
#: The shell blocks of the page, in order.
BACKUP_SQLITE, BACKUP_POSTGRESQL, RESTORE_SQLITE, RESTORE_POSTGRESQL, SET_IDS, MOVE_IN, *_ = re.findall(
    r"^```sh\n(.*?)^```", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)

Command = Callable[..., Result]


@pytest.fixture
def command() -> Command:
    """`command(url, "ids")` runs `python -m order_service ids` on this database."""
    return lambda url, *arguments: CliRunner(env={"DATABASE_URL": url}).invoke(main, arguments)


def run_documented(command: Command, url: str, block: str) -> None:
    """Run the documented lines, each of which is a command of `python -m order_service`."""
    for line in block.splitlines():
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "order_service"]
        done = command(url, *words[3:])
        assert done.exit_code == 0, done.output


def shell(block: str, directory: Path, url: str) -> None:
    """Run a documented block on this test's database. Skips if the clients of the database are not installed."""
    if lacking := [name for name in ("sqlite3", "pg_dump") if f"{name} " in block and not shutil.which(name)]:
        pytest.skip(f"needs {lacking[0]}")
    script = block.replace("var/order-service.", f"{directory}/orders.").replace("$DATABASE_URL", url)
    done = subprocess.run(["bash", "-euc", script], cwd=directory, capture_output=True, text=True, timeout=30)
    if "server version mismatch" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr


Restore = Callable[[], contextlib.AbstractContextManager[Database]]


@pytest.fixture
def backed_up(database: Database, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], Restore]:
    """`restore = backed_up()` makes a backup, `with restore() as database:` restores it."""

    @contextlib.contextmanager
    def restore() -> Iterator[Database]:
        database.dispose()
        if database.is_sqlite:
            shell(RESTORE_SQLITE, tmp_path, database.url)
            yield database
            return
        url = request.getfixturevalue("postgres_url")
        shell(RESTORE_POSTGRESQL, tmp_path, url)
        with core.opened(url) as restored:
            yield restored

    def back_up() -> Restore:
        shell(BACKUP_SQLITE if database.is_sqlite else BACKUP_POSTGRESQL, tmp_path, database.url)
        return restore

    return back_up


def test_order_after_a_restore_is_not_settled_by_a_reply_for_an_order_that_the_backup_does_not_have(
    database: Database, backed_up: Callable[[], Restore], command: Command
) -> None:
    # given: the siblings have answered for an order that was placed after the backup
    [kept] = core.place(database)
    restore = backed_up()
    lost = core.place(database, 2)
    replies = [reply for id in lost for reply in (reserved(id), completed(id))]
    assert core.apply(database, *replies) == []
    assert core.states(database, lost) == {State.PAID}

    with restore() as restored:
        # when
        run_documented(command, restored.url, SET_IDS)
        placed = core.place(restored, 2)
        rejections = core.apply(restored, *replies)

        # then
        assert core.states(restored, [kept, *lost, *placed]) == {State.AWAITING_MENU}
        assert [core.get(restored, id).version for id in placed] == [1, 1]
        assert placed == [20000, 20001]
        assert {each.code for each in rejections} == {"unknown_order"}
        assert len(rejections) == len(replies)


def test_order_that_was_paid_after_the_backup_is_paid_by_a_report_before_the_publishers_start(
    database: Database, backed_up: Callable[[], Restore], eventually: Eventually
) -> None:
    # given
    [order_id] = core.place(database)
    core.apply(database, reserved(order_id))
    restore = backed_up()
    core.apply(database, completed(order_id))

    with restore() as restored, contextlib.closing(Service(restored.url, eventually)) as service:
        # when
        answer = service.put_payment(order_id)
        core.pass_deadlines(restored)

        # then
        assert answer.status_code == 200
        assert core.states(restored, [order_id]) == {State.PAID}


def test_first_order_beside_an_older_service_is_not_settled_by_its_payments(
    database: Database, command: Command
) -> None:
    run_documented(command, database.url, MOVE_IN)
    placed = core.place(database, 3)

    rejections = core.apply(database, *[completed(id) for id in (1, 2, 3)])

    assert [each.code for each in rejections] == ["unknown_order"] * 3
    assert placed == [1_000_000, 1_000_001, 1_000_002]
    assert core.states(database, placed) == {State.AWAITING_MENU}


def test_next_id_is_printed_and_raised_and_may_be_raised_again(database: Database, command: Command) -> None:
    outputs = [command(database.url, "ids").stdout]
    core.place(database, 2)
    outputs += [command(database.url, "ids", *more).stdout for more in ((), ("--start-at", "7"), ("--start-at", "7"))]

    assert outputs == [f"The next order gets the id {id}.\n" for id in (1, 3, 7, 7)]
    assert core.place(database, 2) == [7, 8]


def test_next_id_is_never_lowered(database: Database, command: Command) -> None:
    assert command(database.url, "ids", "--start-at", "50").exit_code == 0
    core.place(database)

    for lower in ("1", "49", "50"):
        refused = command(database.url, "ids", "--start-at", lower)
        assert refused.exit_code == 2
        assert "the next order gets the id 51" in refused.stderr
    assert core.place(database) == [51]


def test_ids_end_at_the_highest_that_events_may_have(database: Database, command: Command) -> None:
    refused = [command(database.url, "ids", "--start-at", str(id)).exit_code for id in (0, -1, MAX_ID + 1)]
    raised = command(database.url, "ids", "--start-at", str(MAX_ID))

    assert refused == [2, 2, 2]
    assert raised.exit_code == 0, raised.output
    assert core.place(database) == [MAX_ID]
    assert command(database.url, "ids", "--start-at", str(MAX_ID)).exit_code == 2


@POSTGRESQL_ONLY
def test_next_id_is_not_lowered_by_an_order_that_is_being_placed(
    database: Database, command: Command, eventually: Eventually
) -> None:
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'orders'::regclass")
    results: list[Result] = []

    # given: a transaction has written orders, and draws another id while the command runs
    with database.writing() as connection:
        connection.execute(sa.text("LOCK TABLE orders IN ROW EXCLUSIVE MODE"))
        connection.execute(sa.text("SELECT setval('orders_id_seq', 5)"))
        setting = core.Running(
            lambda: results.append(command(database.url, "ids", "--start-at", "7")), threading.Event()
        )
        with database.reading() as other:
            eventually(lambda: other.execute(waiting).scalar() == 1, "the command to wait", seconds=5)
        connection.execute(sa.text("SELECT setval('orders_id_seq', 9)"))
    setting.stop()

    assert results[0].exit_code == 2
    assert core.place(database) == [10]
