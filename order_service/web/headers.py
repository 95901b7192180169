"""The header fields of the present request."""

from functools import cache
from typing import TypeVar

from flask import request

Default = TypeVar("Default", str, None)


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
