"""Which requests are refused for their Host or framing, and the headers that tell browsers what pages may do."""

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, request
from werkzeug.http import http_date

from order_service.web.audit import refused
from order_service.web.headers import header
from order_service.web.problems import Problem

#: A name or address with an optional port (RFC 9110, section 7.2). A server joins repeated headers with commas.
_HOST = re.compile(r"\[([0-9a-f:.]+)\](?::[0-9]*)?|([a-z0-9._-]+)(?::[0-9]*)?", re.IGNORECASE)
_ABSOLUTE = re.compile("[a-z][a-z0-9+.-]*://([^/?#]*)", re.IGNORECASE)
#: The longest name in DNS, and so in the log.
_HOST_CHARACTERS = 253
#: Accept every name: probes and load balancers send any, and the responses reveal nothing.
_PROBES = ("/healthz", "/readyz")
#: Set unless the endpoint set the header itself. Orders are private, so nothing is cached by default.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
#: What a page of an allowed origin may send and read. Credentials mode is not allowed: no cookie has a meaning here.
_EXPOSED = (
    "ETag, Location, Preference-Applied, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, X-Request-ID"
)
_PREFLIGHT = {
    "Access-Control-Allow-Headers": "Accept-Language, Authorization, Content-Type, Idempotency-Key, If-None-Match, "
    "Last-Event-ID, Prefer, traceparent, tracestate, X-Request-ID",
    # In seconds; browsers limit it to 2 hours or less.
    "Access-Control-Max-Age": "3600",
}


def install(app: Flask, accepted_hosts: Set[str] | None, allowed_origins: Set[str]) -> None:
    """Check every request, and complete the headers of every response.

    `accepted_hosts`: None accepts every name. `allowed_origins`: "*" in it allows every origin.
    """
    app.before_request(_check_transfer_encoding)
    app.before_request(partial(_check_host, accepted_hosts))
    app.wsgi_app = _with_headers(app.wsgi_app)  # type: ignore[method-assign]
    if allowed_origins:
        app.after_request(partial(_allow_origin, allowed_origins))


def refusal(code: str) -> bytes:
    """A whole HTTP response with a problem, for a request that cannot be read and so does not reach the application.

    The message is in Indonesian, because the request's language is unknown, and the connection is to be closed.
    """
    problem = Problem(code).details(english=False)
    body = json.dumps(problem).encode()
    headers = _HEADERS | {
        "Connection": "close",
        "Content-Length": str(len(body)),
        "Content-Type": "application/problem+json",
        "Date": http_date(),
    }
    lines = [f"HTTP/1.1 {problem['status']} {HTTPStatus(problem['status']).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _check_transfer_encoding() -> None:
    """Raise Problem 501 for a body that is compressed for the transfer (RFC 9112, section 6.1).

    gunicorn removes the chunks and passes the rest on as if it were the body.
    """
    if header("Transfer-Encoding", "chunked").strip().lower() != "chunked":
        raise Problem("unsupported_transfer_encoding")


def _check_host(accepted_hosts: Set[str] | None) -> None:
    """Raise Problem 400 for a missing, repeated or malformed Host, and for one that is not accepted.

    A page of another site can have its own name resolve to the address of this service, and then read the responses:
    https://en.wikipedia.org/wiki/DNS_rebinding. An address in the Host header excludes that.
    """
    environ = request.environ
    # The authority of a target in absolute form replaces Host (RFC 9112, section 3.2.2), which must be sent as well.
    if target := _ABSOLUTE.match(environ.get("RAW_URI", "")):
        _check_name(accepted_hosts, target[1])
    host = environ.get("HTTP_HOST")
    if host is not None or environ.get("SERVER_PROTOCOL") != "HTTP/1.0":
        _check_name(accepted_hosts, host or "")


def _check_name(accepted_hosts: Set[str] | None, host: str) -> None:
    name = _name(host)
    if name is None:
        raise Problem("bad_request")
    if not (accepted_hosts is None or name in accepted_hosts or request.path in _PROBES or _is_address(name)):
        raise refused("host_not_accepted", host=name[:_HOST_CHARACTERS])


# Nearly all requests name the same few hosts.
@lru_cache(maxsize=64)
def _name(host: str) -> str | None:
    """The name or address in a Host header; None if it is malformed."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower().removesuffix(".") if found else None


def _is_address(name: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return False


def _with_headers(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Complete the headers of every response; as middleware, because werkzeug checks each header that is set."""
    defaults = [(name.lower(), (name, value)) for name, value in _HEADERS.items()]

    def complete(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            present = {name.lower() for name, _ in headers}
            return start_response(status, headers + [h for name, h in defaults if name not in present], *error)

        return app(environ, start)

    return complete


def _allow_origin(allowed: Set[str], response: Response) -> Response:
    """Let pages of allowed origins read the response (https://fetch.spec.whatwg.org/#http-cors-protocol).

    Flask answers OPTIONS for every path, and `Allow` lists its methods.
    """
    response.vary.add("Origin")
    origin = "*" if "*" in allowed else header("Origin", "")
    if origin in allowed:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        if request.method == "OPTIONS" and "Allow" in response.headers:
            response.headers["Access-Control-Allow-Methods"] = response.headers["Allow"]
            response.headers.update(_PREFLIGHT)
    return response
