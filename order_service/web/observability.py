"""Which request and which trace a log line or an event belongs to."""

import os
import re
import secrets
import struct
import time
from contextlib import suppress
from functools import cache
from urllib.parse import quote

import structlog
from flask import Flask, Response, g, request
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

log = structlog.get_logger(__name__)
#: Asked every few seconds by whoever watches over us: logged at DEBUG.
_PROBES = ("/healthz", "/readyz", "/metrics")
#: As much of an address as a log line shows; none of ours is longer.
_PATH_CHARACTERS = 200
#: W3C Trace Context, version 00, with a trace and a span that are not all zeros.
_TRACEPARENT = re.compile(r"^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")
_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")
#: How often the counts of several workers are read before it is given up, and the pause between, in seconds.
READS, PAUSE_SECONDS = 10, 0.02
REQUESTS = Counter("http_requests_total", "Requests answered", ["method", "route", "status"])
SECONDS = Histogram("http_request_duration_seconds", "Time to the first byte of the answer", ["method", "route"])
#: The count and the histogram of some labels, found once: the library takes a lock for each look.
_requests, _seconds = cache(REQUESTS.labels), cache(SECONDS.labels)


def traceparent() -> str:
    """The trace this request belongs to, or a new one; every event of its order carries it."""
    given = request.headers.get("traceparent", "")
    trace_id = given[3:35] if _TRACEPARENT.match(given) else secrets.token_hex(16)
    return f"00-{trace_id}-{secrets.token_hex(8)}-01"


def figures() -> bytes:
    """All counts, of every worker that counts together with this one, as Prometheus reads them."""
    registry = REGISTRY
    # The library's own switch, set before its import where there are several workers (deploy/gunicorn.conf.py).
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    for _ in range(READS - 1):
        # A worker that counts for the first time is just making its file, which is empty for a moment.
        with suppress(struct.error, RuntimeError):
            return generate_latest(registry)
        time.sleep(PAUSE_SECONDS)
    return generate_latest(registry)


def install(app: Flask) -> None:
    """X-Request-ID in, out and in every log line; each request counted by route, never by address, and logged."""
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
    # Quoted, since a path may hold line breaks; cut first, which also bounds the time.
    path = quote(request.path[:_PATH_CHARACTERS])
    write("request", method=request.method[:20], path=path, status=response.status_code, ms=round(seconds * 1000, 1))
    return response
