"""How `python -m order_service` ends where its database or broker cannot be used: with 2, naming the setting."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from order_service.cli.main import main
from tests.integration.core import UNREACHABLE_BROKER

Command = Callable[[str], Result]
USING_DATABASE = ["migrate", "ids", "ids --start-at 5", "compensations list", "compensations confirm 1"]
USING_BROKER = ["topology", "topology --recreate", "events tail", "siblings check menu"]


@pytest.fixture
def command() -> Command:
    return lambda words: CliRunner().invoke(main, words.split())


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
