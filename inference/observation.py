"""What the pipeline tells OpenTelemetry; nearly free while no telemetry is set up.

Spans: `decode` and `queue` in the trace of the caller, and one `batch` for every run of the
engine, in a trace of its own, with a link to every member and a link back from it. They are only
made where the caller's own span is recorded.

Metrics: `mapseek.embed.duration` by stage and lane, `mapseek.batch.size`, `mapseek.queue.depth`
(accepted and not yet answered) and `mapseek.rejected` by reason.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode

from inference.batcher import Batched
from inference.errors import (
    InvalidInputError,
    OverloadedError,
    ShuttingDownError,
    UnavailableError,
)
from inference.lanes import Lane
from inference.threads import Ran

_tracer = trace.get_tracer("mapseek.inference")
_meter = metrics.get_meter("mapseek.inference")

_duration = _meter.create_histogram(
    "mapseek.embed.duration", unit="s", description="Time of an embedding, by stage."
)
_batch_size = _meter.create_histogram(
    "mapseek.batch.size", unit="{item}", description="Items that shared a run of the model."
)
_depth = _meter.create_up_down_counter(
    "mapseek.queue.depth", unit="{item}", description="Items accepted and not yet answered."
)
_rejected = _meter.create_counter(
    "mapseek.rejected", unit="{item}", description="Items that got no embedding, by reason."
)

_STAGES = ("decode", "queue", "inference", "total")
_BY_STAGE = {(lane, stage): {"stage": stage, "lane": lane} for lane in Lane for stage in _STAGES}
_BY_LANE = {lane: {"lane": lane} for lane in Lane}
_REASONS = {
    InvalidInputError: "invalid",
    OverloadedError: "full",
    ShuttingDownError: "shutting_down",
    UnavailableError: "unavailable",
}


def rejected(error: BaseException) -> None:
    """Counts an item that got no embedding; one whose caller went away counts as cancelled."""
    reason = next((name for kind, name in _REASONS.items() if isinstance(error, kind)), None)
    if reason is None:
        reason = "failed" if isinstance(error, Exception) else "cancelled"
    _rejected.add(1, {"reason": reason})


class Observation:
    """One item on its way; made when it is accepted, and told what happens to it.

    Attributes:
        span: The caller's span, for the link from the batch.
    """

    __slots__ = ("_lane", "_queued_ns", "_queued_s", "_started", "_started_ns", "span")

    def __init__(self, lane: Lane) -> None:
        self.span = trace.get_current_span()
        self._lane = lane
        self._started = time.perf_counter()
        self._started_ns = time.time_ns()
        self._queued_ns = 0
        self._queued_s = 0.0
        _depth.add(1, _BY_LANE[lane])

    def decoded(self, ran: Ran[Any]) -> None:
        """It is decoded and joins the queue for the engine."""
        self._queued_s = ran.waited_s
        _duration.record(ran.ran_s, _BY_STAGE[self._lane, "decode"])
        if self.span.is_recording():
            self._queued_ns = time.time_ns()
            start_ns = self._started_ns + _ns(ran.waited_s)
            span = self._child("decode", start_ns)
            span.set_attribute("mapseek.waited_s", ran.waited_s)
            span.end(start_ns + _ns(ran.ran_s))

    def embedded(self, batched: Batched[Any]) -> None:
        """It is embedded."""
        lane = self._lane
        _duration.record(self._queued_s + batched.queue_s, _BY_STAGE[lane, "queue"])
        _duration.record(batched.run_s, _BY_STAGE[lane, "inference"])
        _duration.record(time.perf_counter() - self._started, _BY_STAGE[lane, "total"])
        if self.span.is_recording():
            span = self._child("queue", self._queued_ns)
            span.set_attribute("mapseek.batch.size", batched.batch_size)
            span.end(self._queued_ns + _ns(batched.queue_s))

    def failed(self, error: BaseException) -> None:
        """It gets no embedding."""
        rejected(error)
        if self.span.is_recording():
            stage = "queue" if self._queued_ns else "decode"
            span = self._child(stage, self._queued_ns or self._started_ns)
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            span.end()

    def left(self) -> None:
        """It is answered, one way or the other."""
        _depth.add(-1, _BY_LANE[self._lane])

    def _child(self, name: str, start_ns: int) -> Span:
        parent = trace.set_span_in_context(self.span, Context())
        return _tracer.start_span(
            name, parent, start_time=start_ns, attributes={"mapseek.lane": self._lane.value}
        )


@contextmanager
def batch(kind: str, members: Sequence[Span]) -> Iterator[None]:
    """Surrounds a run of the engine; `members` are the spans of the callers of its items."""
    _batch_size.record(len(members), {"kind": kind})
    recorded = [span for span in members if span.is_recording()]
    if not recorded:
        yield
        return
    with _tracer.start_as_current_span(
        "batch",
        Context(),
        links=[Link(span.get_span_context()) for span in recorded],
        attributes={"mapseek.batch.size": len(members), "mapseek.batch.kind": kind},
    ) as span:
        for member in recorded:
            member.add_link(span.get_span_context())
        yield


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
