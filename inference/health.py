"""Whether the engine can be trusted: the facts behind the server's health status."""

import asyncio
import logging
from collections.abc import Callable

_log = logging.getLogger("mapseek.health")


class Health:
    """Turns what happens to runs into one bit, and tells whenever it flips.

    Unhealthy are: an engine that fails on what it could do before, a run that hangs, a broken
    batching loop. Several failed runs in a row are only a doubt, since pictures may be at fault;
    see `Recovery`. A run that succeeds heals all but the broken loop, once no run hangs. Lives on
    the event loop's thread.

    Args:
        on_change: Called with the new state and the reason, at every flip.
        failures_allowed: How many runs in a row may fail; the next one is one too many.

    Attributes:
        healthy: The bit.
        reason: Why it is what it is.
        hanging: How many runs do not return.
        in_doubt: Set from the first doubt until the next run that succeeds.
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
        self.hanging = 0
        self.in_doubt = asyncio.Event()

    def succeeded(self) -> None:
        """A run came back well."""
        self._failures = 0
        if self.in_doubt.is_set() and not self.hanging:
            self.in_doubt.clear()
            if not self._broken:
                self._flip("a run succeeded", healthy=True)

    def failed(self, error: BaseException) -> None:
        """A run failed."""
        self._failures += 1
        if self._failures > self._failures_allowed:
            _log.debug("%d runs in a row failed, lastly: %s", self._failures, error)
            self.in_doubt.set()

    def relapsed(self, error: BaseException) -> None:
        """A run failed on what the engine could do before."""
        self.in_doubt.set()
        self._flip(
            f"{self._failures} runs in a row failed, and then one that should not: {error}",
            healthy=False,
        )

    def hung(self, seconds: float) -> None:
        """A run has been going on for too long."""
        self.hanging += 1
        self.in_doubt.set()
        self._flip(f"a run has been going on for more than {seconds:g} s", healthy=False)

    def returned(self) -> None:
        """A run that hung came back; whether it went well is told next."""
        self.hanging -= 1

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
