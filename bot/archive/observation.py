"""How archives are watched: one span and one measured time for each operation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import metrics, trace

_tracer = trace.get_tracer("mapseek.archive")
_meter = metrics.get_meter("mapseek.archive")
_duration = _meter.create_histogram(
    "mapseek.archive.duration", unit="s", description="Time of one operation on the archive."
)


@contextmanager
def observed(operation: str) -> Iterator[None]:
    """Traces and times what happens inside."""
    began = time.perf_counter()
    with _tracer.start_as_current_span(f"archive.{operation}"):
        try:
            yield
        finally:
            _duration.record(time.perf_counter() - began, {"operation": operation})
