"""What a process exports about itself, beside its counters: whether it is ready, and whether its loops turn."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from order_service import metrics

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

#: How long a scrape waits for the check of the database, in seconds; an unreachable or locked one takes up to 15 s.
CHECK_SECONDS = 2.0


@dataclass
class Check:
    """A check that names what is missing. One that has not ended in time has failed, and no second one starts."""

    missing: Callable[[], Sequence[str]]
    _thread: threading.Thread | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def succeeds(self) -> bool:
        found: list[Sequence[str]] = []
        with self._lock:
            if self._thread and self._thread.is_alive():
                return False
            self._thread = threading.Thread(target=lambda: found.append(self.missing()), daemon=True, name="readiness")
            self._thread.start()
            self._thread.join(CHECK_SECONDS)
        return found == [[]]


def exposition(*, database: bool, loops: bool, stalled_seconds: float) -> bytes:
    """The values in Prometheus's text format; with gunicorn, the library does not let the parent process add them."""
    # Imported late: the library reads PROMETHEUS_MULTIPROC_DIR, which deploy/gunicorn.conf.py sets, at import.
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.metrics_core import GaugeMetricFamily
    from prometheus_client.registry import Collector

    class Values(Collector):
        def collect(self) -> "Iterator[Family]":
            ready = GaugeMetricFamily(metrics.READY.name, metrics.READY.meaning, labels=metrics.READY.labels)
            ready.add_metric(["database"], database)
            ready.add_metric(["loops"], loops)
            yield ready
            yield GaugeMetricFamily(metrics.STALLED.name, metrics.STALLED.meaning, stalled_seconds)

    registry = CollectorRegistry()
    registry.register(Values())
    return generate_latest(registry)
