"""A real OTLP receiver on loopback, and the programs that report to it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"

Attributes = dict[str, Any]


@dataclass
class Received:
    """Everything that came in, each with the attributes of the resource that sent it."""

    spans: list[tuple[Attributes, Span]] = field(default_factory=list)
    metrics: list[tuple[Attributes, Metric]] = field(default_factory=list)
    logs: list[tuple[Attributes, str, LogRecord]] = field(default_factory=list)

    def named(self, name: str) -> list[Span]:
        """The spans of this name, in order of their start."""
        found = [span for _, span in self.spans if span.name == name]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def one(self, name: str) -> Span:
        """The only span of this name."""
        (span,) = self.named(name)
        return span

    def metric(self, name: str) -> Metric:
        """The last report of this metric."""
        found = [metric for _, metric in self.metrics if metric.name == name]
        assert found, f"no metric {name} in {sorted({m.name for _, m in self.metrics})}"
        return found[-1]


def plain(value: AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")


def attributes(pairs: Any) -> Attributes:
    return {pair.key: plain(pair.value) for pair in pairs}


class Receiver(
    trace_service_pb2_grpc.TraceServiceServicer,
    metrics_service_pb2_grpc.MetricsServiceServicer,
    logs_service_pb2_grpc.LogsServiceServicer,
):
    """An OpenTelemetry collector that keeps what it gets."""

    def __init__(self) -> None:
        self.received = Received()
        self.endpoint = ""
        self._changed = threading.Condition()
        # One servicer object cannot answer to three services: their methods share a name.
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        for service, request, response, keep in (
            (
                "opentelemetry.proto.collector.trace.v1.TraceService",
                trace_service_pb2.ExportTraceServiceRequest,
                trace_service_pb2.ExportTraceServiceResponse,
                self._keep_spans,
            ),
            (
                "opentelemetry.proto.collector.metrics.v1.MetricsService",
                metrics_service_pb2.ExportMetricsServiceRequest,
                metrics_service_pb2.ExportMetricsServiceResponse,
                self._keep_metrics,
            ),
            (
                "opentelemetry.proto.collector.logs.v1.LogsService",
                logs_service_pb2.ExportLogsServiceRequest,
                logs_service_pb2.ExportLogsServiceResponse,
                self._keep_logs,
            ),
        ):
            handler = grpc.unary_unary_rpc_method_handler(
                self._answer(keep, response),
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
            )

    def start(self) -> None:
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.endpoint = f"http://127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=None).wait()

    def _answer(self, keep: Callable[[Any], None], response: Any) -> Callable[[Any, Any], Any]:
        def export(request: Any, context: Any) -> Any:
            with self._changed:
                keep(request)
                self._changed.notify_all()
            return response()

        return export

    def _keep_spans(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        for part in request.resource_spans:
            resource = attributes(part.resource.attributes)
            for scope in part.scope_spans:
                self.received.spans += [(resource, span) for span in scope.spans]

    def _keep_metrics(self, request: metrics_service_pb2.ExportMetricsServiceRequest) -> None:
        for part in request.resource_metrics:
            resource = attributes(part.resource.attributes)
            for scope in part.scope_metrics:
                self.received.metrics += [(resource, metric) for metric in scope.metrics]

    def _keep_logs(self, request: logs_service_pb2.ExportLogsServiceRequest) -> None:
        for part in request.resource_logs:
            resource = attributes(part.resource.attributes)
            for scope in part.scope_logs:
                self.received.logs += [
                    (resource, scope.scope.name, record) for record in scope.log_records
                ]


class RunProgram(Protocol):
    """Runs a program of `programs/` to its end."""

    def __call__(
        self, name: str, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]: ...


def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, because the OpenTelemetry API takes its providers only once."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MAPSEEK_", "OTEL_", "GRPC_"))
    }
    return subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAMS / name), *arguments],
        env={**kept, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}", **environment},
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def run_program() -> RunProgram:
    return run


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    collector = Receiver()
    collector.start()
    yield collector
    collector.stop()


@pytest.fixture(scope="module")
def rpc_session(receiver: Receiver) -> tuple[Received, dict[str, Any], str]:
    """What `programs/rpc.py` reported: to the collector, on stdout, and on stderr."""
    done = run("rpc.py", MAPSEEK_OTLP_ENDPOINT=receiver.endpoint, MAPSEEK_LOG_FORMAT="json")
    assert done.returncode == 0, done.stderr
    return receiver.received, json.loads(done.stdout), done.stderr
