"""Exports the spans of Serve's tracing, which is off by default. Needs the extra `tracing`."""

import os

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_SPAN_EVENT_COUNT_LIMIT
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def otlp() -> list[SpanProcessor]:
    """Sends spans to a collector by OTLP over HTTP, as OpenTelemetry's own variables say. For
    RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH: Serve calls it once in each proxy and replica, before it makes its tracer.

    Events are left out: Serve's are exceptions, whose texts may quote a request.
    """
    os.environ[OTEL_SPAN_EVENT_COUNT_LIMIT] = "0"
    return [BatchSpanProcessor(OTLPSpanExporter())]
