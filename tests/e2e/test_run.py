"""`make run`: siblings can be left out, and one that is killed does not end the others."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.process import PROJECT_DIR, free_ports
from tests.e2e.test_documents import FIXED_PORTS, is_in_use
from tests.polling import wait_until

ORDER = json.dumps({"user_id": 1, "menu_ids": [1, 2]}).encode()
JSON = {"content-type": "application/json"}


class Run:
    """`make run` with these arguments; leaving the `with` block ends it."""

    def __init__(self, directory: Path, amqp_url: str, *arguments: str) -> None:
        self._log = directory / "run.log"
        env = os.environ | {
            "RABBITMQ_URL": amqp_url,
            "DATABASE_URL": f"sqlite:///{directory}/orders.db",
            "SANDBOX_DIR": str(directory / "sandbox"),
        }
        with self._log.open("wb") as log:
            command = ["make", "run", *arguments]
            self._process = subprocess.Popen(
                command, cwd=PROJECT_DIR, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def __enter__(self) -> "Run":
        self.wait_for("Ready")
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGINT)
        self._process.wait(30)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def pid_of(self, module: str) -> int:
        """The process of this run, and of no other on the machine, that executes a Python module."""
        listing = subprocess.run(["ps", "-axo", "pid=,ppid=,command="], capture_output=True, text=True, check=True)
        rows = [line.split(None, 2) for line in listing.stdout.splitlines()]
        pids = {str(self._process.pid)}
        while children := {pid for pid, parent, _ in rows if parent in pids} - pids:
            pids |= children
        [found] = [pid for pid, _, command in rows if pid in pids and re.match(rf"\S*python\S* -m {module}$", command)]
        return int(found)

    def wait_for(self, text: str) -> None:
        wait_until(
            lambda: text in self.log or self._process.poll() is not None, text, seconds=90, details=lambda: self.log
        )
        assert text in self.log, self.log


@pytest.fixture
def free() -> None:
    if ports := [port for port in FIXED_PORTS if is_in_use(port)]:
        pytest.skip(f"ports {ports} are in use, perhaps by `make run`")


def status(method: str, url: str, body: bytes | None = None) -> int:
    request = urllib.request.Request(url, body, JSON, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.field
@pytest.mark.usefixtures("free")
def test_another_menu_takes_the_place_of_the_one_left_out_and_a_killed_sibling_ends_nothing(
    tmp_path: Path, amqp_url: str
) -> None:
    # given
    with Run(tmp_path, amqp_url, "WITHOUT=menu") as run:
        assert "Not started: menu." in run.log
        assert status("POST", "http://localhost:5003/orders", ORDER) == 202

        # when: another process in its place
        env = os.environ | {"RABBITMQ_URL": amqp_url, "SANDBOX_DIR": str(tmp_path), "MENU_PORT": str(free_ports(1)[0])}
        with subprocess.Popen([sys.executable, "-m", "sandbox.menu"], cwd=PROJECT_DIR, env=env) as menu:
            try:
                url = "http://localhost:5003/orders/1"
                wait_until(lambda: b'"paid"' in urllib.request.urlopen(url).read(), "the order to be paid", seconds=30)
            finally:
                menu.kill()

        # and: a sibling of the sandbox dies
        os.kill(run.pid_of("sandbox.payment"), signal.SIGKILL)
        run.wait_for("exited with status")

        # then
        assert status("GET", "http://localhost:5003/readyz") == 200
        assert status("GET", "http://localhost:5001/users/1") == 200
    assert run.log.count("the others keep running") == 1


@pytest.mark.field
@pytest.mark.usefixtures("free")
def test_tokens_signed_with_the_key_that_is_created_are_required_and_accepted(tmp_path: Path, amqp_url: str) -> None:
    with Run(tmp_path, amqp_url, "AUTH=jwt") as run:
        run.wait_for("Requests need a token")
        assert status("POST", "http://localhost:5003/orders", ORDER) == 401

        # when: the commands that it prints
        shown = re.search(r"    (TOKEN=.*\n    curl .*)\n", run.log)
        assert shown
        script = shown[1].replace("curl ", "curl --no-progress-meter --fail ")
        listed = subprocess.run(["bash", "-euc", script], cwd=PROJECT_DIR, capture_output=True, text=True, timeout=60)

    assert (listed.returncode, json.loads(listed.stdout)["orders"]) == (0, []), listed.stderr


def test_only_siblings_can_be_left_out() -> None:
    command = [sys.executable, "-m", "sandbox.run", "--without", "menu api"]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, timeout=30)

    assert done.returncode == 2
    assert "api: only users, menu, payment can be left out" in done.stderr
