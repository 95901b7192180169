"""Request ids, traces, the request log and the metrics."""

import logging
import re
import secrets
import time
from urllib.parse import quote

import structlog
from flask import Flask, Response, g, request

from order_service import metrics, process, tracing
from order_service.web.headers import header

_log = logging.getLogger(__name__)
#: Requested every few seconds by monitoring systems, so logged at DEBUG.
_PROBES = ("/healthz", "/readyz", "/metrics")
#: The longest path in a log line; no route has a longer one.
_PATH_CHARACTERS = 200
#: The version, ids that are not all zeros, the flags, and what a later version adds. https://www.w3.org/TR/trace-context
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")
_TRACESTATE_ENTRY = re.compile(
    r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
#: The least that W3C Trace Context demands to be passed on.
MAX_TRACESTATE_CHARACTERS = 512
_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")


def trace_context() -> tracing.Carrier:
    """The traceparent and tracestate for the events of the request's order: of its span, or else as they came."""
    return tracing.carrier_of(g.span) if g.span else _received_context()


def _received_context() -> dict[str, str]:
    """The request's traceparent and tracestate, unchanged; invalid ones are left out.

    A traceparent of a later version that is longer than version 00 becomes one of version 00, as the standard demands.
    """
    given = header("traceparent", "")
    match = _TRACEPARENT.fullmatch(given)
    if not match or (match[1] == "00" and match[3]):
        return {}
    traceparent = f"00{given[2:53]}{int(match[2], 16) & 1:02x}" if match[3] else given
    entries = header("tracestate", "").split(",")
    named = [entry.strip(" \t") for entry in entries if entry.strip(" \t")]
    keys = {entry.partition("=")[0] for entry in named}
    if not 0 < len(named) == len(keys) <= 32 or not all(map(_TRACESTATE_ENTRY.fullmatch, named)):
        return {"traceparent": traceparent}
    text = ",".join(entries)
    if len(text) > MAX_TRACESTATE_CHARACTERS:  # Whole entries only, from the end.
        text = text[: MAX_TRACESTATE_CHARACTERS + 1].rpartition(",")[0]
    return {"traceparent": traceparent} | ({"tracestate": text} if text else {})


def install(app: Flask) -> None:
    """Log and count every request, by route and never by path, and return its X-Request-ID."""
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    given = header("X-Request-ID", "")
    g.request_id = given if _REQUEST_ID.match(given) else secrets.token_hex(8)
    g.started = time.perf_counter()
    g.span = None
    if tracing.is_on() and request.url_rule and request.path not in _PROBES:
        g.span = tracing.request_span(request.method, request.url_rule.rule, _received_context())
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _end(response: Response) -> Response:
    route = request.url_rule.rule if request.url_rule else "unknown"
    method = request.method if request.method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS") else "other"
    metrics.REQUESTS.count(method, route, str(response.status_code))
    seconds = time.perf_counter() - g.started
    metrics.REQUEST_SECONDS.observe(seconds, method, route)
    response.headers["X-Request-ID"] = g.request_id
    if g.span:
        g.span.set_attribute("http.response.status_code", response.status_code)
        g.span.end()
    level = logging.DEBUG if request.path in _PROBES else logging.INFO
    if _log.isEnabledFor(level):
        # Quoted, because a path may contain line breaks; truncated first, which also bounds the time.
        line = {"method": request.method[:20], "path": quote(request.path[:_PATH_CHARACTERS])}
        outcome = {"status": response.status_code, "ms": round(seconds * 1000, 1)}
        process.log_events(__name__, [(level, "request", line | outcome)])
    return response
