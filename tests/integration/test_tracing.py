"""The spans of an order, in the SDK's exporter in memory."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from order_service import handlers, tracing
from order_service.contract.envelope import Reply
from order_service.contract.events import INCOMING
from tests import builders
from tests.http_service import RESPOND_ASYNC, Service, body_of
from tests.integration import core
from tests.integration.core import Eventually, Start, Wire, completed, reserved
from tests.traces import TREE

TRACE_ID, CLIENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLIENT = RESPOND_ASYNC | {"traceparent": f"00-{TRACE_ID}-{CLIENT_SPAN}-01", "tracestate": "congo=t61rcWkgMzE"}


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider.get_tracer("test"))
    yield exporter
    tracing.use(None)
    provider.shutdown()


class Siblings:
    """Receive the service's events, and reply with the trace context that came, as the kit does."""

    def __init__(self, wire: Wire, eventually: Eventually) -> None:
        self._wire, self._eventually = wire, eventually
        self._taken: list[core.Message] = []
        wire.declare()
        wire.listen("order.#", "payment.requested")

    def headers_of(self, event_type: str) -> dict[str, Any]:
        def find() -> list[core.Message]:
            self._taken += self._wire.take()
            return [message for message in self._taken if message.properties.type == event_type]

        return dict(self._eventually(find, event_type)[0].properties.headers or {})

    def send(self, reply: Reply, headers: dict[str, Any]) -> None:
        self._wire.send_raw(
            INCOMING[reply.type].routing_key, builders.event(reply), type=reply.type, message_id=reply.message_id,
            headers=headers,
        )  # fmt: skip


@pytest.fixture
def siblings(wire: Wire, eventually: Eventually) -> Siblings:
    return Siblings(wire, eventually)


def pay(service: Service, siblings: Siblings, headers: dict[str, str]) -> int:
    order_id: int = body_of(service.post(headers=headers))["id"]
    siblings.send(reserved(order_id), siblings.headers_of("OrderCreated"))
    siblings.send(completed(order_id), siblings.headers_of("PaymentRequested"))
    siblings.headers_of("OrderPaid")
    return order_id


def parents(spans: tuple[ReadableSpan, ...]) -> dict[str, str | None]:
    """The name of each span's parent by its own name; None for a parent that was not recorded here."""
    names = {span.context.span_id: span.name for span in spans}
    return {span.name: names.get(span.parent.span_id) if span.parent else "root" for span in spans}


def test_spans_of_an_order_form_one_tree_below_the_client(
    exporter: InMemorySpanExporter, service: Service, siblings: Siblings, consuming: Start, relaying: Start
) -> None:
    with consuming(), relaying():
        pay(service, siblings, CLIENT)

    spans = exporter.get_finished_spans()
    assert parents(spans) == TREE
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE_ID}
    [post] = [span for span in spans if span.name == "POST /orders"]
    assert post.parent
    assert f"{post.parent.span_id:016x}" == CLIENT_SPAN
    assert {span.context.trace_state.get("congo") for span in spans} == {"t61rcWkgMzE"}
    assert all(span.start_time <= span.end_time for span in spans if span.start_time and span.end_time)


def test_a_trace_that_is_not_sampled_stays_so(
    exporter: InMemorySpanExporter, service: Service, siblings: Siblings, consuming: Start, relaying: Start
) -> None:
    with consuming(), relaying():
        pay(service, siblings, CLIENT | {"traceparent": f"00-{TRACE_ID}-{CLIENT_SPAN}-00"})

    assert exporter.get_finished_spans() == ()
    headers = siblings.headers_of("OrderPaid")
    assert headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert headers["traceparent"].endswith("-00")
    assert headers["tracestate"] == CLIENT["tracestate"]


def test_a_reply_with_a_trace_of_its_own_is_linked_to_the_order(
    exporter: InMemorySpanExporter, service: Service, siblings: Siblings, consuming: Start, eventually: Eventually
) -> None:
    order_id = body_of(service.post(headers=CLIENT))["id"]
    with consuming():
        siblings.send(reserved(order_id), {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
        eventually(lambda: core.states(service.database, [order_id]) == {"awaiting_payment"}, "the reply to be applied")

    [consumed] = [span for span in exporter.get_finished_spans() if span.name == "consume MenuReserved"]
    assert parents(exporter.get_finished_spans())["consume MenuReserved"] == "POST /orders"
    assert [f"{link.context.trace_id:032x}" for link in consumed.links] == ["a" * 32]


def test_messages_of_one_transaction_are_linked(exporter: InMemorySpanExporter, service: Service) -> None:
    ids = [body_of(service.post(headers=RESPOND_ASYNC))["id"] for _ in range(3)]

    core.apply(service.database, *[reserved(id) for id in ids])

    first, *others = [span for span in exporter.get_finished_spans() if span.name == "consume MenuReserved"]
    assert [[link.context.span_id for link in span.links] for span in others] == [[first.context.span_id]] * 2
    assert len({span.context.trace_id for span in (first, *others)}) == 3


def test_a_transaction_that_is_rolled_back_leaves_no_span(exporter: InMemorySpanExporter, service: Service) -> None:
    order_id = body_of(service.post(headers=RESPOND_ASYNC))["id"]
    exporter.clear()

    def apply_and_fail() -> None:
        with core.unit_of_work(service.database) as work:
            handlers.apply_replies(work, [reserved(order_id)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        apply_and_fail()

    assert exporter.get_finished_spans() == ()


def test_the_span_of_an_instrumentation_is_continued(exporter: InMemorySpanExporter, service: Service) -> None:
    provider = TracerProvider()
    with provider.get_tracer("instrumentation").start_as_current_span("server") as server:
        service.post(headers=RESPOND_ASYNC)

    [event] = core.unsent_events(service.database)
    assert event["traceparent"].split("-")[1:3] == [
        f"{server.get_span_context().trace_id:032x}", f"{server.get_span_context().span_id:016x}",
    ]  # fmt: skip
    assert exporter.get_finished_spans() == ()
