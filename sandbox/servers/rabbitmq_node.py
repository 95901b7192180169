"""A private RabbitMQ node from the installed `rabbitmq-server`, run as the current user, root included.

Its name, ports, cookie, configuration, data and Erlang name server (epmd) are its own, so that it does not interfere
with other brokers on this machine, and leaves nothing behind when it stops.
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

from sandbox.servers import ports, process_group
from sandbox.servers.process_group import Command
from sandbox.servers.sources import Unavailable

#: Debian's script itself: the one on PATH is a wrapper that switches to the user `rabbitmq`.
DEBIAN_SCRIPT = "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"
#: Erlang's name server, if it is not on PATH.
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
    return max(glob.glob(DEBIAN_SCRIPT), default=None) or shutil.which("rabbitmq-server")


def free_ports(*, preferred: tuple[int, int] = (0, 0)) -> Ports:
    """Four free ports; AMQP and management have the preferred ones if those are free."""
    return Ports(*ports.free_ports(*preferred, 0, 0))


@contextlib.contextmanager
def running(
    data_dir: Path,
    node_ports: Ports,
    *,
    keep: bool,
    configuration: str = "",
    erlang_arguments: str = "",
    plugins: tuple[str, ...] = (),
) -> Iterator[None]:
    """Run a node on these ports with all its files in data_dir. Yields when AMQP and management are up.

    Without `keep`, the node starts empty and is killed at the end: a graceful shutdown takes 6 s. `configuration`:
    more lines for rabbitmq.conf. `plugins`: those besides rabbitmq_management.
    """
    if not keep:
        shutil.rmtree(data_dir, ignore_errors=True)
    server = script()
    epmd = shutil.which("epmd") or max(glob.glob(DEBIAN_EPMD), default=None)
    if not server or not epmd:
        raise Unavailable("rabbitmq-server is not installed")
    env = _environment(data_dir.absolute(), node_ports)
    (data_dir / "enabled_plugins").write_text(f"[{', '.join(('rabbitmq_management', *plugins))}].\n")
    with (data_dir / "rabbitmq.conf").open("a") as file:
        file.write(configuration)
    env["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"] += f" {erlang_arguments}"
    epmd_arguments = [epmd, "-port", str(node_ports.epmd), "-address", "127.0.0.1"]
    name_server = Command(epmd_arguments, env, data_dir / "epmd.log", stop_seconds=2)
    log = data_dir / "node.log"
    node = Command([server], env, log, stop_signal="TERM" if keep else "KILL")

    # The name server starts first and stops last: the node deregisters when it stops.
    with process_group.serving(name_server), process_group.serving(node) as process:
        listening = [node_ports.amqp, node_ports.management]
        process_group.wait_ready(process, log, lambda: all(map(_listens, listening)), seconds=START_SECONDS)
        yield


def _environment(data_dir: Path, node_ports: Ports) -> dict[str, str]:
    """Write the node's configuration; return its environment, without the RABBITMQ_* of this process."""
    home = data_dir / "home"
    home.mkdir(parents=True, exist_ok=True)
    cookie = home / ".erlang.cookie"
    if not cookie.exists():
        cookie.touch(0o600)
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)  # Erlang refuses a cookie that others may read
    (data_dir / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{node_ports.amqp}\n"
        "management.tcp.ip = 127.0.0.1\n"
        f"management.tcp.port = {node_ports.management}\n"
        "collect_statistics_interval = 1000\n"  # milliseconds; the console is updated more often than every 5 s
    )
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
    return inherited | {
        "HOME": str(home),
        "ERL_EPMD_PORT": str(node_ports.epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RUNNING_UNDER_SYSTEMD": "true",  # the script then becomes the node, and signals reach it
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_NODENAME": "order-service@localhost",
        "RABBITMQ_DIST_PORT": str(node_ports.distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
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
