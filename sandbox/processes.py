"""The Procfile's processes as `make demo` and `make run` start them: their ports, environment and preparation."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox import web
from sandbox.servers import process_group
from sandbox.servers.broker import Broker
from sandbox.servers.process_group import Command
from sandbox.servers.sources import say_aloud

PROJECT_DIR = Path(__file__).parent.parent
#: Where each process with an HTTP side listens.
PORTS = {"users": 5001, "menu": 5002, "api": 5003, "payment": 5004}
#: Seconds for all processes to be healthy; a busy two-core machine took 10.
HEALTHY_SECONDS = 60
#: Seconds that a process gets to finish what it has in hand.
STOP_SECONDS = 12
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Trouble(Exception):
    """Something went wrong; the text says what, and what to do about it."""


@dataclass(frozen=True)
class Started:
    """A running process of the Procfile."""

    name: str
    process: subprocess.Popen[bytes]


def require_free_ports() -> None:
    """Raise Trouble that names every taken port."""
    taken = [f"  {port} (for {name})" for name, port in PORTS.items() if not _is_free(port)]
    if taken:
        raise Trouble(
            "These ports are taken, perhaps by another `make run` or by `docker-compose up`:\n"
            + "\n".join(taken)
            + "\nStop what listens there (`ss -ltnp` names it), and run the command again."
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def environment(broker: Broker, amqp_url: str, **more: str) -> dict[str, str]:
    """The environment that every process gets: ours, the addresses of everything, and `more`."""
    programs = Path(sys.executable).parent  # .venv/bin, where gunicorn is
    env = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "RABBITMQ_URL": amqp_url,
        "PORT": str(PORTS["api"]),
        "USERS_PORT": str(PORTS["users"]),
        "MENU_PORT": str(PORTS["menu"]),
        "PAYMENT_PORT": str(PORTS["payment"]),
        "USER_SERVICE_URL": os.environ.get("USER_SERVICE_URL") or f"http://localhost:{PORTS['users']}",
    }
    if broker.management_url:
        env["RABBITMQ_MANAGEMENT_URL"] = broker.management_url
    return env | more


def prepare(env: Mapping[str, str]) -> None:
    """Bring the database and the broker's topology up to date, as before every start. May be repeated."""
    for step in ("migrate", "topology"):
        command = [sys.executable, "-m", "order_service", step]
        done = subprocess.run(command, cwd=PROJECT_DIR, env=env, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise Trouble(f"`python -m order_service {step}` failed:\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def started(env: Mapping[str, str], log_dir: Path | None) -> Iterator[list[Started]]:
    """Run all processes of the Procfile for the length of the block, each with its log in log_dir.

    None: each with a pipe as its output, for the caller to read.
    """
    running: list[Started] = []
    with contextlib.ExitStack() as stack:
        for line in (PROJECT_DIR / "Procfile").read_text().splitlines():
            name, _, shell_line = line.partition(": ")
            log = log_dir / f"{name}.log" if log_dir else None
            command = Command(
                ["/bin/sh", "-c", f"exec {shell_line}"], env, log, cwd=PROJECT_DIR, stop_seconds=STOP_SECONDS
            )
            running.append(Started(name, stack.enter_context(process_group.serving(command))))
        # Left first: all are told to stop before the first one is waited for.
        stack.callback(_let_go, running)
        yield running


def _let_go(running: list[Started]) -> None:
    for each in running:
        process_group.let_go(each.process)


def wait_healthy(require_alive: Callable[[], None]) -> None:
    """Return once every process with an HTTP side says that it is healthy; `require_alive` may raise at each look."""
    deadline = time.monotonic() + HEALTHY_SECONDS
    waiting = dict(PORTS)
    while waiting:
        require_alive()
        waiting = {name: port for name, port in waiting.items() if not _is_healthy(port)}
        if waiting and time.monotonic() > deadline:
            raise Trouble(f"Not healthy after {HEALTHY_SECONDS} s: {', '.join(waiting)}.")
        time.sleep(process_group.POLL_SECONDS)


def _is_healthy(port: int) -> bool:
    """Whether /healthz says so, with the broker connected where the process tells (the Menu and Payment Services)."""
    with contextlib.suppress(web.NoAnswer):
        answer = web.get(f"http://localhost:{port}/healthz")
        return answer.status == 200 and answer.body.get("broker") != "absent"
    return False


def require_alive(running: list[Started]) -> None:
    """Raise Trouble when a process has ended."""
    for each in running:
        if each.process.poll() is not None:
            raise Trouble(f"{each.name} ended by itself, with status {each.process.returncode}.")


def interrupt_once() -> None:
    """From now on a first Ctrl-C, SIGTERM or closed terminal raises KeyboardInterrupt; later ones change nothing.

    So they cannot disturb the cleaning up.
    """

    def interrupt(signum: int, frame: object) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        say_aloud("\nStopping ...")
        raise KeyboardInterrupt

    for each in STOP_SIGNALS:
        signal.signal(each, interrupt)
