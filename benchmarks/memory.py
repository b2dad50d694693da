"""A process's memory and CPU time from /proc, and whether a series of samples grows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MIB = 1024 * 1024

# A straight line through fewer points says nothing about its error.
_MIN_POINTS = 3


def rss_bytes(pid: int) -> int:
    """Resident memory of a process.

    Raises:
        ProcessLookupError: It has ended.
    """
    try:
        resident_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, IndexError):
        raise ProcessLookupError(f"process {pid} has ended") from None
    return resident_pages * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    """How many files and sockets a process holds open.

    Raises:
        ProcessLookupError: It has ended.
    """
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        raise ProcessLookupError(f"process {pid} has ended") from None


def cpu_s(pid: int) -> float:
    """CPU time that a process has used, user and system, in seconds.

    Raises:
        ProcessLookupError: It has ended.
    """
    try:
        # The second field, the command, may hold spaces; it ends at the last parenthesis.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        raise ProcessLookupError(f"process {pid} has ended") from None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A straight line through samples by least squares.

    Attributes:
        slope: By how much the value changes per unit of x.
        slope_error: Standard error of the slope.
        span: How far the samples reach along x.
    """

    slope: float
    slope_error: float
    span: float

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> "Trend | None":
        """Fits (x, y) points; None where there are too few to tell anything."""
        if len(points) < _MIN_POINTS:
            return None
        x, y = np.asarray(points, dtype=np.float64).T
        centred = x - x.mean()
        spread = float(centred @ centred)
        if spread == 0:
            return None
        slope = float(centred @ (y - y.mean())) / spread
        residual = y - y.mean() - slope * centred
        error = float(np.sqrt(residual @ residual / (len(points) - 2) / spread))
        return cls(slope=slope, slope_error=error, span=float(x.max() - x.min()))

    @property
    def growth(self) -> float:
        """By how much the line rises over the samples."""
        return self.slope * self.span

    def grows(self, tolerance: float) -> bool:
        """Whether the rise is more than the tolerance and more than chance.

        Chance: a slope within two standard errors of nothing is taken for nothing.
        """
        return self.growth > tolerance and self.slope > 2 * self.slope_error


def second_half(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The samples after the middle of the time, when start-up and warm-up are over."""
    if not points:
        return []
    middle = (points[0][0] + points[-1][0]) / 2
    return [point for point in points if point[0] >= middle]
