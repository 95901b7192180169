"""Traces of orders with OpenTelemetry, if OTEL_EXPORTER_OTLP_ENDPOINT is set and requirements-otel.txt is installed.

    POST /orders -> outbox, publish OrderCreated -> consume MenuReserved -> decide -> outbox, publish ... -> decide

Otherwise nothing is imported, no span is begun, and the client's trace context is carried as it came.
The context of an order is that of its POST; the order, its events and their headers carry it as traceparent and
tracestate (https://www.w3.org/TR/trace-context).
"""

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog

log = structlog.get_logger(__name__)
#: traceparent and tracestate, as headers.
Carrier = Mapping[str, str]

#: OpenTelemetry's tracer; None: no spans are recorded.
_tracer: Any = None


def start(endpoint: str | None) -> None:
    """Record spans if there is an endpoint, or `opentelemetry-instrument` runs this process; else import nothing."""
    try:
        use(_tracer_of_process(endpoint) if endpoint or "opentelemetry.sdk.trace" in sys.modules else None)
    except ModuleNotFoundError:
        log.warning("no traces are recorded: run `pip install -r requirements-otel.txt`")


def is_on() -> bool:
    """Whether spans are recorded; the functions that begin one are called only then."""
    return _tracer is not None


def use(tracer: Any) -> None:
    """Record spans with this tracer of OpenTelemetry; None records no spans."""
    global _tracer
    _tracer = tracer


def _tracer_of_process(endpoint: str | None) -> Any:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        if not endpoint:
            return None
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES precede the name given here.
        provider = TracerProvider(resource=Resource({"service.name": "order-service"}).merge(Resource.create()))
        # It starts its thread again after a fork.
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
    return trace.get_tracer("order_service")


def carrier_of(span: Any) -> Carrier:
    """The context of a span, for an order or a message."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span))
    return carrier


def span(
    name: str,
    kind: str,
    parent: Carrier | Any,
    attributes: Mapping[str, Any],
    *,
    links: Sequence[Carrier] = (),
    started_at: datetime | None = None,
) -> Any:
    """Begin a span, which the caller ends. `parent`: a carrier, or a span."""
    from opentelemetry import trace

    context = _context(parent) if isinstance(parent, Mapping) else trace.set_span_in_context(parent)
    linked = [trace.Link(trace.get_current_span(_context(each)).get_span_context()) for each in links]
    start_ns = None if started_at is None else int(started_at.timestamp() * 1e9)
    return _tracer.start_span(name, context, trace.SpanKind[kind], attributes, linked, start_ns)


def request_span(method: str, route: str, carrier: Carrier) -> Any:
    """Begin the span of an HTTP request, or continue the one that an instrumentation opened."""
    from opentelemetry import trace

    if (current := trace.get_current_span().get_span_context()).is_valid:
        return trace.NonRecordingSpan(current)
    attributes = {"http.request.method": method, "http.route": route}
    return span(f"{method} {route}", "SERVER", carrier, attributes)


def consumed(type_name: str, message_id: str, order: Carrier, message: Carrier) -> Any:
    """Begin the span of a consumed message in the trace of its order; another trace that it comes with is linked."""
    is_same = message.get("traceparent", "")[3:35] == order.get("traceparent", "")[3:35]
    links = [] if is_same or not message else [message]
    return span(
        f"consume {type_name}", "CONSUMER", message if is_same else order, _message(type_name, message_id), links=links
    )


def published(type_name: str, message_id: str, row: Carrier, created_at: datetime) -> Any:
    """Begin the span of a publish, after that of the wait in the outbox."""
    attributes = _message(type_name, message_id)
    wait = span(f"outbox {type_name}", "INTERNAL", row, attributes, started_at=created_at)
    wait.end()
    return span(f"publish {type_name}", "PRODUCER", wait, attributes)


def _message(type_name: str, message_id: str) -> Mapping[str, Any]:
    return {"messaging.system": "rabbitmq", "messaging.message.id": message_id, "messaging.message.type": type_name}


def _context(carrier: Carrier) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(carrier, Context())
