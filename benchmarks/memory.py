"""What a process holds, and whether it grows."""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil

# Memory is counted in these, as in "400 MB".
MB = 1_000_000

# Eight in each quarter of the time.
_MIN_SAMPLES = 32


def rss_bytes(pid: int) -> int:
    """Resident memory of a process.

    Raises:
        psutil.NoSuchProcess: It has ended.
    """
    return int(psutil.Process(pid).memory_info().rss)


def own_bytes(pid: int) -> int:
    """Resident memory of a process without the files that it has mapped.

    A mapped file counts as resident where it was read, and is given back whenever memory is needed.

    Raises:
        psutil.NoSuchProcess: It has ended.
    """
    memory = psutil.Process(pid).memory_info()
    return int(memory.rss - memory.shared)


def open_files(pid: int) -> int:
    """How many files and sockets a process holds open.

    Raises:
        psutil.NoSuchProcess: It has ended.
    """
    return int(psutil.Process(pid).num_fds())


def cpu_s(pid: int) -> float:
    """CPU time that a process has used, user and system, in seconds.

    Raises:
        psutil.NoSuchProcess: It has ended.
    """
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How far the floor of a series rose.

    The floor is the lowest sample of a while: traffic that comes and goes stands above it, but
    what is never given back lifts it.

    Attributes:
        before: The floor of the second quarter of the time; the first is for warming up.
        after: The floor of the last quarter.
        seconds: The time between the middles of the two.
    """

    before: float
    after: float
    seconds: float

    @classmethod
    def of(cls, samples: Sequence[tuple[float, float]]) -> "Growth | None":
        """Compares (seconds, value) samples; None where there are too few to tell."""
        if len(samples) < _MIN_SAMPLES:
            return None
        start, end = samples[0][0], samples[-1][0]
        quarter = (end - start) / 4
        second = [value for moment, value in samples if quarter <= moment - start < 2 * quarter]
        last = [value for moment, value in samples if moment - start >= 3 * quarter]
        if not second:
            return None  # the sampler itself was held up
        return cls(before=min(second), after=min(last), seconds=2 * quarter)

    @property
    def rise(self) -> float:
        """By how much the floor rose."""
        return self.after - self.before
