"""The commands that docs/operations.md shows for operators run as they stand there."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from order_service.cli.main import main
from order_service.storage.database import Database
from tests.integration.core import SQLITE_ONLY, Wire, completed
from tests.integration.test_dead_letters import dead_letter, priced

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.usefixtures("own_logging")


@SQLITE_ONLY
def test_documented_commands_run(
    database: Database, wire: Wire, amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    *_, commands, letters = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    [order_id] = priced(database)
    dead_letter(wire, completed(order_id), completed(9, id="pay-9"), code="unknown_order")
    monkeypatch.chdir(tmp_path)
    env = {"DATABASE_URL": database.url, "RABBITMQ_URL": amqp_url}

    # when
    lines = [line.split() for line in (commands + letters).splitlines()]
    done = {" ".join(line[3:]): CliRunner(env=env).invoke(main, line[3:]) for line in lines}

    # then
    assert {line[0] for line in lines} == {"python"}
    assert {text: result.output for text, result in done.items() if result.exit_code not in (0, 1)} == {}
    assert "paid: OrderPaid" in done["dlq show pay-1"].stdout
    assert "2 replayed" in done["dlq replay --reason unknown_order --type PaymentCompleted"].stdout


@pytest.mark.parametrize("page", ["runbook", "console"])
def test_commands_to_type_exist_with_their_options(page: str) -> None:
    blocks = re.findall(
        r"^```sh\n(.*?)^```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    lines = [shlex.split(line, comments=True) for line in "".join(blocks).splitlines()]
    commands = [line[3:] for line in lines if line[:3] == ["python", "-m", "order_service"]]

    assert commands
    for words in commands:
        command: click.Command = main
        while isinstance(command, click.Group):
            name, *words = words
            command = command.commands[name]
        command.make_context(name, words)  # raises UsageError
