"""Who is answered next where more is asked than this machine can answer.

An answer is due within two seconds. How many run at once follows the pace of late (`pace`), and so
does how many wait: no more than are answered in time. Whoever comes on top is told at once, instead
of everybody waiting for long. Guilds take turns, and so do the members of a guild; where the line
is full, a guild that has less here than another takes the place of that one's latest.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from bot.answering.pace import Pace

_DUE_S = 2.0
# Of a guild that asks for most, others go before its latest, and no two searches are alike.
_PLANNED = 0.6
# Of those who run at once, a guild may have this share, and a member few: his links may be slow.
_GUILD_SHARE = 0.75
_MEMBER_AT_ONCE = 2
# Whatever the pace, one may wait for so many that run; and never more than the other.
_LEAST_WAITING = 4
_MOST_WAITING = 128


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
        pace: How many run at once, and how fast they are answered.
        member_at_once: How many of one member.
        guild_share: Which share of those who run one guild may have.
        due_s: When an answer is due, in seconds after it was asked for.
        planned: The line is full when who comes last would be answered, by the pace, after this
            share of that time.
    """

    def __init__(
        self,
        pace: Pace | None = None,
        *,
        member_at_once: int = _MEMBER_AT_ONCE,
        guild_share: float = _GUILD_SHARE,
        due_s: float = _DUE_S,
        planned: float = _PLANNED,
    ) -> None:
        self._pace = pace or Pace()
        self._member_at_once = member_at_once
        self._guild_share = guild_share
        self._due_s = due_s
        self._planned_s = planned * due_s
        # Guilds in turn; within each, who waits in the order of coming.
        self._waiting: dict[int, list[_Waiting]] = {}
        self._running: list[_Waiting] = []
        self._at_ease = asyncio.Event()
        self._at_ease.set()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._running)

    @property
    def is_crowded(self) -> bool:
        """Whether somebody waits, or more run than may at any pace."""
        return not self._at_ease.is_set()

    def is_full_for(self, *, member_id: int, guild_id: int) -> bool:
        """Whether a member who came now would find no place."""
        return self._is_full() and self._displaced_by(member_id, guild_id) is None

    async def give_way(self, longest_s: float) -> None:
        """Waits while there is a crowd, for so many seconds at most: for what can be done later."""
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self._at_ease.wait()

    @asynccontextmanager
    async def turn(self, *, member_id: int, guild_id: int) -> AsyncIterator[None]:
        """Waits for a turn, and gives it back.

        Raises:
            BusyError: There is no place, or somebody of another guild has taken it, or the turn
                did not come in time.
        """
        one = self._join(member_id, guild_id)
        try:
            await self._called(one)
        except BaseException:
            self._leave(one)
            raise
        began, answered = self._pace.begin(), False
        try:
            yield
            answered = True
        finally:
            self._pace.end(began, answered=answered, more_wait=bool(self._waiting))
            self._leave(one)

    async def _called(self, one: _Waiting) -> None:
        # At least half of the time is for waiting: where searches are slow, late is better.
        patience_s = self._due_s - min(self._pace.took_s, self._due_s / 2)
        try:
            async with asyncio.timeout(patience_s):
                await one.called
        except TimeoutError:
            raise BusyError from None

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
        self._call()
        return one

    def _is_full(self) -> bool:
        at_once = self._pace.at_once
        if len(self._running) < at_once and not self._waiting:
            return False
        room = self._pace.within(self._planned_s)
        return self.waiting >= min(max(room, at_once // _LEAST_WAITING), _MOST_WAITING)

    def _displaced_by(self, member_id: int, guild_id: int) -> _Waiting | None:
        """Whose place a member may take: the latest of whoever has clearly more here."""
        most = max(self._waiting, key=self._presence, default=guild_id)
        if self._presence(most) > self._presence(guild_id) + 1:
            return _greediest(self._waiting[most])[0]
        own = self._waiting.get(guild_id, [])
        latest, count = _greediest(own)
        return latest if count > sum(one.member_id == member_id for one in own) + 1 else None

    def _presence(self, guild_id: int) -> int:
        """How many of a guild run and wait."""
        return len(self._waiting.get(guild_id, ())) + self._runs_of(guild_id)

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

    def _call(self) -> None:
        """Lets run who may."""
        while len(self._running) < self._pace.at_once and (one := self._next()) is not None:
            self._remove(one)
            # Its guild comes after the others.
            if rest := self._waiting.pop(one.guild_id, None):
                self._waiting[one.guild_id] = rest
            self._running.append(one)
            if not one.called.done():  # else it was given up, and is leaving
                one.called.set_result(None)
        if self._waiting or len(self._running) > self._pace.least:
            self._at_ease.clear()
        else:
            self._at_ease.set()

    def _next(self) -> _Waiting | None:
        most_of_guild = max(1, int(self._pace.at_once * self._guild_share))
        for guild_id, line in self._waiting.items():
            if self._runs_of(guild_id) >= most_of_guild:
                continue
            runs = {one.member_id: self._runs(one.member_id) for one in line}
            # Of a guild's members, who has least running; of these, who came first.
            first = min(line, key=lambda one: runs[one.member_id])
            if runs[first.member_id] < self._member_at_once:
                return first
        return None

    def _runs_of(self, guild_id: int) -> int:
        return sum(one.guild_id == guild_id for one in self._running)

    def _runs(self, member_id: int) -> int:
        return sum(one.member_id == member_id for one in self._running)


def _greediest(line: list[_Waiting]) -> tuple[_Waiting | None, int]:
    """The latest of the members who have most in a line, and how much each of them has."""
    counts = Counter(one.member_id for one in line)
    most = max(counts.values(), default=0)
    return next((one for one in reversed(line) if counts[one.member_id] == most), None), most
