"""How far a run is, and the learning rate that follows from that."""

from __future__ import annotations

import math

from exporter.training.config import OptimiserSettings, ScheduleSettings


class Progress:
    """How far a run is, 0..1, by steps or by minutes of training.

    With a budget of minutes the cosine ends on time whatever the machine does meanwhile. Time that
    the process spent stopped does not count: a step counts for at most a few typical steps.

    Args:
        settings: Steps or minutes.
        step: Steps done before, for a run that resumes.
        seconds: Seconds of training done before.
    """

    def __init__(self, settings: ScheduleSettings, step: int = 0, seconds: float = 0.0) -> None:
        self._settings = settings
        self._typical: float | None = None
        self.step = step
        self.seconds = seconds

    def advance(self, seconds: float) -> None:
        """Count one step that took this long."""
        typical = seconds if self._typical is None else self._typical
        counted = min(seconds, 5 * typical)
        self._typical = 0.9 * typical + 0.1 * counted
        self.step += 1
        self.seconds += counted

    @property
    def fraction(self) -> float:
        """From 0 at the start to 1 at the end."""
        if self._settings.minutes > 0:
            return min(1.0, self.seconds / (60 * self._settings.minutes))
        return min(1.0, self.step / self._settings.steps)

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.fraction >= 1.0


def learning_rate(settings: OptimiserSettings, fraction: float) -> float:
    """Linear warm-up, then half a cosine to 1 % of the peak (I. Loshchilov and F. Hutter, 2017)."""
    if fraction < settings.warmup:
        return settings.learning_rate * max(0.02, fraction / settings.warmup)
    at = (fraction - settings.warmup) / (1 - settings.warmup)
    return settings.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * at)) / 2)
