"""Runs every code block and every curl of README.md and docs, with other ports, passwords and times.

README.id.md has the same code: tests/unit/test_documents.py compares the two.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from typing import Any

import pytest

from sandbox.demo import SECURED
from sandbox.processes import OPS_PORTS, PORTS
from sandbox.servers.broker import Broker
from tests.e2e.deployment import MOSTLY_ON_POSTGRESQL, ON_SQLITE, Deployment
from tests.e2e.process import PROJECT_DIR
from tests.polling import wait_until

README = "README.md"
PAGES = [README, *sorted(f"docs/{path.name}" for path in (PROJECT_DIR / "docs").glob("*.md"))]
SIBLING_KIT = "tests/integration/test_sibling_kit.py"
#: The ports of `make demo` and `make run`.
FIXED_PORTS = (*PORTS.values(), *OPS_PORTS.values())
NEEDS_CURL = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")


def text(page: str) -> str:
    return (PROJECT_DIR / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)


def inline_curls(page: str) -> list[str]:
    return re.findall("`(curl [^`]*)`", text(page))


def without_comments(block: str) -> list[str]:
    return [re.sub(" +# .*", "", line) for line in block.splitlines()]


def run(script: str, deployment: Deployment) -> str:
    """Return the output of the script, which is run with the ports of the deployment."""
    for name, port in {"api": 5003, "menu": 5002, "payment": 5004}.items():
        script = script.replace(f"localhost:{port}", f"127.0.0.1:{deployment.ports[name]}")
    script = script.replace("curl ", "curl --no-progress-meter --fail ")
    done = deployment.run("bash", "-euo", "pipefail", "-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout


def timeless(order: dict[str, Any]) -> dict[str, Any]:
    """Replace what differs between runs: the time of the order, and whether it is paid already."""
    assert order["status"] in ("pending", "paid")
    return order | {"created_at": "now", "status": "pending"}


@NEEDS_CURL
@ON_SQLITE
def test_curl_of_the_readme_is_answered_as_shown_and_the_order_becomes_paid(deployment: Deployment) -> None:
    # given
    deployment.start_all()
    [shown] = blocks(README, "json")
    [later] = inline_curls(README)

    # when
    answer = run(blocks(README, "sh")[1], deployment)

    # then
    assert timeless(json.loads(answer)) == timeless(json.loads(shown))
    assert list(json.loads(answer)) == list(json.loads(shown))
    wait_until(lambda: json.loads(run(later, deployment))["status"] == "paid", "the order to be paid")


@NEEDS_CURL
@ON_SQLITE
def test_faults_of_the_sandbox_are_set_by_the_commands_shown(deployment: Deployment) -> None:
    # given
    deployment.declare_topology()
    deployment.start("menu")
    deployment.wait_until_healthy("menu")

    # when
    output = run(blocks("docs/siblings.md", "sh")[1], deployment)

    # then
    decoder, active = json.JSONDecoder(), []
    while output := output.strip():
        answer, end = decoder.raw_decode(output)
        active.append(answer["active"])
        output = output[end:]
    assert active == [{"delay": 2, "duplicate": True}, {"delay": 2, "duplicate": True}, {}]


@MOSTLY_ON_POSTGRESQL
def test_production_commands_of_the_readme_bring_an_order_to_paid(deployment: Deployment) -> None:
    # given: deploy/make-venv has run the two install commands for the venv of this test run
    venv, install, export, migrate, topology, *processes = without_comments(blocks(README, "sh")[2])
    assert venv == "python3 -m venv .venv && . .venv/bin/activate"
    assert install == "pip install --require-hashes -r requirements.txt"
    for placeholder, url in (("postgresql://user:password@host/orders", deployment.database_url),
                             ("amqp://user:password@host/", deployment.amqp_url)):  # fmt: skip
        assert placeholder in export
        export = export.replace(placeholder, f"'{url}'")

    # when
    run("\n".join([export, migrate, topology, migrate, topology]), deployment)
    for number, line in enumerate(processes):
        deployment.start_command(f"readme-{number}", f"/bin/sh -c {shlex.quote(f'{export}; exec {line}')}")
    deployment.start("users", "menu", "payment")
    deployment.wait_until_healthy()
    posted = deployment.client.post_order()

    # then
    assert len(processes) == 3
    assert posted.status == 201
    deployment.wait_until_paid([posted.body["id"]])


def is_in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.timeout(300)
def test_make_demo_shows_a_paid_order(broker: Broker) -> None:
    """`make test`, the block's other command, runs this test."""
    # given
    assert without_comments(blocks(README, "sh")[0]) == ["make demo", "make test"]
    if ports := [port for port in FIXED_PORTS if is_in_use(port)]:
        pytest.skip(f"ports {ports} are in use, perhaps by `make run`")
    env = os.environ | {"RABBITMQ_URL": broker.amqp_url, "RABBITMQ_MANAGEMENT_URL": broker.management_url or ""}

    # when
    done = subprocess.run(["make", "demo"], env=env, cwd=PROJECT_DIR, capture_output=True, text=True, timeout=240)

    # then
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The order is paid." in done.stdout
    assert SECURED in done.stdout


#: The test of each block by page and language, in order. Blocks without a language are drawings.
TESTS: dict[tuple[str, str], list[object]] = {
    (README, "sh"): [
        test_make_demo_shows_a_paid_order,
        test_curl_of_the_readme_is_answered_as_shown_and_the_order_becomes_paid,
        test_production_commands_of_the_readme_bring_an_order_to_paid,
    ],
    (README, "json"): [test_curl_of_the_readme_is_answered_as_shown_and_the_order_becomes_paid],
    ("docs/access.md", "sh"): ["tests/e2e/test_access_page.py"] * 6,
    ("docs/operations.md", "sh"): [
        *["tests/integration/test_restore.py"] * 6,
        *["tests/integration/test_documented_commands.py"] * 2,
    ],
    ("docs/console.md", "sh"): ["tests/integration/test_documented_commands.py"],
    ("docs/runbook.md", "sh"): ["tests/integration/test_documented_commands.py"] * 26,
    ("docs/rest.md", "sh"): ["tests/e2e/test_access.py", "tests/e2e/test_proxies.py"],
    ("docs/rights.md", "sh"): [
        "tests/integration/test_broker_rights.py",
        "tests/e2e/test_tls.py",
        "tests/integration/test_roles.py",
        "tests/integration/test_postgres_tls.py",
    ],
    ("docs/saga.md", "mermaid"): ["tests/unit/test_pages.py"],
    ("docs/siblings.md", "json"): [SIBLING_KIT] * 2,
    ("docs/siblings.md", "sh"): [SIBLING_KIT, test_faults_of_the_sandbox_are_set_by_the_commands_shown],
    ("docs/siblings.md", "python"): [SIBLING_KIT] * 4,
    ("docs/siblings.md", "javascript"): [SIBLING_KIT] * 4,
}


def test_every_block_and_every_curl_has_a_test() -> None:
    counts = {
        (page, language): len(blocks(page, language))
        for page in PAGES
        for language in re.findall(r"^```([a-z]+)$", text(page), re.MULTILINE)
    }

    assert counts == {where: len(tests) for where, tests in TESTS.items()}
    assert [page for page in PAGES for _ in inline_curls(page)] == [README]
