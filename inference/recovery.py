"""Finds out whether a doubtful engine works, and gives up one that does not come back."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from inference.errors import EngineLostError
from inference.health import Health

# How long a failing engine is left alone before it is tried again.
_PAUSE_S = 0.5
# A run of the largest batch at the slowest rate ever seen, times this, counts as hung, but nothing
# under so many seconds does: a machine may stand still for a moment.
_FAR_LONGER = 10.0
_LEAST_S = 5.0
# So many runs tell how fast an engine is.
_KNOWN_AFTER = 20


class Pace:
    """How long a run may take before it counts as hung.

    Args:
        most_s: The bound for an engine that is not known yet, and for every other.
        max_batch: Most items in a run.
    """

    def __init__(self, *, most_s: float, max_batch: int) -> None:
        self._most_s = most_s
        self._max_batch = max_batch
        self._runs = 0
        self._slowest_s = 0.0

    @property
    def limit_s(self) -> float:
        """The bound at present, in seconds."""
        if self._runs < _KNOWN_AFTER:
            return self._most_s
        far_longer_s = _FAR_LONGER * self._slowest_s * self._max_batch
        return min(self._most_s, max(_LEAST_S, far_longer_s))

    def ran(self, seconds: float, items: int) -> None:
        """Learns from a run that came back well."""
        self._runs += 1
        self._slowest_s = max(self._slowest_s, seconds / items)


class Recovery:
    """Runs the engine on what it could do before, whenever its health is in doubt.

    While pictures are at fault, that succeeds, and the server stays up. Otherwise the server is
    unhealthy until it succeeds; callers, who keep away from such a server, are not needed for it.

    Args:
        health: Whose doubts to settle.
        probe: Runs the engine on something that it should be able to do.
        grace_s: How long the engine may stay in doubt, in seconds; None means for ever.
    """

    def __init__(
        self,
        health: Health,
        *,
        probe: Callable[[], Awaitable[object]],
        grace_s: float | None,
    ) -> None:
        self._health = health
        self._probe = probe
        self._grace_s = grace_s

    async def attend(self) -> None:
        """Settles doubts as they come; run it as a task.

        Raises:
            EngineLostError: The engine did not come back in time.
        """
        while True:
            await self._health.in_doubt.wait()
            since = time.monotonic()
            try:
                async with asyncio.timeout(self._grace_s):
                    await self._settle()
            except TimeoutError:
                waited_s = time.monotonic() - since
                raise EngineLostError(
                    f"The engine did not come back within {waited_s:.1f} s: {self._health.reason}.",
                    hung=self._health.hanging > 0,
                ) from None

    async def _settle(self) -> None:
        while self._health.in_doubt.is_set():
            if not self._health.hanging:  # a run that comes back tells by itself
                try:
                    await self._probe()
                except Exception as error:  # noqa: BLE001 - whatever it is, the engine is ill
                    self._health.relapsed(error.__cause__ or error)
                else:
                    continue
            await asyncio.sleep(_PAUSE_S)
