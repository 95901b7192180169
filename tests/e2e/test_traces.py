"""One order is one tree of spans at a collector, from the processes as they are deployed."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.deployment import ON_SQLITE, Deployment
from tests.e2e.process import PROCFILE
from tests.serving import serving
from tests.traces import TREE


@contextmanager
def collecting() -> Iterator[tuple[str, list[Span]]]:
    """The endpoint of a collector, and the spans that it has received."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}", spans


@ON_SQLITE
def test_one_order_is_one_tree_at_the_collector(deployment: Deployment) -> None:
    with collecting() as (endpoint, spans):
        # given
        deployment.prepare()
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        for name in PROCFILE:
            deployment.start(name, **settings)
        deployment.wait_until_healthy()

        # when
        order_id = deployment.client.post_order().body["id"]
        deployment.wait_until_paid([order_id])
        deployment.assert_stops_with_empty_queues()

    # then
    [post] = [span for span in spans if span.name == "POST /orders"]
    tree = [span for span in spans if span.trace_id == post.trace_id]
    ids = {span.span_id: span.name for span in tree}
    assert {span.name: ids.get(span.parent_span_id) for span in tree} == TREE
