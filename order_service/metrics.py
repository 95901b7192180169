"""Every metric, as a value with its documentation; docs/metrics.md is generated from this module.

A metric is created when it is first used, so each process exports only what happens in it. The names are an interface:
dashboards and alerts use them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from order_service import vendor

#: Upper bounds of histograms: of durations up to a minute and up to an hour, in seconds, and of numbers of messages.
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
LONG_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600)
MESSAGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric's name, meaning, labels and the processes that export it; a histogram has buckets."""

    name: str
    meaning: str
    processes: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        if self.buckets:
            return "histogram"
        return "counter" if self.name.endswith("_total") else "gauge"

    @cached_property
    def _child(self) -> Callable[..., Any]:
        """The child of label values, cached, because the library takes a lock to look it up."""
        # Imported late: the library reads PROMETHEUS_MULTIPROC_DIR, which deploy/gunicorn.conf.py sets, at import.
        from prometheus_client import Counter, Histogram, disable_created_metrics

        # Prometheus has no use for them in this format, and they double the series of a counter.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        if self.buckets:
            metric: Any = Histogram(self.name, self.meaning, self.labels, buckets=self.buckets)
        else:
            metric = Counter(self.name, self.meaning, self.labels)
        return cache(metric.labels if self.labels else lambda: metric)

    def count(self, *labels: str, by: int = 1) -> None:
        """Add to a counter."""
        self._child(*labels).inc(by)

    def observe(self, value: float, *labels: str) -> None:
        """Add a value to a histogram."""
        self._child(*labels).observe(value)

    def observe_all(self, values: Sequence[float]) -> None:
        """Add values to a histogram without labels."""
        if values:
            vendor.observe_all(self._child(), values)


REQUESTS = Metric("http_requests_total", "Answered requests.", "API", ("method", "route", "status"))
REQUEST_SECONDS = Metric(
    "http_request_duration_seconds", "Time from a request to the first byte of its answer.", "API",
    ("method", "route"), SECONDS,
)  # fmt: skip
ORDERS = Metric(
    "order_service_orders_total", "Orders that reached a status; the reason is empty unless they failed.",
    "API, consumers, publishers", ("status", "reason"),
)  # fmt: skip
PENDING = Metric(
    "order_service_orders_pending", "Orders that are pending, by internal state.", "publishers", ("state",)
)
OLDEST_PENDING = Metric(
    "order_service_oldest_pending_seconds", "Age of the oldest pending order; 0 without one.", "publishers"
)
PENDING_TO_PAID = Metric(
    "order_service_pending_to_paid_seconds", "Time from placing an order to its payment.", "API, consumers",
    buckets=LONG_SECONDS,
)  # fmt: skip
OUTBOX_ROWS = Metric("order_service_outbox_rows", "Messages that are not yet confirmed by the broker.", "publishers")
OUTBOX_OLDEST = Metric(
    "order_service_outbox_oldest_seconds", "Age of the oldest of these messages; 0 without one.", "publishers"
)
PUBLISHED = Metric(
    "order_service_published_total",
    "Published messages by what became of them: accepted; returned (no queue is bound); nacked (a queue refused it); "
    "refused (the broker closed the channel); unconfirmed (no confirm in time); invalid (cannot be encoded). All but "
    "accepted ones are published again. The type of dead letters is dead_letter.",
    "publishers", ("type", "outcome"),
)  # fmt: skip
CONFIRM_SECONDS = Metric(
    "order_service_confirm_seconds", "Time from publishing a message to its confirm.", "publishers", buckets=SECONDS
)
CONSUMED = Metric(
    "order_service_consumed_total",
    "Consumed messages by outcome: applied, duplicate, dead_lettered. A type that is not ours is unknown.",
    "consumers", ("type", "outcome"),
)  # fmt: skip
BATCH_MESSAGES = Metric(
    "order_service_batch_messages", "Messages of one transaction of a consumer.", "consumers", buckets=MESSAGES
)
UNCONFIRMED = Metric(
    "order_service_compensations_unconfirmed",
    "Releases and refunds that were requested ORDER_COMPENSATION_ATTEMPTS times without a confirmation, or that an "
    "operator must make.",
    "publishers",
)  # fmt: skip
DEAD_LETTERS = Metric(
    "order_service_dead_letters_total", "Dead-lettered messages by queue and error.", "consumers", ("queue", "error")
)
DRIFTED = Metric(
    "order_service_queues_drifted",
    "1 for a queue of this service that exists with other arguments than `topology` declares, else 0. Without "
    "RABBITMQ_MANAGEMENT_URL, or while the management API does not answer, it has no value.",
    "publishers", ("queue",),
)  # fmt: skip
CLOCK_OFFSET = Metric(
    "order_service_clock_offset_seconds", "How far the clock of this host is ahead of the database's.", "publishers"
)
READY = Metric(
    "order_service_ready",
    "1 if /readyz finds nothing missing, else 0: in the database, or in the loops, which need the broker with the "
    "exchange and the queues. 0 too if the database does not answer within 2 s.",
    "API, consumers, publishers", ("part",),
)  # fmt: skip
STALLED = Metric(
    "order_service_loop_stalled_seconds",
    "How long ago the loop that has not turned for the longest time did so; above 30, /healthz responds with 503.",
    "API, consumers, publishers",
)

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


def families(values: Mapping[Metric, Mapping[tuple[str, ...], float]]) -> Iterator[Any]:
    """Gauges, by the values of their labels, for a collector of the library."""
    from prometheus_client.metrics_core import GaugeMetricFamily

    for metric, children in values.items():
        family = GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        for labels, value in children.items():
            family.add_metric(labels, value)
        yield family
