"""How fast searches are answered of late, and how many at once are best for that.

What one takes from beginning to end says little about how many a machine can answer: where most of
it is waiting for Discord, sixteen at once take as long as one does. So the pace is what each took
of the time that it shared with the others: a search that ran for 0.8 s beside seven others used
0.1 s, and ten such are answered in a second.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

# So many run at once at first, at least (for most of an answer is waiting for Discord), and at
# most (for each may hold a large picture).
_FIRST = 16
_LEAST = 6
_MOST = 32
# More run at once while they take less than this, and fewer while they take more, in seconds.
_GOAL_S = 1.0
# How much the latest search says about the pace.
_WEIGHT = 0.1
# How far one search takes the number that run at once towards what it should be.
_STEP = 0.05
_FIRST_TOOK_S = 0.1
_FIRST_SHARE_S = 0.025


@dataclass(frozen=True, slots=True)
class Began:
    """When a search began, by the clock and by the time that was shared out until then."""

    now_s: float
    shared_s: float


class Pace:
    """Measures searches while they run.

    Args:
        first: How many run at once at first.
        least: How many at least.
        most: How many at most.
        goal_s: How long one should take, in seconds.
        clock: The time, in seconds.
    """

    def __init__(
        self,
        *,
        first: int = _FIRST,
        least: int = _LEAST,
        most: int = _MOST,
        goal_s: float = _GOAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.least = least
        self._most = most
        self._goal_s = goal_s
        self._clock = clock
        self._limit = float(first)
        self._running = 0
        self._shared_s = 0.0
        self._counted_at_s = clock()
        # Of a search of late: from its beginning to its end, and what it used of that.
        self.took_s = _FIRST_TOOK_S
        self._share_s = _FIRST_SHARE_S

    @property
    def at_once(self) -> int:
        """How many should run at once now."""
        return int(self._limit)

    def within(self, seconds: float) -> int:
        """How many of those who wait now are answered within so many seconds."""
        return max(0, int((seconds - self.took_s) / max(self._share_s, 1e-3)))

    def begin(self) -> Began:
        """Notes that a search begins."""
        self._share_out()
        self._running += 1
        return Began(self._counted_at_s, self._shared_s)

    def end(self, began: Began, *, answered: bool, more_wait: bool) -> None:
        """Notes that it ends.

        Args:
            began: What `begin` returned.
            answered: Whether it was answered; one that failed early is nothing to measure by.
            more_wait: Whether others wait for its place.
        """
        self._share_out()
        self._running -= 1
        took_s = self._counted_at_s - began.now_s
        if not answered and took_s < self.took_s:
            return
        self.took_s += _WEIGHT * (took_s - self.took_s)
        self._share_s += _WEIGHT * (self._shared_s - began.shared_s - self._share_s)
        if self.took_s > self._goal_s:
            # By Little's law so many fewer take the goal's time.
            self._limit -= _STEP * self._limit * (1 - self._goal_s / self.took_s)
        elif more_wait:
            self._limit += 1 / self._limit
        self._limit = min(max(self._limit, self.least), self._most)

    def _share_out(self) -> None:
        """Shares the time since the last change out among those who ran."""
        now_s = self._clock()
        self._shared_s += (now_s - self._counted_at_s) / max(1, self._running)
        self._counted_at_s = now_s
