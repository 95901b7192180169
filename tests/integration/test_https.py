"""Siblings over HTTPS, checked against the system's trust store; and the broker's management API."""

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug import Request, Response
from werkzeug.serving import make_server

from consumers.menu_http.client import Menus, MenuServiceDown
from order_service.config import Settings
from order_service.management import Management, Unavailable
from order_service.web.users import Users, UserServiceDown
from tests.certificates import Authority
from tests.serving import serving


@contextlib.contextmanager
def served_with(
    certificate: Path, content: str = '{"id": 1, "name": "Nasi", "price": 18000.0, "stock": 3}'
) -> Iterator[int]:
    """The port of a service over HTTPS where every user and dish exists, or with another answer to every request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    @Request.application
    def answer(_: Request) -> Response:
        return Response(content, mimetype="application/json")

    server = make_server("127.0.0.1", 0, answer, threaded=True, ssl_context=context)
    with serving(server) as port:
        yield port


def refusals(url: str) -> tuple[str, str]:
    """What the clients of both siblings say, or empty texts."""
    user, dish = "", ""
    with contextlib.closing(Users(url)) as users:
        try:
            assert users.exists(1)
        except UserServiceDown as error:
            user = str(error)
    try:
        assert Menus(url).read(1).stock == 3
    except MenuServiceDown as error:
        dish = str(error)
    return user, dish


def test_siblings_are_asked_over_https_and_each_fault_of_a_certificate_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    valid, expired = authority.issue("localhost", "valid.pem"), authority.issue("localhost", "old.pem", is_expired=True)

    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with served_with(valid) as port:
        assert refusals(f"https://localhost:{port}") == ("", "")
        for refusal in refusals(f"https://127.0.0.1:{port}"):
            assert "certificate is not valid for '127.0.0.1'" in refusal
    with served_with(expired) as port:
        for refusal in refusals(f"https://localhost:{port}"):
            assert "certificate has expired" in refusal
    with served_with(other.issue("localhost", "foreign.pem")) as port:
        for refusal in refusals(f"https://localhost:{port}"):
            assert "unable to get local issuer certificate" in refusal

    # without the variable, the system's own store
    monkeypatch.delenv("SSL_CERT_FILE")
    with served_with(valid) as port:
        for refusal in refusals(f"https://localhost:{port}"):
            assert "unable to get local issuer certificate" in refusal


def test_login_of_an_encrypted_broker_is_sent_to_its_management_api_over_https_only(tmp_path: Path) -> None:
    # given
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")

    def management(ca: Path, url: str | None = None) -> Management:
        broker = "amqps://order-service:S3cret@broker.example/"
        return Management(Settings(rabbitmq_url=broker, rabbitmq_ca_file=str(ca), management_url=url))

    # then
    assert str(management(authority.file).url) == "https://broker.example:15671"
    assert str(management(authority.file, "http://localhost:15672").url) == "http://localhost:15672/"
    with served_with(authority.issue("localhost", "valid.pem"), '[{"name": "q"}]') as port:
        url = f"https://localhost:{port}"
        assert management(authority.file, url).queues().keys() == {"q"}
        for untrusted in other.file, tmp_path / "none.pem":
            with pytest.raises(Unavailable, match="unable to get local issuer certificate"):
                management(untrusted, url).queues()
