"""Find a PostgreSQL server for the tests and benchmarks, or start one that stops with the block.

Sources, in this order: the server at TEST_POSTGRES_URL; Docker, with testcontainers; a private cluster of the installed
PostgreSQL, which is installed from Debian's package if need be and permissions allow.
"""

import contextlib
import glob
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from sandbox.servers import apt, ports, process_group
from sandbox.servers.broker import masked
from sandbox.servers.docker import throwaway_postgres
from sandbox.servers.process_group import Command
from sandbox.servers.sources import Say, Source, Unavailable, first_available, print_line

#: The server's programs on Debian, which are not on PATH.
DEBIAN_PROGRAMS = "/usr/lib/postgresql/*/bin"
#: The OS user that root runs the server as: PostgreSQL refuses to run as root.
SERVER_USER = "postgres"
START_SECONDS = 60
#: Connections: the processes of a benchmark, or the test workers, each with a pool.
MAX_CONNECTIONS = 200

UTF8_DATABASE: LiteralString = "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"

ADVICE = """No PostgreSQL is available. Provide one of these three, then run the same command again:
  1. a server that is already running:  export TEST_POSTGRES_URL=postgresql://user:password@host:5432/postgres
     (whose user may create databases)
  2. Docker:                            a running engine that has, or can pull, the image postgres:17
  3. a local PostgreSQL:                sudo apt-get install postgresql   (a private cluster is started here)
What was tried:"""


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server that answers: its URL, and in `how` what it is and why it was chosen."""

    url: str
    how: str


@contextlib.contextmanager
def running(
    data_dir: Path, *, fsync: bool = True, docker_only: bool = False, say: Say = print_line
) -> Iterator[Server]:
    """A server for the length of the block (without fsync: for tests). Raises Unavailable, with advice, without one."""
    sources: list[Source[str]] = [_configured, throwaway_postgres, lambda say: _private(data_dir, fsync=fsync, say=say)]
    chosen = [throwaway_postgres] if docker_only else sources
    with first_available("PostgreSQL", chosen, advice=ADVICE, say=say) as (url, how):
        yield Server(url, how)


@contextlib.contextmanager
def _configured(_: Say) -> Iterator[tuple[str, str]]:
    url = os.environ.get("TEST_POSTGRES_URL")
    if not url:
        raise Unavailable("TEST_POSTGRES_URL is not set")
    if reason := refusal(url):
        raise Unavailable(f"TEST_POSTGRES_URL {masked(url)}: {reason}")
    yield url, f"TEST_POSTGRES_URL {masked(url)}, which answers"


@contextlib.contextmanager
def _private(data_dir: Path, *, fsync: bool, say: Say) -> Iterator[tuple[str, str]]:
    if programs() is None:
        apt.install("postgresql", say=say)
    bin_dir = programs()
    if bin_dir is None:
        raise Unavailable("PostgreSQL's programs were not found after the install")
    say("Starting a private PostgreSQL cluster, which takes about 5 seconds ...")
    with _cluster_dir(data_dir) as directory:
        password, [port] = _create_cluster(bin_dir, directory), ports.free_ports(0)
        url = f"postgresql://postgres:{password}@localhost:{port}/postgres"
        where = ["-D", str(directory / "data"), "-h", "127.0.0.1", "-p", str(port), "-k", ""]
        arguments = [f"{bin_dir}/postgres", *where, "-N", str(MAX_CONNECTIONS), *([] if fsync else ["-F"])]
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
    """An empty directory; for root, below /tmp: the checkout may be in a home directory that others may not enter."""
    shutil.rmtree(data_dir, ignore_errors=True)
    data_dir.mkdir(parents=True)
    user = _user()
    parent = None if user else data_dir
    with tempfile.TemporaryDirectory("", "order-service-postgres-", parent, ignore_cleanup_errors=True) as name:
        if user:
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
    """The OS user to run the server as; None: the current one."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(SERVER_USER).pw_name
    except KeyError:
        raise Unavailable(f"PostgreSQL does not run as root, and there is no OS user {SERVER_USER}") from None


def _environment() -> dict[str, str]:
    """The environment of this process without PG*."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")}


def refusal(url: str) -> str | None:
    """Why the server at this URL cannot be used; None if it accepts a connection."""
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.Error as error:
        return f"no server answers ({' '.join(str(error).split())})"
    return None


@contextlib.contextmanager
def fresh_database(server_url: str, name: str, *, template: str | None = None) -> Iterator[str]:
    """The URL of a new database, dropped after the block: a copy of the template, or else empty and in UTF-8."""
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
