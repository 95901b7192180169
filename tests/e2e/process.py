"""One process of the Procfile, as an operator starts, stops and kills it."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
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
#: How many ports each worker of pytest-xdist has for itself, from 20,000 on.
PORTS_PER_WORKER = 2000


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
    """Return ports that no earlier call returned, below the range from which the kernel takes those of outgoing connections.

    A port is free until its process has started, so each worker of pytest-xdist has a range of its own and goes through
    it in order: a port comes again after the whole range only.
    """
    with contextlib.ExitStack() as bound:  # all bound at once, so that they differ
        ports: list[int] = []
        for port in itertools.islice(_own_ports, PORTS_PER_WORKER):
            with contextlib.suppress(OSError):
                bound.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                break
        return ports


def _ports_of_this_worker() -> Iterator[int]:
    first = 20_000 + PORTS_PER_WORKER * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 6)
    start = random.randrange(PORTS_PER_WORKER)  # another run on this machine is elsewhere in the range
    return itertools.cycle(first + (start + i) % PORTS_PER_WORKER for i in range(PORTS_PER_WORKER))


_own_ports = _ports_of_this_worker()
