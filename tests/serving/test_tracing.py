"""The exporter of Serve's traces, as Serve's own set-up calls it in each process."""

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.conftest import ROOT

# In a process of its own, since a process has one tracer provider.
TRACED = """
from opentelemetry import trace
from ray.serve._private import tracing_utils

assert tracing_utils.setup_tracing("proxy", "node")
with tracing_utils.TraceContextManager("proxy_http_request"):
    tracing_utils.set_http_span_attributes(method="POST", status_code="200", route="/run")
    tracing_utils.set_span_exception(ValueError("a prompt of a client"))
trace.get_tracer_provider().shutdown()
"""


class Collector(BaseHTTPRequestHandler):
    bodies: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_spans_reach_the_collector_without_the_texts_of_exceptions() -> None:
    Collector.bodies.clear()
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        environment = {
            "PYTHONPATH": str(ROOT),
            "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "serve_app.serving.tracing:otlp",
            "RAY_SERVE_TRACING_SAMPLING_RATIO": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        }
        done = subprocess.run(
            [sys.executable, "-c", TRACED], env=environment, capture_output=True, text=True, timeout=120
        )
        server.shutdown()
        thread.join()
    assert done.returncode == 0, done.stderr
    ((path, body),) = Collector.bodies
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    (span,) = resource.scope_spans[0].spans
    assert path == "/v1/traces"
    assert span.name == "proxy_http_request"
    assert {each.key: each.value.string_value for each in span.attributes}["http.route"] == "/run"
    assert b"a prompt of a client" not in body
