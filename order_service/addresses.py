"""The types of settings that are addresses, hosts or URLs: which values can be used, and how they are written."""

import ipaddress
import re
import warnings
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import pika
import psycopg.conninfo
import sqlalchemy as sa
from pydantic import AfterValidator, AnyHttpUrl, AnyUrl

#: The values of options that libpq checks only when it connects.
#: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
LIBPQ_VALUES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on this address; a name other than localhost is none."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _database_url(value: str) -> str:
    value = _with_plain_scheme(value)
    try:
        if not value.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
            raise ValueError
        url = sa.make_url(value)
        with warnings.catch_warnings(action="error"):  # of an option that would be ignored
            _, options = url.get_dialect()().create_connect_args(url)
        if url.get_backend_name() == "postgresql":
            # SQLAlchemy takes what follows the first "@" for the host, which is then printed.
            if value.count("@") > 1 or re.search(r"[?&]\w+=[^&]*@", value):
                raise ValueError
            _check_postgresql(options)
        elif not url.database or url.database.startswith((":memory:", "file:")):
            raise ValueError  # A database in memory exists in one process only.
    except Exception:  # The libraries raise several types for what they cannot parse.
        raise ValueError(
            "must look like sqlite:///path or postgresql://user:password@host/name, with @ in a password as %40"
        ) from None
    return value


def _check_postgresql(options: Mapping[str, Any]) -> None:
    """Raise an exception for options that libpq refuses, some of them only when it connects."""
    psycopg.conninfo.make_conninfo(**options)
    for name, accepted in LIBPQ_VALUES.items():
        if options.get(name, accepted[0]) not in accepted:
            raise ValueError
    for port in str(options.get("port") or "").split(","):
        if port and not 1 <= int(port) <= 65535:
            raise ValueError
    for host in str(options.get("host") or "").split(","):
        if not host.startswith("/"):  # a directory with a socket
            _check_host_name(host)


def _broker_urls(value: str) -> str:
    if "ssl_options=" in value:  # pika's option, which can switch the checks off
        raise ValueError("must not have ssl_options; set RABBITMQ_CA_FILE, RABBITMQ_CERT_FILE, RABBITMQ_KEY_FILE")
    try:
        value = ",".join(_with_plain_scheme(part.strip()) for part in value.split(","))
        for part in value.split(","):
            if not part.startswith(("amqp://", "amqps://")):
                raise ValueError
            node = pika.URLParameters(part)
            if not 1 <= node.port <= 65535:
                raise ValueError
            _check_host_name(node.host)
    except Exception:  # The library raises several types for what it cannot parse.
        raise ValueError("must look like amqp://user:password@host:5672/vhost") from None
    return value


def _rate_limit_storage(value: str) -> str:
    value = _with_plain_scheme(value)
    try:
        if value != "memory":
            _check_redis(value)
    except Exception:  # The library raises several types for what it cannot parse.
        raise ValueError("must be memory, or look like redis://user:password@host:6379/0") from None
    return value


def _check_redis(url: str) -> None:
    """Raise an exception for a URL that Redis's client refuses, some of them only when it connects."""
    # Imported when used: it takes long, and most processes and commands do not need it.
    from redis import ConnectionPool

    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or not re.fullmatch("(/[0-9]*)?", parts.path):
        raise ValueError
    _check_host_name(parts.hostname)
    ConnectionPool.from_url(url).make_connection()


def _with_plain_scheme(url: str) -> str:
    """The URL with its scheme in lower case, and the other name that PostgreSQL's own programs accept replaced."""
    scheme, separator, rest = url.partition("://")
    return {"postgres": "postgresql"}.get(scheme.lower(), scheme.lower()) + separator + rest


def _check_host_name(host: str) -> None:
    """Raise ValueError if it has an empty label or one that is too long, which looking it up would raise."""
    host.encode("idna")


def _listening_address(value: str) -> str:
    # Shells and conda set HOST to the name of the machine or its platform.
    try:
        return value if value == "localhost" else str(ipaddress.ip_address(value.strip("[]")))
    except ValueError:
        raise ValueError("must be an IP address or localhost, such as 127.0.0.1, 0.0.0.0 or ::") from None


def _host_names(value: str) -> str:
    if value and not all(re.fullmatch("[A-Za-z0-9._-]+", name.strip()) for name in value.split(",")):
        raise ValueError("must be host names without ports, separated by commas")
    return value


def _origins(value: str) -> str:
    """Write the origins as browsers do: in lower case, without the default port."""
    return ",".join(_origin(part.strip()) for part in value.split(",")) if value else value


def _origin(text: str) -> str:
    """Raises ValueError for what is no origin (https://www.rfc-editor.org/rfc/rfc6454)."""
    if text == "*":
        return text
    try:
        url = AnyUrl(text)
        origin = str(AnyUrl.build(scheme=url.scheme, host=url.host or "", port=url.port)).removesuffix("/")
        if not url.host or "*" in text or str(url).removesuffix("/") != origin:
            raise ValueError
    except ValueError:
        message = "must be * or origins like https://shop.example:8443, separated by commas"
        raise ValueError(message) from None
    return origin


def _jwks_url(value: AnyHttpUrl) -> AnyHttpUrl:
    if value.scheme != "https" and not is_loopback((value.host or "").strip("[]")):
        raise ValueError("must be an https address, such as https://login.example/jwks; http on loopback only")
    return value


DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
#: One or several, separated by commas.
BrokerUrls = Annotated[str, AfterValidator(_broker_urls)]
#: Where requests are counted: `memory` or Redis.
RateLimitStorage = Annotated[str, AfterValidator(_rate_limit_storage)]
#: What a server listens on.
ListeningAddress = Annotated[str, AfterValidator(_listening_address)]
#: What a Host header may have, separated by commas.
HostNames = Annotated[str, AfterValidator(_host_names)]
#: What an Origin header may have, separated by commas.
Origins = Annotated[str, AfterValidator(_origins)]
#: Where public keys are, which must not be forged on the way.
JwksUrl = Annotated[AnyHttpUrl, AfterValidator(_jwks_url)]
