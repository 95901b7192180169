"""The addresses that settings name: which can be used, and how they are written."""

import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import psycopg.conninfo
from pydantic import AnyUrl

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


def with_plain_scheme(url: str) -> str:
    """The URL with its scheme in lower case, and the other name that PostgreSQL's own programs accept replaced."""
    scheme, separator, rest = url.partition("://")
    return {"postgres": "postgresql"}.get(scheme.lower(), scheme.lower()) + separator + rest


def check_host_name(host: str) -> None:
    """Raise ValueError if it has an empty label or one that is too long, which looking it up would raise."""
    host.encode("idna")


def check_postgresql(options: Mapping[str, Any]) -> None:
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
            check_host_name(host)


def check_redis(url: str) -> None:
    """Raise an exception for a URL that Redis's client refuses, some of them only when it connects."""
    # Imported when used: it takes long, and most processes and commands do not need it.
    from redis import ConnectionPool

    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or not re.fullmatch("(/[0-9]*)?", parts.path):
        raise ValueError
    check_host_name(parts.hostname)
    ConnectionPool.from_url(url).make_connection()


def origin(text: str) -> str:
    """Raises ValueError for what is no origin (https://www.rfc-editor.org/rfc/rfc6454)."""
    if text == "*":
        return text
    try:
        url = AnyUrl(text)
        text_of_origin = str(AnyUrl.build(scheme=url.scheme, host=url.host or "", port=url.port)).removesuffix("/")
        if not url.host or "*" in text or str(url).removesuffix("/") != text_of_origin:
            raise ValueError
    except ValueError:
        message = "must be * or origins like https://shop.example:8443, separated by commas"
        raise ValueError(message) from None
    return text_of_origin
