"""How much members and guilds may ask, so that nobody waits for somebody else's flood."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

# A burst is half of what a minute gives.
_BURST_S = 30.0
# Beyond so many members or guilds the one that has been quiet longest is forgotten.
_MOST_BUCKETS = 10_000
# Searches that run at the same time.
_MEMBER_AT_ONCE = 2
_GUILD_AT_ONCE = 8


class Buckets:
    """A token bucket for each key, in bounded memory.

    Args:
        per_minute: How many tokens flow in; 0 for no limit.
        most: How many buckets are remembered.
        clock: The time, in seconds.
    """

    def __init__(
        self,
        per_minute: int,
        *,
        most: int = _MOST_BUCKETS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = per_minute / 60
        self._size = max(1.0, self._rate * _BURST_S)
        self._most = most
        self._clock = clock
        # Key to the tokens and when they were counted, the longest quiet first.
        self._buckets: OrderedDict[int, tuple[float, float]] = OrderedDict()

    def wait_s(self, key: int) -> float:
        """How long until there is a token, in seconds; 0 if there is one now."""
        if not self._rate:
            return 0.0
        return max(0.0, (1 - self._level(key)) / self._rate)

    def take(self, key: int) -> None:
        """Takes a token, if there is a limit at all."""
        if not self._rate:
            return
        self._buckets[key] = (self._level(key) - 1, self._clock())
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)

    def _level(self, key: int) -> float:
        now_s = self._clock()
        level, counted_at_s = self._buckets.get(key, (self._size, now_s))
        return min(self._size, level + (now_s - counted_at_s) * self._rate)


class Turns:
    """Lets so many of a key's holders run at once; others of the same key wait in line.

    Args:
        at_once: How many; 0 for no limit.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._lines: dict[int, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, key: int) -> AsyncIterator[None]:
        """Waits for a turn, and gives it back."""
        if not self._at_once:
            yield
            return
        semaphore, holders = self._lines.get(key, (asyncio.Semaphore(self._at_once), 0))
        self._lines[key] = (semaphore, holders + 1)
        try:
            async with semaphore:
                yield
        finally:
            holders = self._lines[key][1] - 1
            if holders:
                self._lines[key] = (semaphore, holders)
            else:
                del self._lines[key]


class Limits:
    """What one member and one guild may ask.

    Args:
        per_member: Searches a minute of one member; 0 for no limit.
        per_guild: Searches a minute of one guild; 0 for no limit.
        clock: The time, in seconds.
    """

    def __init__(
        self,
        *,
        per_member: int,
        per_guild: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._members = Buckets(per_member, clock=clock)
        self._guilds = Buckets(per_guild, clock=clock)
        self._members_turns = Turns(_MEMBER_AT_ONCE if per_member else 0)
        self._guilds_turns = Turns(_GUILD_AT_ONCE)

    def admit(self, *, member_id: int, guild_id: int) -> str | None:
        """Counts a search; or says, in a sentence for the member, why it has to wait."""
        if wait_s := self._members.wait_s(member_id):
            return f"That was a lot at once; ask again in {_seconds(wait_s)}."
        if wait_s := self._guilds.wait_s(guild_id):
            return f"This server is asking a lot right now; try again in {_seconds(wait_s)}."
        # Only a search that happens is counted, so that one member's refusals cost others nothing.
        self._members.take(member_id)
        self._guilds.take(guild_id)
        return None

    @asynccontextmanager
    async def turn(self, *, member_id: int, guild_id: int) -> AsyncIterator[None]:
        """Waits until the member, and then the guild, may run another search.

        Other guilds are not waited for, and a member whose links are slow holds up few of the
        guild's turns.
        """
        async with self._members_turns.of(member_id), self._guilds_turns.of(guild_id):
            yield


def _seconds(wait_s: float) -> str:
    whole = math.ceil(wait_s)
    return "a second" if whole == 1 else f"{whole} seconds"
