"""Whether the engine can be trusted: the facts behind the server's health status."""

import logging
from collections.abc import Callable

_log = logging.getLogger("mapseek.health")


class Health:
    """Turns what happens to batches into one bit, and tells whenever it flips.

    Unhealthy are: several failed batches in a row, a run that hangs, a broken batching loop. A
    batch that succeeds heals all but the last. Lives on the event loop's thread.

    Args:
        on_change: Called with the new state and the reason, at every flip.
        failures_allowed: How many batches in a row may fail; the next one is one too many.
    """

    def __init__(
        self, on_change: Callable[[bool, str], None] | None = None, *, failures_allowed: int = 2
    ) -> None:
        self._on_change = on_change
        self._failures_allowed = failures_allowed
        self._failures = 0
        self._broken = False
        self.healthy = True
        self.reason = ""

    def succeeded(self) -> None:
        """A batch came back well."""
        self._failures = 0
        if not self.healthy and not self._broken:
            self._flip("a batch succeeded", healthy=True)

    def failed(self, error: BaseException) -> None:
        """A batch failed."""
        self._failures += 1
        if self._failures > self._failures_allowed:
            self._flip(f"{self._failures} batches in a row failed, lastly: {error}", healthy=False)

    def hangs(self, seconds: float) -> None:
        """A batch has been running for too long."""
        self._flip(f"a batch has been running for more than {seconds:g} s", healthy=False)

    def broke(self, error: BaseException) -> None:
        """The batching loop itself failed; only a new process heals that."""
        self._broken = True
        self._flip(f"the batching loop broke: {error!r}", healthy=False)

    def _flip(self, reason: str, *, healthy: bool) -> None:
        if healthy == self.healthy:
            return
        self.healthy, self.reason = healthy, reason
        log = _log.info if healthy else _log.error
        log("The engine is %s: %s.", "healthy again" if healthy else "unhealthy", reason)
        if self._on_change is not None:
            self._on_change(healthy, reason)
