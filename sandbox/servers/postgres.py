"""Finds a PostgreSQL server for the tests and benchmarks, or starts one; what it starts, it stops.

The ways, in this order: the server at TEST_POSTGRES_URL; Docker, with testcontainers; a private cluster of the
installed PostgreSQL, which is installed from Debian's package when it is missing and we may.
"""

import contextlib
import glob
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from sandbox.servers import apt, docker, process_group
from sandbox.servers.broker import masked
from sandbox.servers.process_group import Command
from sandbox.servers.sources import Say, Unavailable, Way, first, say_aloud, told

#: Where Debian keeps the server's programs, which are not on PATH.
DEBIAN_PROGRAMS = "/usr/lib/postgresql/*/bin"
#: The OS user to run as when we are root, which PostgreSQL refuses to run as.
SERVER_USER = "postgres"
START_SECONDS = 60
#: Connections: the processes of a benchmark, or the test workers, each with a pool.
MAX_CONNECTIONS = 200

UTF8_DATABASE: LiteralString = "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"

THREE_WAYS = """No PostgreSQL can be had. Any one of these three will do, then run the same command again:
  1. a server that is already running:  export TEST_POSTGRES_URL=postgresql://user:password@host:5432/postgres
     (of a user who may create databases)
  2. Docker:                            a running engine that has, or can pull, the image postgres:17
  3. a local PostgreSQL:                sudo apt-get install postgresql   (a private cluster is started here)
What was tried:"""


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server that answers: its URL, and in words what it is and why it was taken."""

    url: str
    how: str


#: What a way yields: the server's URL, and what it is.
Address = tuple[str, str]


@contextlib.contextmanager
def running(data_dir: Path, *, fsync: bool = True, docker_only: bool = False, say: Say = say_aloud) -> Iterator[Server]:
    """A server for the length of the block; raises Unavailable with the three ways when there is none.

    A private cluster starts empty and goes with the block. `fsync=False` is for tests that do not cut the power.
    """
    ways: list[Way[Address]] = [_found, _container, lambda say: _private(data_dir, fsync=fsync, say=say)]
    with contextlib.ExitStack() as stack:
        (url, what), reasons = first([_container] if docker_only else ways, stack, say=say, message=THREE_WAYS)
        server = Server(url, told(what, reasons))
        say(f"PostgreSQL: {server.how}")
        yield server


@contextlib.contextmanager
def _found(say: Say) -> Iterator[Address]:
    url = os.environ.get("TEST_POSTGRES_URL")
    if not url:
        raise Unavailable("TEST_POSTGRES_URL is not set")
    if reason := refusal(url):
        raise Unavailable(f"TEST_POSTGRES_URL {masked(url)}: {reason}")
    yield url, f"TEST_POSTGRES_URL {masked(url)}, which answers"


@contextlib.contextmanager
def _container(say: Say) -> Iterator[Address]:
    with docker.throwaway_postgres(say) as url:
        yield url, f"Docker, {docker.POSTGRES_IMAGE} by testcontainers"


@contextlib.contextmanager
def _private(data_dir: Path, *, fsync: bool, say: Say) -> Iterator[Address]:
    if programs() is None:
        apt.install("postgresql", service="postgresql", say=say)
    bin_dir = programs()
    if bin_dir is None:
        raise Unavailable("PostgreSQL's programs were not found after the install")
    say("Starting a private PostgreSQL cluster, which takes about 5 seconds ...")
    with _cluster_dir(data_dir) as directory:
        password, port = _create_cluster(bin_dir, directory), _free_port()
        url = f"postgresql://postgres:{password}@localhost:{port}/postgres"
        options = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "max_connections": MAX_CONNECTIONS,
            "fsync": "on" if fsync else "off",
        }
        arguments = [f"{bin_dir}/postgres", "-D", str(directory / "data")]
        arguments += [text for name, value in options.items() for text in ("-c", f"{name}={value}")]
        log = data_dir / "postgres.log"
        server = Command(arguments, _environment(), log, _user(), directory)
        with process_group.serving(server) as process:
            process_group.wait_ready(process, log, lambda: refusal(url) is None, seconds=START_SECONDS)
            yield url, f"a private cluster on port {port}, data in {directory}"


def programs() -> Path | None:
    """The directory of the newest installed PostgreSQL server's programs."""
    debian_ones = sorted(glob.glob(DEBIAN_PROGRAMS + "/initdb"), key=lambda path: int(Path(path).parts[-3]))
    found = debian_ones[-1] if debian_ones else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@contextlib.contextmanager
def _cluster_dir(data_dir: Path) -> Iterator[Path]:
    """A fresh directory that the server's user may enter: our own, or one under /tmp when we are root.

    As root the checkout may lie below a home directory that no other user may enter.
    """
    shutil.rmtree(data_dir, ignore_errors=True)
    data_dir.mkdir(parents=True)
    user = _user()
    if user is None:
        yield data_dir
        return
    with tempfile.TemporaryDirectory(prefix="order-service-postgres-", ignore_cleanup_errors=True) as name:
        shutil.chown(name, user)
        yield Path(name)


def _create_cluster(bin_dir: Path, directory: Path) -> str:
    """initdb; returns the password of the superuser `postgres`."""
    password, user = secrets.token_hex(16), _user()
    password_file = directory / "password"
    password_file.write_text(password)
    if user:
        shutil.chown(password_file, user)
    password_file.chmod(0o600)
    command = [f"{bin_dir}/initdb", "-D", str(directory / "data"), "-U", "postgres", "-E", "UTF8", "--no-locale"]
    done = subprocess.run(  # noqa: S603
        [*command, "--no-sync", "-A", "scram-sha-256", f"--pwfile={password_file}"],
        env=_environment(),
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        user=user,
        group=user,
        extra_groups=[] if user else None,
    )
    if done.returncode:
        raise Unavailable(f"initdb failed: {done.stderr.strip()}")
    return password


def _user() -> str | None:
    """The OS user to run the server as; None: as we are."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(SERVER_USER).pw_name
    except KeyError:
        raise Unavailable(f"we are root, and there is no OS user {SERVER_USER} to run PostgreSQL as") from None


def _environment() -> dict[str, str]:
    """Ours, without whatever PG* is set outside."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def refusal(url: str) -> str | None:
    """Why the server at this URL cannot be used; None when it answers and lets us in."""
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.Error as error:
        return f"no server answers ({' '.join(str(error).split())})"
    return None


@contextlib.contextmanager
def fresh_database(server_url: str, name: str, *, template: str | None = None) -> Iterator[str]:
    """The URL of a new database, which is dropped after the block. Its name gets a random end.

    It is a copy of the template, or else empty and in UTF-8, whatever the server's own default is.
    """
    database = f"{name}_{secrets.token_hex(4)}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}" if template else UTF8_DATABASE)
    names = [sql.Identifier(each) for each in (database, template) if each]
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(create.format(*names))
    try:
        yield urlunsplit(urlsplit(server_url)._replace(path=f"/{database}"))
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(names[0]))
