"""Finding a broker, and starting a private one, as a fresh machine needs it."""

import contextlib
import ipaddress
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sandbox.servers import apt, broker, docker, process_group, rabbitmq_node
from sandbox.servers.broker import Broker
from sandbox.servers.http_client import RequestFailed
from sandbox.servers.management import Management
from sandbox.servers.sources import Say, Unavailable

#: An address where nothing listens: port 1 is reserved.
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"

requires_rabbitmq_server = pytest.mark.skipif(
    rabbitmq_node.script() is None, reason="rabbitmq-server is not installed, and a test does not install it"
)


@contextlib.contextmanager
def no_docker(say: Say) -> Iterator[tuple[docker.Urls, str]]:
    raise Unavailable("no Docker in this test")
    yield


def finding(data_dir: Path, said: list[str], **more: Any) -> AbstractContextManager[Broker]:
    return broker.running(data_dir, docker=no_docker, say=said.append, **more)


def refuses(port: int | None) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port or 0)) != 0


@pytest.fixture
def configured(broker: Broker, amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a running broker that the settings name."""
    assert broker.management_url
    monkeypatch.setenv("RABBITMQ_URL", amqp_url)
    monkeypatch.setenv("RABBITMQ_MANAGEMENT_URL", broker.management_url)
    return amqp_url


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_URL", NOWHERE)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(rabbitmq_node, "DEBIAN_SCRIPT", "/nonexistent/*")


@requires_rabbitmq_server
def test_private_node_accepts_connections_and_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", NOWHERE)
    monkeypatch.setenv("RABBITMQ_NODE_PORT", "1")  # a setting of another node, which this one ignores
    said: list[str] = []

    with finding(tmp_path / "a directory" / "broker", said) as found:
        assert broker.refusal(found.amqp_url) is None
        assert found.management_url
        assert Management(found.management_url).call("GET", "whoami")["name"] == "guest"
        assert "no Docker in this test" in found.how
        with broker.fresh_vhost(found, "test") as vhost_url:
            assert broker.refusal(vhost_url) is None
        assert broker.refusal(vhost_url) is not None
        addresses = listening_addresses(processes_below(tmp_path))
        assert len(addresses) >= 4  # AMQP, management, Erlang distribution, epmd
        assert {address for address, _ in addresses} <= {"127.0.0.1", "::1"}

    assert refuses(urlsplit(found.amqp_url).port)
    assert refuses(urlsplit(found.management_url).port)
    eventually(lambda: not processes_below(tmp_path), "the node and its name server to be gone")
    assert said[-1] == f"RabbitMQ: {found.how}"


@requires_rabbitmq_server
@pytest.mark.field
def test_data_of_a_kept_node_remains_after_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_URL", NOWHERE)

    with finding(tmp_path, [], keep=True) as found:
        assert found.management_url
        Management(found.management_url).create_vhost("kept")

    with finding(tmp_path, [], keep=True) as again:
        assert again.management_url
        vhosts = Management(again.management_url).call("GET", "vhosts")
        assert "kept" in {vhost["name"] for vhost in vhosts}


@requires_rabbitmq_server
def test_private_node_ends_after_its_parent_is_killed(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    program = (
        "import sys, pathlib; from sandbox.servers import rabbitmq_node as node\n"
        "ports = node.free_ports()\n"
        "with node.running(pathlib.Path(sys.argv[1]), ports, keep=False): print(ports.amqp, flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        port = int(parent.stdout.readline())
        assert not refuses(port)
        parent.kill()

    eventually(lambda: refuses(port), "the node to stop listening")
    eventually(lambda: not processes_below(tmp_path), "its processes to be gone")


def listening_addresses(processes: list[str]) -> set[tuple[str, int]]:
    """Where these processes listen: addresses and ports."""
    sockets = {
        os.readlink(link) for pid in processes for link in Path("/proc", pid, "fd").iterdir() if link.is_symlink()
    }
    found = set()
    for table, order in (("tcp", "<I"), ("tcp6", "<4I")):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                address, port = local.split(":")
                packed = struct.pack(order.replace("<", ">"), *struct.unpack(order, bytes.fromhex(address)))
                found.add((str(ipaddress.ip_address(packed)), int(port, 16)))
    return found


def processes_below(directory: Path) -> list[str]:
    """The processes that were started with their data below the directory, zombies apart."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environ = (process / "environ").read_bytes()
            if f"HOME={directory}".encode() in environ:
                found.append(process.name)
    return found


def test_a_running_broker_is_used_and_never_emptied(configured: str, management: Any, tmp_path: Path) -> None:
    management.api.call("PUT", "queues", management.vhost, "theirs", body={"durable": True})
    said: list[str] = []

    with finding(tmp_path, said) as found:
        assert found.amqp_url == configured
        assert found.how.startswith("RABBITMQ_URL amqp://")

    assert "theirs" in management.queues()
    assert urlsplit(configured).password not in said[-1].partition("@")[0].split(":")


def test_of_several_addresses_the_first_reachable_one_is_used(
    configured: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", f"{NOWHERE}, {configured}")

    with finding(tmp_path, []) as found:
        assert found.amqp_url == configured


def test_a_broker_without_management_api_is_skipped_when_a_fresh_vhost_is_needed(
    nothing_installed: None, configured: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_MANAGEMENT_URL", "http://guest:guest@127.0.0.1:1")

    with pytest.raises(Unavailable, match="its management API, which creates fresh vhosts, is not"):
        finding(tmp_path, []).__enter__()

    with finding(tmp_path, [], needs_management=False) as found:
        assert (found.amqp_url, found.management_url) == (configured, None)
        with pytest.raises(Unavailable, match="fresh vhost"):
            broker.fresh_vhost(found, "test").__enter__()


def test_advice_names_the_three_sources_when_none_is_available(nothing_installed: None, tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as refused:
        broker.running(tmp_path, say=print).__enter__()

    message = str(refused.value)
    for source in ("export RABBITMQ_URL=", "Docker is not installed", "apt-get install rabbitmq-server"):
        assert source in message
    assert "guest:guest@127" not in message


def test_docker_without_a_running_engine_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])

    with pytest.raises(Unavailable, match="no running engine"):
        docker.require_image("rabbitmq:4-management", print)


def test_without_root_or_sudo_nothing_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "apt-get").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(Unavailable, match="sudo apt-get install rabbitmq-server"):
        apt.install("rabbitmq-server", say=print)


def test_a_server_that_ends_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    command = process_group.Command(["/bin/sh", "-c", "echo a reason; exit 3"], os.environ, log)

    with process_group.serving(command) as process, pytest.raises(Unavailable, match=r"(?s)status 3.*a reason"):
        process_group.wait_ready(process, log, lambda: False, seconds=10)


def test_an_unreachable_management_api_is_reported_with_the_call() -> None:
    with pytest.raises(RequestFailed, match=r"GET http://127\.0\.0\.1:1/api/whoami"):
        Management("http://guest:secret@127.0.0.1:1").call("GET", "whoami")
