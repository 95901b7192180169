"""Every code block and every curl of README and docs is run, as it stands there, but for ports, passwords and times."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandbox.servers import process_group as lifeline
from sandbox.servers.broker import Broker
from sandbox.servers.process_group import Command
from tests.e2e.house import PROJECT_DIR, House

Eventually = Callable[..., Any]
PAGES = ["README.md", "README.id.md", *sorted(f"docs/{path.name}" for path in (PROJECT_DIR / "docs").glob("*.md"))]
READMES = PAGES[:2]
NEEDS_CURL = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
#: Blocks by page and language, in order, and the test that runs each. Blocks without a language are drawings.
RUN = {
    **{
        (page, "sh"): [
            "test_the_two_commands_are_those_of_make",
            "test_the_curl_of_the_readme_is_answered_as_it_says_and_the_order_gets_paid",
            "test_the_commands_for_running_it_for_real_bring_an_order_to_paid",
        ]
        for page in READMES
    },
    **{
        (page, "json"): ["test_the_curl_of_the_readme_is_answered_as_it_says_and_the_order_gets_paid"]
        for page in READMES
    },
    ("docs/saga.md", "mermaid"): ["tests/unit/test_pages.py"],
    ("docs/siblings.md", "json"): ["tests/integration/test_sibling_kit.py"] * 2,
    ("docs/siblings.md", "sh"): [
        "tests/integration/test_sibling_kit.py",
        "test_the_faults_of_the_sandbox_are_switched_as_the_page_says",
    ],
    ("docs/siblings.md", "python"): ["tests/integration/test_sibling_kit.py"] * 3,
    ("docs/siblings.md", "javascript"): ["tests/integration/test_sibling_kit.py"] * 3,
}
#: Curls in running text, and the test that runs each.
INLINE = {
    (page, "curl localhost:5003/orders/1"): "test_the_curl_of_the_readme_is_answered_as_it_says_and_the_order_gets_paid"
    for page in READMES
}


def text(page: str) -> str:
    return (PROJECT_DIR / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)


def test_every_block_and_every_curl_has_its_test() -> None:
    found = {
        (page, language): len(blocks(page, language))
        for page in PAGES
        for language in re.findall(r"^```([a-z]+)$", text(page), re.MULTILINE)
    }
    inline = {(page, curl) for page in PAGES for curl in re.findall("`(curl [^`]*)`", text(page))}

    assert found == {where: len(tests) for where, tests in RUN.items()}
    assert inline == INLINE.keys()
    named = {test for tests in RUN.values() for test in tests} | set(INLINE.values())
    assert [test for test in named if test not in globals() and not (PROJECT_DIR / test).exists()] == []


def shell(script: str, house: House) -> str:
    """What the script writes, with the ports of the house for those it names."""
    for name, port in {"api": 5003, "menu": 5002, "payment": 5004}.items():
        script = script.replace(f"localhost:{port}", f"127.0.0.1:{house.ports[name]}")
    command = ["bash", "-euo", "pipefail", "-c", script.replace("curl ", "curl --no-progress-meter --fail ")]
    done = subprocess.run(command, env=house.env, cwd=PROJECT_DIR, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def timeless(order: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from run to run: when it was placed, and whether it is paid already."""
    assert order["status"] in ("pending", "paid")
    return order | {"created_at": "now", "status": "pending"}


@NEEDS_CURL
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("page", READMES)
def test_the_curl_of_the_readme_is_answered_as_it_says_and_the_order_gets_paid(
    page: str, house: House, eventually: Eventually
) -> None:
    # given
    house.prepare()
    house.start_all()
    [shown] = blocks(page, "json")
    [later] = [curl for where, curl in INLINE if where == page]

    # when
    answered = shell(blocks(page, "sh")[1], house)

    # then
    assert timeless(json.loads(answered)) == timeless(json.loads(shown))
    assert list(json.loads(answered)) == list(json.loads(shown))
    eventually(lambda: json.loads(shell(later, house))["status"] == "paid", "the order to be paid")


@NEEDS_CURL
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_faults_of_the_sandbox_are_switched_as_the_page_says(house: House) -> None:
    house.start("menu")
    house.wait_healthy("menu")

    written = shell(blocks("docs/siblings.md", "sh")[1], house)

    decoder, shown = json.JSONDecoder(), []
    while written := written.strip():
        answer, end = decoder.raw_decode(written)
        shown.append(answer["active"])
        written = written[end:]
    assert shown == [{"delay": 2, "duplicate": True}, {"delay": 2, "duplicate": True}, {}]


@pytest.mark.parametrize("page", READMES)
def test_the_commands_for_running_it_for_real_bring_an_order_to_paid(
    page: str, house: House, tmp_path: Path, eventually: Eventually
) -> None:
    # given: the lines that install are what deploy/make-venv did for this very run
    lines = [re.sub(" +# .*", "", line) for line in blocks(page, "sh")[2].splitlines()]
    venv, install, export, migrate, topology, *processes = lines
    assert venv == "python3 -m venv .venv && . .venv/bin/activate"
    assert install == "pip install --require-hashes -r requirements.txt"
    for placeholder, url in (("postgresql://user:password@host/orders", house.database_url),
                             ("amqp://user:password@host/", house.amqp_url)):  # fmt: skip
        assert placeholder in export
        export = export.replace(placeholder, f"'{url}'")

    # when
    shell("\n".join([export, migrate, topology, migrate, topology]), house)
    with contextlib.ExitStack() as stack:
        for number, line in enumerate(processes):
            command = ["/bin/sh", "-c", f"{export}; exec {line}"]
            log = tmp_path / f"{number}.log"
            stack.enter_context(lifeline.serving(Command(command, house.env, log, cwd=PROJECT_DIR)))
        house.start("users", "menu", "payment")
        house.wait_healthy()
        posted = house.post()

        # then
        assert len(processes) == 3
        assert posted.status == 201
        eventually(lambda: house.states() == {posted.body["id"]: "paid"}, "the order to be paid")


@pytest.mark.timeout(300)
def test_the_two_commands_are_those_of_make(broker: Broker) -> None:
    """`make test` is how this test is run; the other one is run here."""
    for page in READMES:
        commands = [re.sub(" +# .*", "", line) for line in blocks(page, "sh")[0].splitlines()]
        assert commands == ["make demo", "make test"]
    if taken := [port for port in (5001, 5002, 5003, 5004) if not is_free(port)]:
        pytest.skip(f"ports {taken} are taken, perhaps by `make run`")
    environment = os.environ | {"RABBITMQ_URL": broker.amqp_url, "RABBITMQ_MANAGEMENT_URL": broker.management_url or ""}

    done = subprocess.run(
        ["make", "demo"], env=environment, cwd=PROJECT_DIR, capture_output=True, text=True, timeout=240
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "The order is paid." in done.stdout


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0
