"""Sets up logs, traces and metrics for a process: the server, the bot or a command.

The rest of the code speaks only the OpenTelemetry API and the standard `logging`. The API does
nothing until this module installs the SDK, which it does (and imports) only where an OTLP endpoint
is set. So telemetry costs nothing when it is off, and only this module knows how it is exported.
"""

import importlib.metadata
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.util.types import Attributes
from pydantic import Field, field_validator

from inference import logs
from inference.environment import Settings
from inference.logs import LogFormat, LogLevel, correlate

if TYPE_CHECKING:
    import grpc.aio

__all__ = [
    "Telemetry",
    "TelemetrySettings",
    "client_interceptors",
    "correlate",
    "server_interceptors",
    "set_up",
]

# From the quickest decode of a small picture to the longest deadline that anybody waits for.
SECONDS_BUCKETS = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 3.0, 5.0, 10.0,
)  # fmt: skip
BATCH_SIZE_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

# How long the last export may hold up the end of the process.
FLUSH_S = 3.0
# How long the export threads get to notice that they were cut off.
_CUT_OFF_S = 0.5

_logger = logging.getLogger("mapseek.telemetry")


class TelemetrySettings(Settings):
    """What is told about a process, and where to. Build it with `TelemetrySettings.load()`."""

    otlp_endpoint: str | None = Field(
        default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None,
        validate_default=True,
        description="OTLP/gRPC address of an OpenTelemetry collector, for example "
        "http://127.0.0.1:4317 (https:// for TLS). Unset: the standard "
        "OTEL_EXPORTER_OTLP_ENDPOINT, and without that nothing is sent.",
    )
    trace_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of traces to record where the caller has not decided, 0 to 1.",
    )
    log_level: LogLevel = Field(
        default=LogLevel.INFO,
        description="The least severe level to log: debug, info, warning or error.",
    )
    log_format: LogFormat = Field(
        default=LogFormat.TEXT, description="How to log on stderr: text or json."
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        url = urlsplit(value)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("write it like http://127.0.0.1:4317, or https:// for TLS")
        return value

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _ignore_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


class Telemetry:
    """What `set_up` started. Leaving it as a context, or `shutdown`, sends what is left."""

    def __init__(self, undo: list[Callable[[], None]], export: "_Export | None" = None) -> None:
        self._undo = undo
        self._export = export

    @property
    def exporting(self) -> bool:
        """Whether traces, metrics and logs go to a collector."""
        return self._export is not None

    def shutdown(self, *, flush_s: float = FLUSH_S) -> None:
        """Sends what has been gathered and gives the log handlers back. May be called twice.

        Args:
            flush_s: The longest that a slow or vanished collector may hold this up, in seconds.
        """
        export, self._export = self._export, None
        if export is not None:
            export.shutdown(flush_s)
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_: TracebackType | None,
    ) -> None:
        self.shutdown()


def set_up(service: str, settings: TelemetrySettings) -> Telemetry:
    """Starts logging on stderr and, where an endpoint is set, the export over OTLP/gRPC.

    The OpenTelemetry API takes its providers once per process, so the first call that has an
    endpoint decides; a later one (two services in one process) sets up nothing more.

    Args:
        service: The `service.name`, for example "mapseek-server".
        settings: Where to and how much.
    """
    if not _wanted(settings):
        return Telemetry([logs.to_stderr(service, settings.log_level, settings.log_format)])
    export = _Export(service, settings)
    undo = [
        logs.to_stderr(service, settings.log_level, settings.log_format),
        logs.to_provider(export.logger_provider),
    ]
    _logger.debug("telemetry goes to %s", settings.otlp_endpoint)
    return Telemetry(undo, export)


def server_interceptors() -> "list[grpc.aio.ServerInterceptor]":
    """Interceptors that record a span for every call a server answers; none when off.

    They go first in the list, so that their spans cover whatever the others do.
    """
    if not _tracing():
        return []
    from inference.tracing import TracingServerInterceptor  # noqa: PLC0415  imports grpc

    return [TracingServerInterceptor()]


def client_interceptors() -> "list[grpc.aio.ClientInterceptor]":
    """Interceptors that record a span for every call made and pass it on; none when off."""
    if not _tracing():
        return []
    from inference.tracing import tracing_client_interceptors  # noqa: PLC0415  imports grpc

    return tracing_client_interceptors()


def _tracing() -> bool:
    """Whether anybody, we or an operator's own agent, has installed a tracer provider."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _wanted(settings: TelemetrySettings) -> bool:
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return settings.otlp_endpoint is not None and not disabled and not _tracing()


class _Export:
    """The SDK's providers and exporters. Imports the SDK, so it is made only when wanted."""

    def __init__(self, service: str, settings: TelemetrySettings) -> None:
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import (  # noqa: PLC0415
            OTLPLogExporter,
        )
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (  # noqa: PLC0415
            OTLPMetricExporter,
        )
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk._logs import LoggerProvider  # noqa: PLC0415
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: PLC0415
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415
        from opentelemetry.sdk.resources import (  # noqa: PLC0415
            OTELResourceDetector,
            Resource,
        )
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        endpoint = settings.otlp_endpoint
        spans, numbers, lines = (
            OTLPSpanExporter(endpoint=endpoint),
            OTLPMetricExporter(endpoint=endpoint),
            OTLPLogExporter(endpoint=endpoint),
        )
        # What the operator says (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) wins over ours.
        resource = Resource.create(
            {
                "service.name": service,
                "service.namespace": "mapseek",
                "service.version": _version(),
                "service.instance.id": str(uuid.uuid4()),
            }
        ).merge(OTELResourceDetector().detect())

        # `shutdown_on_exit` would flush without a bound; `Telemetry.shutdown` flushes with one.
        tracer_provider = TracerProvider(
            resource=resource,
            sampler=_sampler(settings.trace_ratio),
            shutdown_on_exit=False,
        )
        tracer_provider.add_span_processor(BatchSpanProcessor(spans))
        meter_provider = MeterProvider(
            metric_readers=[PeriodicExportingMetricReader(numbers)],
            resource=resource,
            views=_views(),
            shutdown_on_exit=False,
        )
        self.logger_provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(BatchLogRecordProcessor(lines))

        self._providers: list[Any] = [tracer_provider, meter_provider, self.logger_provider]
        self._exporters: list[Any] = [spans, numbers, lines]
        trace.set_tracer_provider(tracer_provider)
        metrics.set_meter_provider(meter_provider)

    def shutdown(self, flush_s: float) -> None:
        """Flushes all three signals at once; what has not gone after `flush_s` is given up."""
        # Each provider's own shutdown waits up to 30 s, one after the other.
        threads = [
            threading.Thread(target=provider.shutdown, name="telemetry-flush", daemon=True)
            for provider in self._providers
        ]
        for thread in threads:
            thread.start()
        if _join(threads, flush_s):
            return
        # Closing an exporter breaks off its call and its retries.
        for exporter in self._exporters:
            exporter.shutdown()
        _join(threads, _CUT_OFF_S)
        _logger.warning("the collector did not take the last telemetry within %g s", flush_s)


def _join(threads: list[threading.Thread], timeout_s: float) -> bool:
    """Waits for all the threads together and tells whether all have ended."""
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def _sampler(ratio: float) -> Any:
    """Whole traces or nothing: a caller's decision holds, the ratio decides for new traces.

    The one exception is a span that starts a trace with links to recorded ones, as every batch
    does: it is recorded, too, or the links would lead nowhere.
    """
    from opentelemetry.sdk.trace.sampling import (  # noqa: PLC0415
        ALWAYS_ON,
        ParentBased,
        Sampler,
        SamplingResult,
        TraceIdRatioBased,
    )

    class LinkedOrRatio(Sampler):
        """Records what is linked to something recorded, and the ratio of everything else."""

        def __init__(self) -> None:
            self._ratio = TraceIdRatioBased(ratio)

        def should_sample(  # noqa: PLR0917  the SDK's signature
            self,
            parent_context: Context | None,
            trace_id: int,
            name: str,
            kind: trace.SpanKind | None = None,
            attributes: Attributes = None,
            links: Sequence[trace.Link] | None = None,
            trace_state: trace.TraceState | None = None,
        ) -> SamplingResult:
            linked = any(link.context.trace_flags.sampled for link in links or ())
            sampler = ALWAYS_ON if linked else self._ratio
            return sampler.should_sample(
                parent_context, trace_id, name, kind, attributes, links, trace_state
            )

        def get_description(self) -> str:
            return f"LinkedOr({self._ratio.get_description()})"

    return ParentBased(LinkedOrRatio())


def _views() -> list[Any]:
    from opentelemetry.sdk.metrics import Histogram  # noqa: PLC0415
    from opentelemetry.sdk.metrics.view import (  # noqa: PLC0415
        ExplicitBucketHistogramAggregation,
        View,
    )

    return [
        View(
            instrument_type=Histogram,
            instrument_unit="s",
            aggregation=ExplicitBucketHistogramAggregation(SECONDS_BUCKETS),
        ),
        View(
            instrument_type=Histogram,
            instrument_name="mapseek.batch.size",
            aggregation=ExplicitBucketHistogramAggregation(BATCH_SIZE_BUCKETS),
        ),
    ]


def _version() -> str:
    try:
        return importlib.metadata.version("mapseek")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout, not installed
        return "unknown"
