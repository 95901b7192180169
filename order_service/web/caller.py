"""Who sends the current request."""

import ipaddress
import re
from typing import NamedTuple

from flask import g, request

#: An address as some proxies report it, with the port of their client; with IPv6 in brackets.
_WITH_PORT = re.compile(r"\[([0-9a-f:.%]+)\](?::[0-9]*)?|([0-9.]+):[0-9]*", re.IGNORECASE)
#: The longest text that is kept of an address: a proxy may report any, and a Unix socket has none.
MAX_ADDRESS_CHARACTERS = 64
#: One client usually has a network of this length for itself: it may use any address in it.
IPV6_PREFIX = 64


class Caller(NamedTuple):
    """Who sends a request. Without authentication, and on open routes, only the address is known."""

    address: str
    subject: str | None = None
    scopes: frozenset[str] = frozenset()
    #: When the token expires, in seconds since 1970.
    expires_at: float | None = None
    #: The only user whose orders this request may see and change; None for those of all users.
    own_user_id: int | None = None

    @property
    def key(self) -> str:
        """Whom a limit counts: the subject of the token, or the network of the address."""
        return client_network(self.address) if self.subject is None else f"subject {self.subject}"


def caller() -> Caller:
    """Who sends the current request; before its token is checked, only the address."""
    found: Caller | None = g.get("caller")
    return found or Caller(client_address())


def client_address() -> str:
    """The address of the client, without a port, as the trusted proxies report it; empty if it is not known."""
    address = request.remote_addr or ""
    if found := _WITH_PORT.fullmatch(address):
        address = found[1] or found[2]
    return address[:MAX_ADDRESS_CHARACTERS]


def client_network(address: str) -> str:
    """The address of a client; of an IPv6 address, its network. What is no address stands for itself."""
    text = address.partition("%")[0]
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return text
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return str(parsed)
