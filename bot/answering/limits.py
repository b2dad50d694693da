"""How much members and guilds may ask, so that nobody waits for somebody else's flood."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from bot.answering.line import BusyError, Line
from bot.interactions import RefusalError

# A burst is half of what a minute gives.
_BURST_S = 30.0
# Beyond so many members or guilds the one that has been quiet longest is forgotten.
_MOST_BUCKETS = 10_000


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


class Limits:
    """What one member and one guild may ask.

    Args:
        per_member: Searches a minute of one member; 0 for no limit.
        per_guild: Searches a minute of one guild; 0 for no limit.
        line: Who is answered next; one of its own if not given.
        clock: The time, in seconds.
    """

    def __init__(
        self,
        *,
        per_member: int,
        per_guild: int,
        line: Line | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._members = Buckets(per_member, clock=clock)
        self._guilds = Buckets(per_guild, clock=clock)
        self._line = line or Line()

    def admit(self, *, member_id: int, guild_id: int) -> str | None:
        """Counts a search; or says, in a sentence for the member, why it has to wait.

        Raises:
            BusyError: Everybody is asking a lot right now.
        """
        if wait_s := self._members.wait_s(member_id):
            return f"That was a lot at once; ask again in {_seconds(wait_s)}."
        if wait_s := self._guilds.wait_s(guild_id):
            return f"This server is asking a lot right now; try again in {_seconds(wait_s)}."
        if self._line.is_full_for(member_id=member_id, guild_id=guild_id):
            raise BusyError
        # Only a search that happens is counted, so that one member's refusals cost others nothing.
        self._members.take(member_id)
        self._guilds.take(guild_id)
        return None

    def enter(self, *, member_id: int, guild_id: int) -> None:
        """Counts a search.

        Raises:
            RefusalError: It has to wait; see `admit`.
            BusyError: See `admit`.
        """
        wait = self.admit(member_id=member_id, guild_id=guild_id)
        if wait is not None:
            raise RefusalError(wait)

    @property
    def is_crowded(self) -> bool:
        """Whether somebody waits for an answer, or many are being answered."""
        return self._line.is_crowded

    def turn(self, *, member_id: int, guild_id: int) -> AbstractAsyncContextManager[None]:
        """Waits for a turn; see `Line.turn`."""
        return self._line.turn(member_id=member_id, guild_id=guild_id)


def _seconds(wait_s: float) -> str:
    whole = math.ceil(wait_s)
    return "a second" if whole == 1 else f"{whole} seconds"
