"""What `ModelStatistics` tells: counts and times of the calls over this protocol."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mapseek.oip import open_inference_pb2 as oip

from inference.oip.models import Model
from inference.pipeline import Embedded


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowest:
    """What a request took: as long as its slowest element, stage by stage.

    Attributes:
        decode_s: Seconds of decoding.
        queue_s: Seconds of waiting.
        inference_s: Seconds of the model's run.
        batch_size: Items in the largest of its runs.
    """

    decode_s: float
    queue_s: float
    inference_s: float
    batch_size: int

    @classmethod
    def of(cls, embedded: Sequence[Embedded]) -> "Slowest":
        """Finds it among the elements, of which there is one at least."""
        if len(embedded) == 1:
            (one,) = embedded
            decode_s, queue_s, run_s, size = (
                one.decode_s,
                one.queue_s,
                one.inference_s,
                one.batch_size,
            )
        else:
            decode_s = max([one.decode_s for one in embedded])
            queue_s = max([one.queue_s for one in embedded])
            run_s = max([one.inference_s for one in embedded])
            size = max([one.batch_size for one in embedded])
        return cls(decode_s=decode_s, queue_s=queue_s, inference_s=run_s, batch_size=size)


class Statistics:
    """Counts for one model. Lives on the event loop's thread."""

    def __init__(self) -> None:
        self._last_ms = 0
        self._requests: Counter[str] = Counter()  # by outcome
        self._took_ns: Counter[str] = Counter()  # by outcome and by stage
        self._items: Counter[int] = Counter()  # by the size of the run that they shared
        self._run_ns: Counter[int] = Counter()

    def succeeded(self, embedded: Sequence[Embedded], took_s: float) -> None:
        """A request was answered."""
        self._last_ms = time.time_ns() // 1_000_000
        self._count("success", took_s)
        slowest = Slowest.of(embedded)
        self._took_ns["decode"] += _ns(slowest.decode_s)
        self._took_ns["queue"] += _ns(slowest.queue_s)
        self._took_ns["inference"] += _ns(slowest.inference_s)
        for one in embedded:
            self._items[one.batch_size] += 1
            self._run_ns[one.batch_size] += _ns(one.inference_s)

    def failed(self, took_s: float) -> None:
        """A request got no answer."""
        self._count("fail", took_s)

    def message(self, model: Model) -> oip.ModelStatistics:
        """The counts so far."""
        answered = self._requests["success"]

        def duration(stage: str, count: int) -> oip.StatisticDuration:
            return oip.StatisticDuration(count=count, ns=self._took_ns[stage])

        return oip.ModelStatistics(
            name=model.name,
            version=str(model.version),
            last_inference=self._last_ms,
            inference_count=self._items.total(),
            # Each of the items of a run stands for its part of it.
            execution_count=round(sum(count / size for size, count in self._items.items())),
            inference_stats=oip.InferStatistics(
                success=duration("success", answered),
                fail=duration("fail", self._requests["fail"]),
                queue=duration("queue", answered),
                compute_input=duration("decode", answered),
                compute_infer=duration("inference", answered),
                compute_output=oip.StatisticDuration(count=answered),
            ),
            batch_stats=[
                oip.InferBatchStatistics(
                    batch_size=size,
                    compute_infer=oip.StatisticDuration(
                        count=round(self._items[size] / size), ns=round(self._run_ns[size] / size)
                    ),
                )
                for size in sorted(self._items)
            ],
        )

    def _count(self, outcome: str, took_s: float) -> None:
        self._requests[outcome] += 1
        self._took_ns[outcome] += _ns(took_s)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
