"""How `python -m order_service` ends where its database or broker cannot be used: with 2, naming the setting."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from order_service.cli.main import main
from order_service.storage.database import Database
from tests.integration.core import UNREACHABLE_BROKER, Wire, rejected

FULL_DISK = "A file or the output cannot be read or written: [Errno 28] No space left on device\n"
Command = Callable[[str], Result]
USING_DATABASE = ["migrate", "ids", "ids --start-at 5", "compensations list", "compensations confirm 1"]
USING_BROKER = ["topology", "topology --recreate", "events tail", "siblings check menu"]


@pytest.fixture
def command() -> Command:
    return lambda words: CliRunner().invoke(main, words.split())


@contextlib.contextmanager
def full_disk(database: Database, words: str, amqp_url: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process whose standard output is on a full disk."""
    env = os.environ | {"DATABASE_URL": database.url, "RABBITMQ_URL": amqp_url}
    command = [sys.executable, "-m", "order_service", *words.split()]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(command, env=env, stdout=full, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def assert_refused(result: Result, setting: str) -> None:
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert re.match(f"{setting}: ", result.stderr), result.stderr


@pytest.mark.parametrize("words", USING_DATABASE)
@pytest.mark.parametrize("place", ["directory", "no directory", "no database", "no server"])
def test_command_exits_with_2_and_names_the_database_that_it_cannot_use(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, place: str
) -> None:
    (tmp_path / "text").write_text("no database, but long enough to have a header" * 3)
    urls = {
        "directory": f"sqlite:///{tmp_path}",
        "no directory": "sqlite:////proc/none/orders.db",
        "no database": f"sqlite:///{tmp_path}/text",
        "no server": "postgresql://me:secret@127.0.0.1:1/orders",
    }
    monkeypatch.setenv("DATABASE_URL", urls[place])

    result = command(words)

    assert_refused(result, "DATABASE_URL")
    assert "secret" not in result.stderr


@pytest.mark.parametrize("words", USING_DATABASE[1:])
def test_command_names_the_one_that_migrates(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/new.db")

    result = command(words)

    assert_refused(result, "DATABASE_URL")
    assert "python -m order_service migrate" in result.stderr


@pytest.mark.parametrize("words", USING_BROKER)
def test_command_exits_with_2_and_names_the_broker_that_it_cannot_reach(
    command: Command, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", UNREACHABLE_BROKER)

    result = command(words)

    assert_refused(result, "RABBITMQ_URL")


@pytest.mark.parametrize("words", USING_BROKER)
def test_command_exits_with_2_and_names_the_login_that_the_broker_refuses(
    command: Command, monkeypatch: pytest.MonkeyPatch, amqp_url: str, words: str
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", re.sub("//.*@", "//unknown:secret@", amqp_url))

    result = command(words)

    assert_refused(result, "RABBITMQ_URL")
    assert "secret" not in result.stderr


@pytest.mark.parametrize("words", ["settings", "--help", "ids"])
def test_command_whose_output_cannot_be_written_exits_with_2(database: Database, words: str) -> None:
    with full_disk(database, words, "") as running:
        assert running.communicate(timeout=30)[1] == FULL_DISK

    assert running.returncode == 2


def test_broker_is_not_blamed_for_an_output_that_cannot_be_written(
    database: Database, wire: Wire, amqp_url: str
) -> None:
    with full_disk(database, "events tail", amqp_url) as running:
        assert running.stderr
        assert running.stderr.readline().startswith("Watching restaurant.events")
        wire.send(rejected(1))

        assert running.communicate(timeout=30)[1] == FULL_DISK

    assert running.returncode == 2


def test_directory_that_cannot_be_written_is_named(command: Command) -> None:
    result = command("schemas /proc/none")

    assert (result.exit_code, result.stdout) == (2, "")
    assert "No such file or directory: '/proc/none'" in result.stderr
