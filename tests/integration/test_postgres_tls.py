"""PostgreSQL over TLS with sslmode=verify-full in DATABASE_URL."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from order_service.cli.main import main
from order_service.storage import schema
from sandbox.servers import postgres
from sandbox.servers.postgres import programs
from tests.certificates import Authority
from tests.integration import core
from tests.integration.core import Eventually, Log

pytestmark = [
    pytest.mark.xdist_group("postgres-tls"),
    pytest.mark.skipif(programs() is None, reason="needs PostgreSQL's programs (apt-get install postgresql)"),
]
REFUSED = "access to the database is refused, retrying"


@dataclass(frozen=True)
class TlsServer:
    """A server whose certificate is for localhost and signed by `authority`."""

    plain_url: str
    authority: Authority

    def url(self, *, host: str = "localhost", ca: Path | None = None) -> str:
        return (
            f"{self.plain_url.replace('localhost', host)}?sslmode=verify-full&sslrootcert={ca or self.authority.file}"
        )

    @property
    def password(self) -> str:
        return self.plain_url.split("@")[0].rpartition(":")[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    directory = tmp_path_factory.mktemp("postgres")
    authority = Authority(directory / "ca")
    certificate = authority.issue("localhost", "server.pem").read_bytes()
    with postgres.private(directory / "cluster", fsync=False, certificate=certificate, say=lambda _: None) as (url, _):
        yield TlsServer(url, authority)


def run_migrate(url: str) -> tuple[int, str]:
    done = CliRunner(env={"DATABASE_URL": url}).invoke(main, ["migrate"])
    return done.exit_code, done.output


def test_the_service_works_with_a_verified_server(server: TlsServer) -> None:
    status, output = run_migrate(server.url())

    assert (status, "?sslmode=verify-full&sslrootcert=/" in output) == (0, True), output
    assert server.password not in output
    with core.opened(server.url()) as database, database.reading() as connection:
        uses_tls = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        used, version = connection.exec_driver_sql(uses_tls).one()
        assert used
        assert version in ("TLSv1.2", "TLSv1.3")


def test_a_wrong_ca_and_a_wrong_host_name_are_refused_with_the_reason(
    server: TlsServer, tmp_path: Path, log: Log, eventually: Eventually
) -> None:
    reasons = {
        server.url(ca=Authority(tmp_path).file): "certificate verify failed; sslrootcert must have the CA that signed",
        server.url(host="127.0.0.1"): 'server certificate for "localhost" does not match host name "127.0.0.1"',
        server.url(ca=tmp_path / "missing.pem"): "missing.pem",
    }
    for url, reason in reasons.items():
        log.calls.clear()
        with core.opened(url) as database:
            stop = threading.Event()
            waiting = core.Running(lambda database=database, stop=stop: schema.wait_for_database(database, stop), stop)
            eventually(lambda: log.count(REFUSED), "the refusal")
            waiting.stop()
        [refusal] = [call.kwargs["error"] for call in log.calls]
        assert reason in refusal
        assert server.password not in refusal

        status, output = run_migrate(url)
        assert (status, reason in output) == (2, True), output
        assert "access to the database is refused" in output
        assert server.password not in output


def test_a_server_without_tls_is_refused(postgres_server: str, server: TlsServer, tmp_path: Path) -> None:
    status, output = run_migrate(f"{postgres_server}?sslmode=verify-full&sslrootcert={server.authority.file}")

    assert status == 2
    assert "server does not support SSL" in output
    assert "access to the database is refused" in output
