"""Request ids, traces, the request log and the metrics."""

import re
import secrets
import time
from functools import cache
from urllib.parse import quote

import structlog
from flask import Flask, Response, g, request
from prometheus_client import Counter, Histogram

log = structlog.get_logger(__name__)
#: Requested every few seconds by monitoring systems, so logged at DEBUG.
_PROBES = ("/healthz", "/readyz", "/metrics")
#: The longest path in a log line; no route has a longer one.
_PATH_CHARACTERS = 200
#: W3C Trace Context, version 00, with a trace id and a span id that are not all zeros.
_TRACEPARENT = re.compile(r"^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")
_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")
REQUESTS = Counter("http_requests_total", "Answered requests", ["method", "route", "status"])
SECONDS = Histogram("http_request_duration_seconds", "Time to the first byte of the answer", ["method", "route"])
#: Cached, because the library takes a lock to look up labels.
_requests, _seconds = cache(REQUESTS.labels), cache(SECONDS.labels)


def traceparent() -> str:
    """The traceparent of this request's trace, or of a new one; the events of its order carry it."""
    given = request.headers.get("traceparent", "")
    trace_id = given[3:35] if _TRACEPARENT.match(given) else secrets.token_hex(16)
    return f"00-{trace_id}-{secrets.token_hex(8)}-01"


def install(app: Flask) -> None:
    """Log and count every request, by route and never by path, and return its X-Request-ID."""
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if _REQUEST_ID.match(given) else secrets.token_hex(8)
    g.started = time.perf_counter()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _end(response: Response) -> Response:
    route = request.url_rule.rule if request.url_rule else "unknown"
    method = request.method if request.method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS") else "other"
    _requests(method, route, str(response.status_code)).inc()
    seconds = time.perf_counter() - g.started
    _seconds(method, route).observe(seconds)
    response.headers["X-Request-ID"] = g.request_id
    write = log.debug if request.path in _PROBES else log.info
    # Quoted, because a path may contain line breaks; truncated first, which also bounds the time.
    path = quote(request.path[:_PATH_CHARACTERS])
    write("request", method=request.method[:20], path=path, status=response.status_code, ms=round(seconds * 1000, 1))
    return response
