"""One span, one number and one log line, then the end."""

import json
import logging
import sys

from opentelemetry import metrics, trace

from inference import telemetry

started = telemetry.set_up("mapseek-test", telemetry.TelemetrySettings.load())
with trace.get_tracer("program").start_as_current_span("alone"):
    logging.getLogger("program").warning("one line")
    metrics.get_meter("program").create_counter("mapseek.rejected").add(1)
recorded = trace.SpanContext(1, 1, is_remote=False, trace_flags=trace.TraceFlags(1))
linked = trace.get_tracer("program").start_span("linked", links=[trace.Link(recorded)])
linked.end()
second = telemetry.set_up("mapseek-other", telemetry.TelemetrySettings.load())
told = {
    "exporting": started.exporting,
    "second": second.exporting,
    "interceptors": [len(telemetry.client_interceptors()), len(telemetry.server_interceptors())],
    "sampled": trace.get_tracer("program").start_span("a").get_span_context().trace_flags.sampled,
}
second.shutdown()
started.shutdown(flush_s=float(sys.argv[1]) if len(sys.argv) > 1 else telemetry.FLUSH_S)
started.shutdown()
told["sdk"] = sorted(
    name
    for name in sys.modules
    if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "grpc"))
)
json.dump(told, sys.stdout)
