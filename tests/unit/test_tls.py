"""The files of amqps:// that cannot be used are named by their setting, and never printed."""

import re
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError
from structlog.testing import capture_logs

from order_service.cli.main import main
from order_service.config import Settings, explain
from order_service.contract import tls
from tests.certificates import Authority

URL = "amqps://guest:guest@127.0.0.1:1/"
FILES = ("RABBITMQ_CA_FILE", "RABBITMQ_CERT_FILE", "RABBITMQ_KEY_FILE")


@pytest.fixture
def usable(tmp_path: Path) -> dict[str, Path]:
    """Settings that can be used."""
    authority = Authority(tmp_path)
    certificate = authority.issue("order", "order.crt", key_file="order.key")
    return dict(zip(FILES, (authority.file, certificate, certificate.with_suffix(".key")), strict=True))


def topology(files: dict[str, Path]) -> tuple[int, str]:
    """Status and output of a command that connects."""
    env = {"RABBITMQ_URL": URL, **dict.fromkeys(FILES), **{name: str(path) for name, path in files.items()}}
    done = CliRunner(env=env).invoke(main, ["topology"])
    return done.exit_code, done.output


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


Change = Callable[[dict[str, Path], Path], dict[str, Path]]
UNUSABLE: dict[str, tuple[Change, str]] = {
    "no CA file": (lambda _, new: {"RABBITMQ_CA_FILE": new}, "RABBITMQ_CA_FILE: cannot be read (No such file"),
    "a directory": (lambda _, new: {"RABBITMQ_CA_FILE": new.parent}, "RABBITMQ_CA_FILE: cannot be read (Is a directory"),
    "no CA in it": (lambda _, new: {"RABBITMQ_CA_FILE": write(new, "x")}, "RABBITMQ_CA_FILE: has no certificate"),
    "a damaged CA": (
        lambda files, new: {"RABBITMQ_CA_FILE": write(new, files["RABBITMQ_CA_FILE"].read_text().replace("M", "!", 3))},
        "RABBITMQ_CA_FILE: has a damaged certificate",
    ),
    "no certificate file": (lambda _, new: {"RABBITMQ_CERT_FILE": new}, "RABBITMQ_CERT_FILE: cannot be read"),
    "a key instead": (
        lambda files, _: {"RABBITMQ_CERT_FILE": files["RABBITMQ_KEY_FILE"]}, "RABBITMQ_CERT_FILE: has no certificate",
    ),
    "no key file": (lambda _, new: {"RABBITMQ_KEY_FILE": new}, "RABBITMQ_KEY_FILE: cannot be read"),
    "a certificate instead": (
        lambda files, _: {"RABBITMQ_KEY_FILE": files["RABBITMQ_CERT_FILE"]}, "RABBITMQ_KEY_FILE: has no private key",
    ),
    "a pasted key": (
        lambda files, _: {"RABBITMQ_KEY_FILE": Path(files["RABBITMQ_KEY_FILE"].read_text())},
        "RABBITMQ_KEY_FILE: cannot be read",
    ),
    "an encrypted key": (
        lambda _, new: {"RABBITMQ_KEY_FILE": write(new, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII")},
        "RABBITMQ_KEY_FILE: the private key is encrypted",
    ),
    "another key": (
        lambda _, new: {"RABBITMQ_KEY_FILE": Authority(new).issue("other", "crt", key_file="key").parent / "key"},
        "RABBITMQ_CERT_FILE: is not the certificate of the private key",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "problem"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_file_that_cannot_be_used_is_named_by_its_setting(
    change: Change, problem: str, usable: dict[str, Path], tmp_path: Path
) -> None:
    key = re.sub(r"\s", "", usable["RABBITMQ_KEY_FILE"].read_text().split("-----")[2])

    status, output = topology(usable | change(usable, tmp_path / "new"))

    assert (status, len(output.splitlines())) == (2, 1), output
    assert output.startswith(problem)
    assert key[:40] not in re.sub(r"\s", "", output)
    assert str(tmp_path) not in output


def test_a_certificate_without_a_key_needs_one(usable: dict[str, Path]) -> None:
    del usable["RABBITMQ_KEY_FILE"]

    status, output = topology(usable)

    assert status == 2
    assert output.startswith(
        "RABBITMQ_CERT_FILE: has no private key; use a file in PEM format, or set RABBITMQ_KEY_FILE"
    )


def test_usable_files_are_used(usable: dict[str, Path]) -> None:
    status, output = topology(usable)

    assert status == 2
    assert "the broker is unreachable" in output


def settings(files: dict[str, Path]) -> Settings:
    return Settings.model_validate({"RABBITMQ_URL": URL, **{name: str(path) for name, path in files.items()}})


def test_the_context_checks_certificate_and_name_and_requires_tls_1_2(usable: dict[str, Path]) -> None:
    for files in {}, usable:
        context = tls.context(settings(files))

        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize(("mode", "warnings"), [(0o600, 0), (0o640, 0), (0o644, 1)])
def test_a_key_that_every_user_may_read_is_reported(mode: int, warnings: int, usable: dict[str, Path]) -> None:
    usable["RABBITMQ_KEY_FILE"].chmod(mode)

    with capture_logs() as logged:
        tls.require_usable_files(settings(usable))

    assert [record["setting"] for record in logged] == ["RABBITMQ_KEY_FILE"] * warnings


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"RABBITMQ_CA_FILE": "/ca"}, "RABBITMQ_CA_FILE: is for amqps:// only"),
        ({"RABBITMQ_URL": URL, "RABBITMQ_KEY_FILE": "/key"}, "RABBITMQ_KEY_FILE: needs RABBITMQ_CERT_FILE"),
        (
            {"RABBITMQ_URL": f"{URL}?ssl_options={{'verify_mode': 'CERT_NONE'}}"},
            "RABBITMQ_URL: must not have ssl_options",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(values: dict[str, str], problem: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate(values)

    assert explain(refused.value).startswith(problem)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        ("[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] sslv3 alert handshake failure (_ssl.c:1006)", "set RABBITMQ_CERT_FILE"),
        ("[SSL: TLSV1_ALERT_PROTOCOL_VERSION] tlsv1 alert protocol version (_ssl.c:1006)", "TLS 1.2 or later"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate (_ssl.c:1)",
         "refused: unable to get local issuer certificate; RABBITMQ_CA_FILE must have the CA that signed it"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname mismatch, certificate is not valid for "
         "'b'. (_ssl.c:1)", "the broker's certificate is refused: Hostname mismatch, certificate is not valid for 'b'"),
    ],
)  # fmt: skip
def test_the_meaning_of_what_openssl_says(error: str, meaning: str) -> None:
    assert str(tls.meaning(f"SSLError: {error}")).endswith(meaning)


def test_other_problems_have_no_meaning_here() -> None:
    assert tls.meaning("ConnectionRefusedError: [Errno 111] Connection refused") is None
