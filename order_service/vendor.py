"""Workarounds for libraries, each with its cause and the condition under which it can be removed."""

import os
import struct
import time
from contextlib import suppress

#: How often the files of all workers are read before a scrape fails, and the pause between two reads.
METRICS_READS, METRICS_PAUSE_SECONDS = 10, 0.02


def prometheus_metrics() -> bytes:
    """The metrics of all API processes in Prometheus's text format.

    prometheus_client creates the file of a worker empty and sizes it a moment later; a scrape in between raises
    struct.error or RuntimeError. Remove the loop once https://github.com/prometheus/client_python/issues/1199 is fixed.
    """
    # Imported late: the library reads PROMETHEUS_MULTIPROC_DIR, which deploy/gunicorn.conf.py sets, at import.
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    for _ in range(METRICS_READS - 1):
        with suppress(struct.error, RuntimeError):
            return generate_latest(registry)
        time.sleep(METRICS_PAUSE_SECONDS)
    return generate_latest(registry)
