"""What the pipeline tells OpenTelemetry; nearly free while no telemetry is set up.

Spans: `decode` and `queue` in the trace of the caller, and one `batch` for every run of the
engine, in a trace of its own, with a link to every member and a link back from it. They are only
made where the caller's own span is recorded.

Metrics: `mapseek.embed.duration` by stage and lane, `mapseek.batch.size`, `mapseek.queue.depth`
(accepted and not yet answered) and `mapseek.rejected` by reason.
"""

import time
from collections.abc import Mapping, Sequence

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode

from inference.errors import (
    InvalidInputError,
    OverloadedError,
    ShuttingDownError,
    UnavailableError,
)
from inference.lanes import Lane

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

    Args:
        lane: How urgent it is.
        stage: Where it is first: "decode", or "queue" where it is decoded after it waited.

    Attributes:
        span: The caller's span, for the link from the batch.
        since: When it entered the stage where it is, as `time.perf_counter` tells it.
    """

    __slots__ = ("_lane", "_stage", "_started", "_started_ns", "since", "span")

    def __init__(self, lane: Lane, stage: str) -> None:
        self.span = trace.get_current_span()
        self._lane = lane
        self._started = self.since = time.perf_counter()
        self._started_ns = time.time_ns()
        self._stage = stage
        _depth.add(1, _BY_LANE[lane])

    def decoded(self, began: float, seconds: float, *, waited_s: float = 0.0) -> None:
        """It was decoded, from `began` on, as `time.perf_counter` tells it."""
        _duration.record(seconds, _BY_STAGE[self._lane, "decode"])
        if self.span.is_recording():
            self._child("decode", began, seconds, {"mapseek.waited_s": waited_s})

    def waited(self, began: float, seconds: float, batch_size: int) -> None:
        """It waited for its batch of so many items, from `began` on."""
        if self.span.is_recording():
            self._child("queue", began, seconds, {"mapseek.batch.size": batch_size})

    def entered(self, stage: str, *, since: float | None = None) -> None:
        """It is at another stage now, or was from `since` on."""
        self._stage, self.since = stage, time.perf_counter() if since is None else since

    def embedded(self, *, queue_s: float, inference_s: float) -> None:
        """It is embedded, after so many seconds of waiting in all, and of the model."""
        lane = self._lane
        _duration.record(queue_s, _BY_STAGE[lane, "queue"])
        _duration.record(inference_s, _BY_STAGE[lane, "inference"])
        _duration.record(time.perf_counter() - self._started, _BY_STAGE[lane, "total"])

    def failed(self, error: BaseException) -> None:
        """It gets no embedding."""
        rejected(error)
        if self.span.is_recording():
            since = self.since
            self._child(self._stage, since, time.perf_counter() - since, {}, error)

    def left(self) -> None:
        """It is answered, one way or the other."""
        _depth.add(-1, _BY_LANE[self._lane])

    def _child(
        self,
        name: str,
        began: float,
        seconds: float,
        attributes: Mapping[str, float],
        error: BaseException | None = None,
    ) -> None:
        start_ns = self._started_ns + int((began - self._started) * 1e9)
        span = _tracer.start_span(
            name,
            trace.set_span_in_context(self.span, Context()),
            start_time=start_ns,
            attributes={"mapseek.lane": self._lane.value, **attributes},
        )
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        span.end(start_ns + int(seconds * 1e9))


def batch(
    kind: str, members: Sequence[Span], *, began: float, error: BaseException | None = None
) -> None:
    """A run of the engine is over that began when `time.perf_counter` said so.

    `members` are the spans of the callers of its items.
    """
    _batch_size.record(len(members), {"kind": kind})
    recorded = [span for span in members if span.is_recording()]
    if not recorded:
        return
    ended_ns = time.time_ns()
    span = _tracer.start_span(
        "batch",
        Context(),
        links=[Link(span.get_span_context()) for span in recorded],
        attributes={"mapseek.batch.size": len(members), "mapseek.batch.kind": kind},
        start_time=ended_ns - int((time.perf_counter() - began) * 1e9),
    )
    for member in recorded:
        member.add_link(span.get_span_context())
    if error is not None:
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))
    span.end(ended_ns)
