"""Every process over TLS, with a broker that requires client certificates."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consumers.worker import Worker
from order_service.config import Settings
from order_service.contract import topology
from order_service.storage import migrate
from order_service.storage.database import Database
from publishers.relay import Relay
from sandbox.servers import ports, rabbitmq_node
from sandbox.servers.broker import Broker, fresh_vhost
from tests.certificates import Authority
from tests.e2e.deployment import ON_SQLITE, Deployment
from tests.integration import core
from tests.polling import wait_until

# One node for all tests of this file.
pytestmark = pytest.mark.xdist_group("tls")
NEEDS_NODE = pytest.mark.skipif(rabbitmq_node.script() is None, reason="needs rabbitmq-server (apt-get install)")

REFUSED, BACK = "access to the broker is refused, retrying", "the broker is reachable again"
CONFIGURATION = """
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {server}
ssl_options.keyfile = {server}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""


@dataclass(frozen=True)
class TlsBroker:
    """A broker that accepts clients with certificates of `authority` only."""

    plain: Broker
    tls_port: int
    authority: Authority
    #: Signs certificates that the broker does not accept.
    other: Authority

    def url(self, amqp_url: str, host: str = "localhost") -> str:
        """The same login and vhost, over TLS."""
        return f"amqps://guest:guest@{host}:{self.tls_port}/{amqp_url.rpartition('/')[2]}"

    @property
    def files(self) -> dict[str, Path]:
        return {
            "rabbitmq_ca_file": self.authority.file,
            "rabbitmq_cert_file": self.authority.issue("order", "client.pem"),
        }


@contextlib.contextmanager
def node(directory: Path) -> Iterator[TlsBroker]:
    authority, other = Authority(directory / "ca"), Authority(directory / "other")
    node_ports, [port] = rabbitmq_node.free_ports(), ports.free_ports(0)
    server = authority.issue("localhost", "server.pem")
    configuration = CONFIGURATION.format(port=port, ca=authority.file, server=server)
    # Erlang looks for renewed certificates every 2 minutes; here, every 0.2 s.
    often = "-ssl ssl_pem_cache_clean 200"
    with rabbitmq_node.running(
        directory / "node", node_ports, keep=False, configuration=configuration, erlang_arguments=often
    ):
        url, console = (
            f"amqp://guest:guest@localhost:{node_ports.amqp}/",
            f"http://guest:guest@localhost:{node_ports.management}",
        )
        yield TlsBroker(Broker(url, console, "a node with TLS"), port, authority, other)


@pytest.fixture(scope="module")
def tls_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsBroker]:
    with node(tmp_path_factory.mktemp("tls")) as broker:
        yield broker


@pytest.fixture
def amqp_url(tls_broker: TlsBroker) -> Iterator[str]:
    """A vhost of the node with the topology, without TLS."""
    with fresh_vhost(tls_broker.plain, "tls") as url:
        core.Wire(url).declare()
        yield url


def attempt(url: str, **files: Path) -> str:
    """Connect; return the refusal, or an empty text."""
    settings = core.settings(url, "sqlite:///x", **{name: str(path) for name, path in files.items()})
    try:
        with topology.connected(settings, role="test"):
            return ""
    except topology.AccessRefused as error:
        return str(error)


@NEEDS_NODE
def test_each_certificate_that_is_refused_is_named_with_its_fault(tls_broker: TlsBroker, amqp_url: str) -> None:
    authority, other, files = tls_broker.authority, tls_broker.other, tls_broker.files
    ca, certificate = (
        {"rabbitmq_ca_file": files["rabbitmq_ca_file"]},
        {"rabbitmq_cert_file": files["rabbitmq_cert_file"]},
    )
    url = tls_broker.url(amqp_url)
    signed = "certificate in certificate chain; RABBITMQ_CA_FILE must have the CA that signed it"

    refusals = {
        "wrong CA": (attempt(url, **certificate, rabbitmq_ca_file=other.file), signed),
        "CAs of the system": (attempt(url, **certificate), signed),
        "wrong host name": (attempt(tls_broker.url(amqp_url, "127.0.0.1"), **files), "is not valid for '127.0.0.1'"),
        "no client certificate": (attempt(url, **ca), "requires a client certificate: set RABBITMQ_CERT_FILE"),
        "expired client certificate": (
            attempt(url, **ca, rabbitmq_cert_file=authority.issue("order", "expired.pem", is_expired=True)),
            "refuses RABBITMQ_CERT_FILE: the client certificate has expired",
        ),
        "client certificate of another CA": (
            attempt(url, **ca, rabbitmq_cert_file=other.issue("order", "client.pem")),
            "refuses RABBITMQ_CERT_FILE: it does not trust the CA that signed it",
        ),
        "no TLS": (attempt(amqp_url.replace("amqp:", "amqps:"), **files), "this port does not use TLS"),
    }

    for case, (refusal, reason) in refusals.items():
        assert reason in refusal, case
        assert refusal.startswith("amqps://guest:***@"), case
    assert attempt(url, **files) == ""

    # pika often loses the alert that refuses a client certificate
    assert {attempt(url, **ca).partition(": ")[2] for _ in range(20)} == {
        "the broker requires a client certificate: set RABBITMQ_CERT_FILE"
    }


@NEEDS_NODE
def test_an_expired_certificate_of_the_broker_is_refused_until_it_is_renewed(
    tls_broker: TlsBroker, amqp_url: str
) -> None:
    files, url = tls_broker.files, tls_broker.url(amqp_url)

    tls_broker.authority.issue("localhost", "server.pem", is_expired=True)
    try:
        refusal = wait_until(lambda: attempt(url, **files), "the broker to read its certificate", seconds=20)
    finally:
        tls_broker.authority.issue("localhost", "server.pem")

    assert "the broker's certificate is refused: certificate has expired" in refusal
    wait_until(lambda: not attempt(url, **files), "the broker to read its renewed certificate", seconds=20)


def consumer(settings: Settings, database: Database) -> Callable[..., Worker]:
    return core.worker(settings, database)


def relay(settings: Settings, database: Database) -> Callable[..., Relay]:
    return lambda stop: Relay(settings, database, stop)


@NEEDS_NODE
@pytest.mark.parametrize("process", [consumer, relay])
def test_a_process_says_once_that_its_certificate_has_expired_and_continues_with_a_renewed_one(
    process: Callable[..., Any], tls_broker: TlsBroker, amqp_url: str, migrated_sqlite: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    log = core.Log()
    monkeypatch.setattr("order_service.process.log", log)
    url, files = tls_broker.url(amqp_url), {name: str(path) for name, path in tls_broker.files.items()}
    own = tls_broker.authority.issue("order", "own.pem", is_expired=True)
    attempts = core.Log()
    monkeypatch.setattr("order_service.contract.topology.client_name", lambda role: attempts.info(role) or role)
    database_url = f"sqlite:///{tmp_path}/orders.db"
    (tmp_path / "orders.db").write_bytes(migrated_sqlite.read_bytes())
    settings = core.settings(url, database_url, **files | {"rabbitmq_cert_file": str(own)})

    with core.opened(database_url) as database, core.running(process(settings, database)):
        wait_until(lambda: len(attempts.calls) > 3, "several attempts")
        refusals = [call.kwargs["error"] for call in log.calls if call.args == (REFUSED,)]
        tls_broker.authority.issue("order", "own.pem")
        if process is relay:
            core.place(database)
            core.Wire(amqp_url).listen("order.created")
        wait_until(lambda: log.count(BACK), "the end of the refusals")

    assert len(refusals) == 1
    assert "the client certificate has expired" in refusals[0]


@NEEDS_NODE
@ON_SQLITE
def test_an_order_is_paid_over_tls(tls_broker: TlsBroker, amqp_url: str, database_url: str, tmp_path: Path) -> None:
    certificate = tls_broker.authority.issue("order", "order.crt", key_file="order.key")
    settings = {
        "RABBITMQ_URL": tls_broker.url(amqp_url),
        "RABBITMQ_CA_FILE": str(tls_broker.authority.file),
        "RABBITMQ_CERT_FILE": str(certificate),
        "RABBITMQ_KEY_FILE": str(certificate.with_suffix(".key")),
    }
    with Deployment(amqp_url, database_url, tmp_path, **settings) as deployment:
        for command in ["migrate"], ["topology"]:
            assert deployment.command(*command).returncode == 0
        deployment.start("users", "menu", "payment", "api", "consumers", "publishers")
        deployment.wait_until_healthy()

        posted = deployment.client.post_order()

        deployment.wait_until_paid([posted.body["id"]])
        deployment.assert_all_running()


@ON_SQLITE
@pytest.mark.field
def test_processes_exit_if_a_file_for_tls_is_missing(database_url: str, tmp_path: Path) -> None:
    migrate.upgrade(database_url)
    missing = {"RABBITMQ_URL": "amqps://127.0.0.1:1/", "RABBITMQ_CA_FILE": str(tmp_path / "missing.pem")}

    with Deployment(core.UNREACHABLE_BROKER, database_url, tmp_path, USER_SERVICE_URL="", **missing) as deployment:
        for process in deployment.start("consumers", "publishers"):
            assert process.exit_status() == 2
            assert "RABBITMQ_CA_FILE: cannot be read (No such file or directory)" in process.log
        # The API does not connect to the broker.
        deployment.start("api")
        deployment.wait_until_healthy("api")
