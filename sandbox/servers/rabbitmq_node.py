"""A private RabbitMQ node on this machine, from the installed `rabbitmq-server`, everything of its own.

Its own name, ports, cookie, configuration, data and Erlang name server (epmd), so that it gets along with any other
broker here, and so that nothing of it is left when it stops. Runs as whoever we are, root included.
"""

import contextlib
import glob
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox.servers import process_group
from sandbox.servers.process_group import Command
from sandbox.servers.sources import Unavailable

#: Where Debian keeps the real script. The one on PATH is a wrapper that switches to the user `rabbitmq`.
DEBIAN_SCRIPT = "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"
#: Erlang's name server: on PATH, or where Debian keeps it.
DEBIAN_EPMD = "/usr/lib/erlang/erts-*/bin/epmd"
#: Seconds for the first start; a busy two-core machine took 25.
START_SECONDS = 120


@dataclass(frozen=True)
class Ports:
    """Where a node listens: AMQP, the management API, Erlang distribution and Erlang's name server."""

    amqp: int
    management: int
    distribution: int
    epmd: int


def script() -> str | None:
    """The rabbitmq-server script to run, or None when none is installed."""
    return next(iter(sorted(glob.glob(DEBIAN_SCRIPT), reverse=True)), None) or shutil.which("rabbitmq-server")


def free_ports(*, preferred: tuple[int, ...] = ()) -> Ports:
    """Four free ports; the first ones are the preferred ones where those are free."""
    with contextlib.ExitStack() as held:  # all held at once, so that they differ
        return Ports(*[_free_port(held, (*preferred, 0, 0, 0, 0)[index]) for index in range(4)])


def _free_port(held: contextlib.ExitStack, preferred: int) -> int:
    listener = held.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not count
    try:
        listener.bind(("127.0.0.1", preferred))
    except OSError:
        listener.bind(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    return port


@contextlib.contextmanager
def running(data_dir: Path, ports: Ports, *, keep: bool) -> Iterator[None]:
    """Run a node on these ports with all its files in data_dir. Yields when AMQP and management are up.

    Without `keep` the node starts empty, and is killed at the end instead of taking 6 s to put its data in order.
    """
    if not keep:
        shutil.rmtree(data_dir, ignore_errors=True)
    server = script()
    epmd = shutil.which("epmd") or next(iter(sorted(glob.glob(DEBIAN_EPMD), reverse=True)), None)
    if not server or not epmd:
        raise Unavailable("rabbitmq-server is not installed")
    env = _environment(data_dir.absolute(), ports)
    name_server = Command(
        [epmd, "-port", str(ports.epmd), "-address", "127.0.0.1"], env, data_dir / "epmd.log", stop_seconds=2
    )
    log = data_dir / "node.log"
    node = Command([server], env, log, stop_signal="TERM" if keep else "KILL")
    # Entered first, left last: the node signs off at its name server when it stops.
    with process_group.serving(name_server), process_group.serving(node) as process:
        process_group.wait_ready(
            process, log, lambda: _listens(ports.amqp) and _listens(ports.management), seconds=START_SECONDS
        )
        yield


def _environment(data_dir: Path, ports: Ports) -> dict[str, str]:
    """Write the node's configuration; return its environment, without whatever RABBITMQ_* is set outside."""
    home = data_dir / "home"
    home.mkdir(parents=True, exist_ok=True)
    cookie = home / ".erlang.cookie"
    if not cookie.exists():
        cookie.touch(0o600)
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)  # Erlang refuses a cookie that others may read
    (data_dir / "enabled_plugins").write_text("[rabbitmq_management].\n")
    (data_dir / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{ports.amqp}\n"
        "management.tcp.ip = 127.0.0.1\n"
        f"management.tcp.port = {ports.management}\n"
        "collect_statistics_interval = 1000\n"  # milliseconds; the console follows sooner than every 5 s
    )
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
    return outside | {
        "HOME": str(home),
        "ERL_EPMD_PORT": str(ports.epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RUNNING_UNDER_SYSTEMD": "true",  # the script then becomes the node, and signals reach it
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_NODENAME": "order-service@localhost",
        "RABBITMQ_DIST_PORT": str(ports.distribution),
        "RABBITMQ_CONFIG_FILE": str(data_dir / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(data_dir / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(data_dir / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(data_dir / "mnesia"),
        "RABBITMQ_LOG_BASE": str(data_dir / "log"),
        "RABBITMQ_PLUGINS_EXPAND_DIR": str(data_dir / "plugins"),
    }


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
