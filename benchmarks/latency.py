"""What many latencies come to, and when an open loop has to send."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Percentiles of a set of latencies, in milliseconds; NaN where there was none.

    Attributes:
        count: How many there were.
        mean_ms: Their mean.
        p50_ms: The median.
        p90_ms: Nine of ten were no longer.
        p95_ms: 19 of 20 were no longer.
        p99_ms: 99 of 100 were no longer.
        max_ms: The longest.
    """

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        """Summarises latencies given in seconds (percentiles by linear interpolation)."""
        if not seconds:
            nan = float("nan")
            return cls(
                count=0, mean_ms=nan, p50_ms=nan, p90_ms=nan, p95_ms=nan, p99_ms=nan, max_ms=nan
            )
        values = np.asarray(seconds, dtype=np.float64) * 1000
        p50, p90, p95, p99 = np.percentile(values, (50, 90, 95, 99))
        return cls(
            count=len(seconds),
            mean_ms=float(values.mean()),
            p50_ms=float(p50),
            p90_ms=float(p90),
            p95_ms=float(p95),
            p99_ms=float(p99),
            max_ms=float(values.max()),
        )


def poisson_arrivals(rate: float, seconds: float, *, seed: int) -> Iterator[float]:
    """Yields the moments at which independent callers would send, in seconds from the start.

    The gaps between them are exponentially distributed. The moments are fixed beforehand and do
    not wait for answers: a server that stalls meets the same arrivals as one that does not, which
    is what keeps its stalls in the figures (no "coordinated omission").

    Args:
        rate: Arrivals per second on average.
        seconds: When to stop.
        seed: The same seed gives the same moments.
    """
    if rate <= 0:
        raise ValueError(f"a rate must be positive, not {rate:g}")
    gaps = random.Random(seed)
    moment = gaps.expovariate(rate)
    while moment < seconds:
        yield moment
        moment += gaps.expovariate(rate)
