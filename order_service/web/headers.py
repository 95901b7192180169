"""The header fields of the present request, and the address that it came from."""

import re
from functools import cache
from typing import TypeVar

from flask import request

Default = TypeVar("Default", str, None)
#: An address as some proxies report it, with the port of their client; with IPv6 in brackets.
_WITH_PORT = re.compile(r"\[([0-9a-f:.%]+)\](?::[0-9]*)?|([0-9.]+):[0-9]*", re.IGNORECASE)
#: The longest text that is kept of an address: a proxy may report any, and a Unix socket has none.
MAX_ADDRESS_CHARACTERS = 64


def header(name: str, default: Default) -> str | Default:
    """The value of a header field, or the default without one; the server has joined repeated fields.

    From the environment (PEP 3333), because werkzeug raises and catches an exception for each absent field: all of a
    POST's together took a twentieth of its CPU time.
    """
    value: str | Default = request.environ.get(_variable(name), default)
    return value


@cache
def _variable(name: str) -> str:
    return "HTTP_" + name.upper().replace("-", "_")


def client_address() -> str:
    """The address of the client, without a port, as the trusted proxies report it; empty if it is not known."""
    address = request.remote_addr or ""
    if found := _WITH_PORT.fullmatch(address):
        address = found[1] or found[2]
    return address[:MAX_ADDRESS_CHARACTERS]
