"""Who is answered next where more is asked than this machine can answer.

So many searches run at once, and few wait: no more than can be answered within a moment at the pace
of late. Whoever comes on top is told at once, instead of everybody waiting for long. Guilds take
turns, and so do the members of a guild; where the line is full, a guild that waits for less than
another takes the place of that one's latest.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

# Many, since most of an answer is waiting for Discord; of a member few, should its links be slow.
_AT_ONCE = 16
_GUILD_AT_ONCE = 12
_MEMBER_AT_ONCE = 2
_LONGEST_WAIT_S = 0.8
# Nobody waits in a longer line, however quick it seems to be.
_MOST_WAITING = 128
# How much the latest answer says about the pace.
_WEIGHT = 0.1
_FIRST_GUESS_S = 0.1


class BusyError(Exception):
    """There is no place in the line."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Waiting:
    guild_id: int
    member_id: int
    called: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Line:
    """Lets so many run at once, in fair turns.

    Args:
        at_once: How many run in all.
        guild_at_once: How many of one guild.
        member_at_once: How many of one member.
        longest_wait_s: The line is full when who comes last would wait for longer, in seconds.
        clock: The time, in seconds.
    """

    def __init__(
        self,
        *,
        at_once: int = _AT_ONCE,
        guild_at_once: int = _GUILD_AT_ONCE,
        member_at_once: int = _MEMBER_AT_ONCE,
        longest_wait_s: float = _LONGEST_WAIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._at_once = at_once
        self._guild_at_once = guild_at_once
        self._member_at_once = member_at_once
        self._longest_wait_s = longest_wait_s
        self._clock = clock
        self._answer_s = _FIRST_GUESS_S
        # Guilds in turn; within each, who waits in the order of coming.
        self._waiting: dict[int, list[_Waiting]] = {}
        self._running: list[_Waiting] = []
        self._nobody_waits = asyncio.Event()
        self._nobody_waits.set()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._running)

    def is_full_for(self, *, member_id: int, guild_id: int) -> bool:
        """Whether a member who came now would find no place."""
        return self._is_full() and self._displaced_by(member_id, guild_id) is None

    async def give_way(self, longest_s: float) -> None:
        """Waits until nobody waits, or for so many seconds: for work that can be done later."""
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self._nobody_waits.wait()

    @asynccontextmanager
    async def turn(self, *, member_id: int, guild_id: int) -> AsyncIterator[None]:
        """Waits for a turn, and gives it back.

        Raises:
            BusyError: There is no place, or somebody of another guild has taken it.
        """
        one = self._join(member_id, guild_id)
        try:
            await one.called
            began_s = self._clock()
            yield
            took_s = self._clock() - began_s
            self._answer_s += _WEIGHT * (took_s - self._answer_s)
        finally:
            self._leave(one)

    def _join(self, member_id: int, guild_id: int) -> _Waiting:
        if self._is_full():
            displaced = self._displaced_by(member_id, guild_id)
            if displaced is None:
                raise BusyError
            self._remove(displaced)
            if not displaced.called.done():  # else it is leaving
                displaced.called.set_exception(BusyError())
        one = _Waiting(guild_id=guild_id, member_id=member_id)
        self._waiting.setdefault(guild_id, []).append(one)
        self._nobody_waits.clear()
        self._call()
        return one

    def _is_full(self) -> bool:
        if len(self._running) < self._at_once and not self._waiting:
            return False
        room = int(self._longest_wait_s * self._at_once / max(self._answer_s, 1e-3))
        return self.waiting >= min(max(room, self._at_once // 2), _MOST_WAITING)

    def _displaced_by(self, member_id: int, guild_id: int) -> _Waiting | None:
        """Whose place a member may take: the latest of whoever waits for clearly more."""
        own = self._waiting.get(guild_id, [])
        longest = max(self._waiting.values(), key=len, default=[])
        if len(longest) > len(own) + 1:
            return _greediest(longest)[0]
        latest, most = _greediest(own)
        return latest if most > sum(one.member_id == member_id for one in own) + 1 else None

    def _leave(self, one: _Waiting) -> None:
        if one in self._running:
            self._running.remove(one)
        else:
            self._remove(one)
        self._call()

    def _remove(self, one: _Waiting) -> None:
        line = self._waiting.get(one.guild_id, [])
        if one in line:
            line.remove(one)
            if not line:
                del self._waiting[one.guild_id]
        if not self._waiting:
            self._nobody_waits.set()

    def _call(self) -> None:
        """Lets run who may."""
        while len(self._running) < self._at_once and (one := self._next()) is not None:
            self._remove(one)
            # Its guild comes after the others.
            if rest := self._waiting.pop(one.guild_id, None):
                self._waiting[one.guild_id] = rest
            self._running.append(one)
            if not one.called.done():  # else it was given up, and is leaving
                one.called.set_result(None)

    def _next(self) -> _Waiting | None:
        for guild_id, line in self._waiting.items():
            if sum(one.guild_id == guild_id for one in self._running) >= self._guild_at_once:
                continue
            runs = {one.member_id: self._runs(one.member_id) for one in line}
            # Of a guild's members, who has least running; of these, who came first.
            first = min(line, key=lambda one: runs[one.member_id])
            if runs[first.member_id] < self._member_at_once:
                return first
        return None

    def _runs(self, member_id: int) -> int:
        return sum(one.member_id == member_id for one in self._running)


def _greediest(line: list[_Waiting]) -> tuple[_Waiting | None, int]:
    """The latest of the members who have most in a line, and how much each of them has."""
    counts = Counter(one.member_id for one in line)
    most = max(counts.values(), default=0)
    return next((one for one in reversed(line) if counts[one.member_id] == most), None), most
