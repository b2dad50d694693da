"""Waiting for something that is away."""

import asyncio
import logging
import random

_log = logging.getLogger("mapseek.bot")

_LONGEST_S = 60.0


class Pause:
    """Waits longer each time, up to a minute, while something that all work needs is away.

    Args:
        work: What waits, for the log.
    """

    def __init__(self, work: str) -> None:
        self._work = work
        self._next_s = 1.0

    async def wait(self, reason: Exception) -> None:
        """Says why, and waits."""
        _log.warning("%s waits %.0f s: %s", self._work, self._next_s, reason)
        await asyncio.sleep(self._next_s * random.uniform(0.5, 1.0))
        self._next_s = min(self._next_s * 2, _LONGEST_S)
