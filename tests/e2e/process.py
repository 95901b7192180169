"""One process of the Procfile, as an operator starts, stops and kills it."""

import contextlib
import os
import random
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from sandbox.servers import process_group

PROJECT_DIR = Path(__file__).parents[2]
#: The command line of each process by its name.
PROCFILE = dict(line.split(": ", 1) for line in (PROJECT_DIR / "Procfile").read_text().splitlines())
#: Seconds for processes to start, on two busy cores.
START_SECONDS = 40
#: Seconds within which a process ends after SIGTERM; the service promises it.
STOP_SECONDS = 10


class Process:
    """A command in a process group of its own, which ends with the test run at the latest."""

    def __init__(self, name: str, command_line: str, env: Mapping[str, str], log_file: Path) -> None:
        self.name, self.log_file = name, log_file
        self._stack = contextlib.ExitStack()
        command = process_group.Command(["/bin/sh", "-c", f"exec {command_line}"], env, log_file, cwd=PROJECT_DIR)
        self._popen = self._stack.enter_context(process_group.serving(command))

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def log_tail(self) -> str:
        return f"{self.log_file.name}:\n{process_group.tail(self.log_file, 25)}"

    def request_stop(self) -> None:
        """Send SIGTERM without waiting for the end."""
        process_group.request_stop(self._popen)

    def terminate(self) -> int:
        """Send SIGTERM; return the exit status, or fail after STOP_SECONDS."""
        self.request_stop()
        return self.exit_status(seconds=STOP_SECONDS)

    def exit_status(self, *, seconds: float = START_SECONDS) -> int:
        """Wait for a process that ends by itself."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end within {seconds:g} s\n{self.log_tail()}")

    def kill(self) -> None:
        """Send SIGKILL to the process and its children."""
        os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def close(self) -> None:
        self._stack.close()


def free_ports(count: int) -> list[int]:
    """Return ports below the range from which the kernel takes those of outgoing connections, to avoid collisions.

    Each worker of pytest-xdist has a range of its own, because a port is free until its process has started.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 6
    own = range(20_000 + 2_000 * worker, 22_000 + 2_000 * worker)
    with contextlib.ExitStack() as bound:  # all bound at once, so that they differ
        ports: list[int] = []
        for port in random.sample(own, 1000):
            if len(ports) == count:
                break
            with contextlib.suppress(OSError):
                bound.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
        return ports
