"""TLS to the broker: the context of a connection, and what a failed handshake means."""

import re
import socket
import ssl
import stat
from pathlib import Path

import structlog

from order_service.config import Settings
from order_service.process import AccessRefused, refuse

log = structlog.get_logger(__name__)

#: What a handshake fails with, and what it means. The names are OpenSSL's, the endings with ALERT those of what the
#: broker sends. https://www.rfc-editor.org/rfc/rfc8446#section-6.2
_MEANINGS = {
    "CERTIFICATE_VERIFY_FAILED": "the broker's certificate is refused",
    "ALERT_CERTIFICATE_REQUIRED": "the broker requires a client certificate: set RABBITMQ_CERT_FILE",
    # The alert of TLS 1.2 for a missing certificate, and for other reasons.
    "ALERT_HANDSHAKE_FAILURE": "the broker refuses the handshake; if it requires a client certificate, set "
    "RABBITMQ_CERT_FILE",
    "ALERT_CERTIFICATE_EXPIRED": "the broker refuses RABBITMQ_CERT_FILE: the client certificate has expired",
    "ALERT_UNKNOWN_CA": "the broker refuses RABBITMQ_CERT_FILE: it does not trust the CA that signed it",
    "ALERT_CERTIFICATE_REVOKED": "the broker refuses RABBITMQ_CERT_FILE: the client certificate is revoked",
    "ALERT_BAD_CERTIFICATE": "the broker refuses RABBITMQ_CERT_FILE",
    "ALERT_UNSUPPORTED_CERTIFICATE": "the broker refuses RABBITMQ_CERT_FILE: it is not for clients",
    "ALERT_CERTIFICATE_UNKNOWN": "the broker refuses RABBITMQ_CERT_FILE",
    "ALERT_PROTOCOL_VERSION": "the broker does not support TLS 1.2 or later",
    "UNSUPPORTED_PROTOCOL": "the broker does not support TLS 1.2 or later",
    "WRONG_VERSION_NUMBER": "this port does not use TLS; that of amqps:// is usually 5671",
}
#: The end of a connection that hides what the broker said before.
_END = re.compile("EOF|reset|broken pipe", re.IGNORECASE)
#: How long the broker may take to say why it ends a connection, in seconds; one that works says nothing.
ALERT_SECONDS = 2.0


class UnusableFile(AccessRefused):
    """A file cannot be used; the text names its setting and the remedy, not its path, which may be a pasted key."""


def context(settings: Settings) -> ssl.SSLContext:
    """A context that requires TLS 1.2 and checks the broker's certificate and host name. Raises UnusableFile.

    Reads the files at each call, because certificates are renewed in place.
    """
    ca, certificate, key = settings.rabbitmq_ca_file, settings.rabbitmq_cert_file, settings.rabbitmq_key_file
    if ca:
        _require("RABBITMQ_CA_FILE", ca, "CERTIFICATE")
    try:
        made = ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise UnusableFile("RABBITMQ_CA_FILE: has a damaged certificate; use certificates in PEM format") from error
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate:
        _require("RABBITMQ_CERT_FILE", certificate, "CERTIFICATE")
        _require("RABBITMQ_KEY_FILE" if key else "RABBITMQ_CERT_FILE", key or certificate, "PRIVATE KEY")
        try:
            made.load_cert_chain(certificate, key)
        except ssl.SSLError as error:
            problem = "is not the certificate of the private key, or one of both is damaged; renew both"
            raise UnusableFile(f"RABBITMQ_CERT_FILE: {problem}") from error
    return made


def _require(name: str, path: str, kind: str) -> None:
    """Raise UnusableFile if the file cannot be read or has no such block, or if its key is encrypted."""
    try:
        text = Path(path).read_text("latin-1")
    except OSError as error:
        raise UnusableFile(f"{name}: cannot be read ({error.strerror}); name a file that this user may read") from error
    if not re.search(f"^-----BEGIN [A-Z0-9 ]*{kind}-----", text, re.MULTILINE):
        more = ", or set RABBITMQ_KEY_FILE" if name == "RABBITMQ_CERT_FILE" and kind == "PRIVATE KEY" else ""
        raise UnusableFile(f"{name}: has no {kind.lower()}; use a file in PEM format{more}")
    if kind == "PRIVATE KEY" and "ENCRYPTED" in text:
        raise UnusableFile(
            f"{name}: the private key is encrypted; use one without a password, which only this user may read"
        )


def require_usable_files(settings: Settings) -> None:
    """Exit with 2 if a file for amqps:// cannot be used; warn of a private key that every user may read."""
    if "amqps://" not in settings.rabbitmq_url:
        return
    try:
        context(settings)
    except UnusableFile as error:
        refuse(str(error))
    # Its group may read it: so does the user of a container, of a file that an orchestrator has mounted.
    key = settings.rabbitmq_key_file or settings.rabbitmq_cert_file
    if key and Path(key).stat().st_mode & stat.S_IROTH:
        name = "RABBITMQ_KEY_FILE" if settings.rabbitmq_key_file else "RABBITMQ_CERT_FILE"
        log.warning("every user of this host may read the private key; remove that right (chmod o-r)", setting=name)


def with_alert(problem: str, context: ssl.SSLContext, host: str, port: int) -> str:
    """The alert with which the broker ends connections, if this problem may hide one; else the problem.

    TLS 1.3 refuses a client certificate after the handshake. pika sends at once, and its write may fail before it reads
    the alert, so this connects again and only reads.
    """
    if not _END.search(problem):
        return problem
    try:
        with (
            socket.create_connection((host, port), ALERT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            connection.recv(1)
    except ssl.SSLError as error:
        return str(error)
    except OSError:
        pass
    return problem


def meaning(problem: str) -> str | None:
    """What the text of a failed TLS handshake means, or None: it is another problem."""
    found = re.search(r"\[SSL: (\w+)\] (.*?)( \(_ssl\.c|$)", problem)
    meant = found and next((text for name, text in _MEANINGS.items() if found[1].endswith(name)), None)
    if not found or not meant:
        return None
    detail = found[2].partition("verify failed: ")[2].rstrip(".")
    hint = "; RABBITMQ_CA_FILE must have the CA that signed it" if re.search("issuer|self.signed", detail) else ""
    return f"{meant}: {detail}{hint}" if detail else meant
