"""Find a PostgreSQL server for the tests and benchmarks, or start one that stops with the block.

Sources, in this order: the server at TEST_POSTGRES_URL; Docker, with testcontainers; a private cluster of the installed
PostgreSQL, which is installed from Debian's package if need be and permissions allow.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from sandbox.servers import apt, ports, process_group
from sandbox.servers.broker import masked
from sandbox.servers.docker import throwaway_postgres
from sandbox.servers.process_group import Command
from sandbox.servers.sources import Say, Source, Unavailable, first_available, print_line

#: The OS user that root runs the server as: PostgreSQL refuses to run as root.
SERVER_USER = "postgres"
START_SECONDS = 60
#: Connections: the processes of a benchmark, or the test workers, each with a pool.
MAX_CONNECTIONS = 200

ADVICE = """No PostgreSQL is available. Provide one of these three, then run the same command again:
  1. a server that is already running:  export TEST_POSTGRES_URL=postgresql://user:password@host:5432/postgres
     (whose user may create databases)
  2. Docker:                            a running engine that has, or can pull, the image postgres:17
  3. a local PostgreSQL:                sudo apt-get install postgresql   (a private cluster is started here)
What was tried:"""


@dataclass(frozen=True)
class Server:
    """A reachable PostgreSQL server: its URL, and in `how` what it is and why it was chosen."""

    url: str
    how: str


@contextlib.contextmanager
def running(
    data_dir: Path, *, fsync: bool = True, docker_only: bool = False, say: Say = print_line
) -> Iterator[Server]:
    """A server for the length of the block (without fsync: for tests). Raises Unavailable, with advice, without one."""
    sources: list[Source[str]] = [_configured, throwaway_postgres, lambda say: private(data_dir, fsync=fsync, say=say)]
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
    yield url, f"TEST_POSTGRES_URL {masked(url)}, which is reachable"


@contextlib.contextmanager
def private(
    data_dir: Path, *, fsync: bool = True, certificate: bytes = b"", say: Say = print_line
) -> Iterator[tuple[str, str]]:
    """The URL of a private cluster, and what it is. `certificate`: serve TLS with this chain and key, in PEM."""
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
        program = [*_as_server_user(), f"{bin_dir}/postgres"]
        arguments = [*program, *where, "-N", str(MAX_CONNECTIONS), *([] if fsync else ["-F"])]
        if certificate:
            arguments += _serve_tls(directory / "server.pem", certificate)
        log = data_dir / "postgres.log"
        with process_group.serving(Command(arguments, _environment(), log, cwd=directory)) as process:
            process_group.wait_ready(process, log, lambda: refusal(url) is None, seconds=START_SECONDS)
            yield url, f"a private cluster on port {port}, data in {directory}"


def programs() -> Path | None:
    """The directory of the newest installed PostgreSQL server's programs."""
    # Debian does not have them on PATH.
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = versions[-1] if versions else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@contextlib.contextmanager
def _cluster_dir(data_dir: Path) -> Iterator[Path]:
    """An empty directory; for root, below /tmp: the checkout may be in a home directory that others may not enter."""
    shutil.rmtree(data_dir, ignore_errors=True)
    data_dir.mkdir(parents=True)
    is_root = os.geteuid() == 0
    parent = None if is_root else data_dir
    with tempfile.TemporaryDirectory("", "order-service-postgres-", parent, ignore_cleanup_errors=True) as name:
        if is_root:
            try:
                shutil.chown(name, SERVER_USER)
            except LookupError:
                raise Unavailable(f"PostgreSQL does not run as root, and there is no OS user {SERVER_USER}") from None
        yield Path(name)


def _create_cluster(bin_dir: Path, directory: Path) -> str:
    """initdb; returns the password of the superuser `postgres`."""
    password, password_file = secrets.token_hex(16), directory / "password"
    password_file.write_text(password)
    password_file.chmod(0o644)  # for SERVER_USER; the directory is closed to others
    command = [*_as_server_user(), f"{bin_dir}/initdb", "-D", str(directory / "data"), "-U", "postgres"]
    command += ["-E", "UTF8", "--no-locale", "--no-sync", "-A", "scram-sha-256", f"--pwfile={password_file}"]
    done = subprocess.run(command, env=_environment(), cwd=directory, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise Unavailable(f"initdb failed: {done.stderr.strip()}")
    return password


def _serve_tls(path: Path, certificate: bytes) -> list[str]:
    """Write the certificate with its key as the server requires it, private and its own; return its arguments."""
    path.touch(0o600)
    path.write_bytes(certificate)
    if os.geteuid() == 0:
        shutil.chown(path, SERVER_USER)
    return ["-c", "ssl=on", "-c", f"ssl_cert_file={path}", "-c", f"ssl_key_file={path}"]


def _as_server_user() -> list[str]:
    """The start of a command to run as SERVER_USER: nothing, unless this process is root's."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid", SERVER_USER, "--regid", SERVER_USER, "--clear-groups"]


def _environment() -> dict[str, str]:
    """The environment of this process without PG*."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")}


def refusal(url: str) -> str | None:
    """Why the server at this URL cannot be used; None if it accepts a connection."""
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.Error as error:
        return f"no server responds ({' '.join(str(error).split())})"
    return None


@contextlib.contextmanager
def fresh_database(server_url: str, name: str, *, template: str = "template0") -> Iterator[str]:
    """The URL of a new database in UTF-8, dropped after the block: a copy of the template (default: empty)."""
    database = f"{name}_{secrets.token_hex(4)}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8' LOCALE 'C'")
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database))
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(create.format(sql.Identifier(database), sql.Identifier(template)))
    try:
        yield urlunsplit(urlsplit(server_url)._replace(path=f"/{database}"))
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(drop)
