"""Siblings over HTTPS: their certificates and names are checked against the system's trust store."""

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug import Request, Response
from werkzeug.serving import make_server

from consumers.menu_http.client import Menus, MenuServiceDown
from order_service.web.users import Users, UserServiceDown
from tests.certificates import Authority
from tests.serving import serving


@contextlib.contextmanager
def served_with(certificate: Path) -> Iterator[int]:
    """The port of a service over HTTPS where every user and dish exists."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    @Request.application
    def answer(_: Request) -> Response:
        return Response('{"id": 1, "name": "Nasi", "price": 18000.0, "stock": 3}', mimetype="application/json")

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
