"""The Procfile's processes as `make demo` and `make run` start them: their ports, environment and preparation."""

import contextlib
import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from sandbox.servers import http_client, ports, process_group
from sandbox.servers.broker import Broker
from sandbox.servers.broker_users import USERS
from sandbox.servers.process_group import Command
from sandbox.servers.sources import Unavailable, print_line

PROJECT_DIR = Path(__file__).parent.parent
#: The port of each process that serves HTTP.
PORTS = {"users": 5001, "menu": 5002, "api": 5003, "payment": 5004}
#: The port of each process of the Order Service for its metrics and health.
OPS_PORTS = {"api": 5013, "consumers": 5014, "publishers": 5015}
#: The processes that represent other teams' services; the Order Service works while they are absent.
SIBLINGS = ("users", "menu", "payment")
#: Seconds for all processes to be healthy; a busy two-core machine took 10.
HEALTHY_SECONDS = 60
#: Seconds that a process gets to finish its current work.
STOP_SECONDS = 12
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: The broker's URL for each of its users, or None: all processes have that of the environment.
Logins = Mapping[str, str] | None
#: Running processes by their names in the Procfile.
Processes = Mapping[str, subprocess.Popen[bytes]]


class StartupError(Exception):
    """An expected failure of `make demo` or `make run`; the text says what happened and what to do."""


def exit_status(command: Callable[[], None], *, if_interrupted: int, without: Collection[str] = ()) -> int:
    """Run the command if its ports are free. Prints an expected failure, and returns the exit status."""
    interrupt_once()
    try:
        require_free_ports(without)
        command()
    except KeyboardInterrupt:
        print_line("Stopped.")
        return if_interrupted
    except (StartupError, Unavailable) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def require_free_ports(without: Collection[str] = ()) -> None:
    needed = [(name, port) for ports_of in (PORTS, OPS_PORTS) for name, port in ports_of.items() if name not in without]
    if used := [f"  {port} (for {name})" for name, port in needed if ports.free_ports(port) != [port]]:
        raise StartupError(
            "These ports are in use, perhaps by another `make run` or by `docker-compose up`:\n"
            + "\n".join(used)
            + "\nStop the processes that listen there (`ss -ltnp` lists them), and run the command again."
        )


def environment(broker: Broker, amqp_url: str, **more: str) -> dict[str, str]:
    """The environment of every process: this one's, the addresses of all services, and `more`."""
    programs = Path(sys.executable).parent  # .venv/bin, where gunicorn is
    env = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        # For people, although the output is no terminal.
        "LOG_FORMAT": os.environ.get("LOG_FORMAT") or "console",
        "RABBITMQ_URL": amqp_url,
        "PORT": str(PORTS["api"]),
        **{f"{name.upper()}_PORT": str(PORTS[name]) for name in ("users", "menu", "payment")},
        "USER_SERVICE_URL": os.environ.get("USER_SERVICE_URL") or f"http://localhost:{PORTS['users']}",
        "ORDER_BOARD_MENU_URL": os.environ.get("ORDER_BOARD_MENU_URL") or f"http://localhost:{PORTS['menu']}/menus",
    }
    if broker.management_url:
        env["RABBITMQ_MANAGEMENT_URL"] = broker.management_url
    if not _is_address(env.get("HOST", "")):
        env.pop("HOST", None)
    return env | more


def _is_address(host: str) -> bool:
    """Whether HOST is one of ours: shells and conda set it to the name of the machine or its platform."""
    with contextlib.suppress(ValueError):
        return host == "localhost" or bool(ipaddress.ip_address(host))
    return False


def with_login(env: Mapping[str, str], process: str, logins: Logins) -> Mapping[str, str]:
    """The environment with the URL of the process's own user; without any for a process that needs no broker."""
    if logins is None:
        return env
    own = {"RABBITMQ_URL": logins[USERS[process]]} if process in USERS else {}
    return {name: value for name, value in env.items() if name != "RABBITMQ_URL"} | own


def prepare(env: Mapping[str, str], logins: Logins = None) -> None:
    """Bring the database and the broker's topology up to date. May be repeated."""
    print_line("Preparing the database and the broker ...")
    # Kept data may have queues of an older version.
    for step in ("migrate", "topology --recreate"):
        command = [sys.executable, "-m", "order_service", *step.split()]
        own = with_login(env, step.partition(" ")[0], logins)
        done = subprocess.run(command, cwd=PROJECT_DIR, env=own, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise StartupError(f"`python -m order_service {step}` failed:\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def started(
    env: Mapping[str, str], log_dir: Path | None, *, logins: Logins = None, without: Collection[str] = ()
) -> Iterator[Processes]:
    """Run the Procfile for the length of the block, but not the processes named in `without`.

    Their logs are in log_dir, or (None) in pipes for the caller to read.
    """
    running: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as stack:
        for line in (PROJECT_DIR / "Procfile").read_text().splitlines():
            name, _, program = line.partition(": ")
            if name in without:
                continue
            arguments, log = ["/bin/sh", "-c", f"exec {program}"], log_dir / f"{name}.log" if log_dir else None
            own = {"ORDER_OPS_PORT": str(OPS_PORTS[name])} if name in OPS_PORTS else {}
            each = with_login({**env, **own}, name, logins)
            command = Command(arguments, each, log, cwd=PROJECT_DIR, stop_seconds=STOP_SECONDS)
            running[name] = stack.enter_context(process_group.serving(command))
        try:
            yield running
        finally:  # all are asked to stop before the first is waited for
            for process in running.values():
                process_group.request_stop(process)


def wait_healthy(running: Processes) -> None:
    """Return once every process that serves HTTP is healthy. Raises StartupError if one exits or takes too long."""
    deadline = time.monotonic() + HEALTHY_SECONDS
    ports = [*PORTS.items(), *OPS_PORTS.items()]
    waiting = {port: name for name, port in ports if name in running}
    while waiting:
        require_alive(running)
        waiting = {port: name for port, name in waiting.items() if not _is_healthy(port)}
        if waiting and time.monotonic() > deadline:
            raise StartupError(f"Not healthy after {HEALTHY_SECONDS} s: {', '.join(waiting.values())}.")
        time.sleep(process_group.POLL_SECONDS)


def _is_healthy(port: int) -> bool:
    """Whether a process of ours is ready, or a sibling is healthy and does not report the broker as absent."""
    path = "readyz" if port in OPS_PORTS.values() else "healthz"
    with contextlib.suppress(http_client.RequestFailed):
        return bool(http_client.call("GET", f"http://localhost:{port}/{path}").get("broker") != "absent")
    return False


def require_alive(running: Processes) -> None:
    for name, process in running.items():
        if process.poll() is not None:
            raise StartupError(f"{name} exited unexpectedly, with status {process.returncode}.")


def interrupt_once() -> None:
    """Raise KeyboardInterrupt at the first Ctrl-C, SIGTERM or SIGHUP, and ignore later ones during the cleanup."""

    def interrupt(signum: int, frame: object) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        print_line("\nStopping ...")
        raise KeyboardInterrupt

    for each in STOP_SIGNALS:
        signal.signal(each, interrupt)
