"""The line on machines of any speed, in a time that jumps from event to event."""

import asyncio
import random
import selectors
from dataclasses import dataclass, field
from selectors import SelectorKey

import numpy as np
import pytest

from bot.answering.line import BusyError, Line
from bot.answering.pace import Pace

SHARES = {1: 0.7, 2: 0.1, 3: 0.1, 4: 0.1}
SECONDS = 40.0
SETTLED_S = 10.0
QUANTUM_S = 0.01


class Jumping(selectors.SelectSelector):
    """Does not wait: time goes on by what would have been waited for."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout:
            self.now_s += timeout
        return events


@dataclass
class Seen:
    answered: dict[int, list[float]] = field(default_factory=lambda: {one: [] for one in SHARES})
    busy: dict[int, list[float]] = field(default_factory=lambda: {one: [] for one in SHARES})

    @property
    def took(self) -> list[float]:
        return [one for every in self.answered.values() for one in every]

    @property
    def told(self) -> list[float]:
        return [one for every in self.busy.values() for one in every]

    def share(self, guild: int) -> float:
        """How much of what a guild asked was answered."""
        answered = len(self.answered[guild])
        return answered / max(1, answered + len(self.busy[guild]))


def simulated(*, per_s: float, capacity: float, discord_s: float) -> Seen:
    """Searches come as they like; each waits for Discord and takes its part of two cores.

    Args:
        per_s: How many come a second.
        capacity: How many the cores could answer in a second.
        discord_s: How long each waits for Discord, about, in seconds.
    """
    selector = Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    dice = random.Random(0)
    seen = Seen()

    async def one(line: Line, cores: asyncio.Semaphore, guild: int) -> None:
        asked_s = loop.time()
        member = 100 * guild + dice.randrange(100)
        try:
            async with line.turn(member_id=member, guild_id=guild):
                await asyncio.sleep(discord_s * dice.uniform(0.5, 1.5))
                needs_s = 2 / capacity * dice.choice((0.5, 0.8, 0.8, 0.9, 1.0, 1.0, 1.2, 1.8))
                for _ in range(round(needs_s / QUANTUM_S)):
                    async with cores:
                        await asyncio.sleep(QUANTUM_S)
            into = seen.answered
        except BusyError:
            into = seen.busy
        if asked_s > SETTLED_S:
            into[guild].append(loop.time() - asked_s)

    async def everybody() -> None:
        line = Line(Pace(clock=loop.time))
        cores = asyncio.Semaphore(2)
        async with asyncio.TaskGroup() as tasks:
            while loop.time() < SECONDS:
                (guild,) = dice.choices([*SHARES], [*SHARES.values()])
                tasks.create_task(one(line, cores, guild))
                await asyncio.sleep(dice.expovariate(per_s))
        assert (line.running, line.waiting) == (0, 0)

    try:
        loop.run_until_complete(everybody())
    finally:
        loop.close()
    return seen


def test_whoever_can_be_answered_is() -> None:
    seen = simulated(per_s=50, capacity=60, discord_s=0.1)
    assert seen.told == []
    assert np.percentile(seen.took, 99) < 2


@pytest.mark.parametrize("capacity", [40, 20, 10, 5])
def test_a_slower_machine_answers_as_many_as_it_can_and_in_time(capacity: float) -> None:
    seen = simulated(per_s=50, capacity=capacity, discord_s=0.05)
    assert len(seen.took) > 0.9 * capacity * (SECONDS - SETTLED_S)
    assert np.percentile(seen.took, 80) < 2
    assert np.percentile(seen.told, 99) < 1.5
    assert np.median(seen.told) < 0.05, "most are told at once"
    # Four guilds: what the machine answers is shared out evenly, or they get all that they ask.
    fair = min(1, capacity / 4 / (0.1 * 50))
    assert min(seen.share(guild) for guild in (2, 3, 4)) > 0.7 * fair


def test_a_slow_discord_is_no_slow_machine() -> None:
    seen = simulated(per_s=40, capacity=80, discord_s=0.6)
    assert len(seen.told) < 0.05 * len(seen.took)
    assert np.percentile(seen.took, 99) < 2


def test_fewer_run_at_once_where_they_are_slow_and_more_where_others_wait() -> None:
    now_s = 0.0
    pace = Pace(first=16, least=6, most=32, goal_s=1, clock=lambda: now_s)

    def run(seconds: float, *, wait: bool) -> None:
        nonlocal now_s
        several = [pace.begin() for _ in range(pace.at_once)]
        now_s += seconds
        for one in several:
            pace.end(one, answered=True, more_wait=wait)

    run(0.5, wait=False)
    assert pace.at_once == 16, "nobody needs more"
    for _ in range(30):
        run(0.5, wait=True)
    assert pace.at_once == 32
    for _ in range(30):
        run(4, wait=True)
    assert pace.at_once == 6
    assert pace.within(5) == 1, "six in four seconds are one in the second that is left"


def test_what_failed_at_once_says_nothing_about_the_pace() -> None:
    now_s = 0.0
    pace = Pace(clock=lambda: now_s)
    before = pace.took_s
    for seconds, answered in ((0.0, False), (20.0, False)):
        one = pace.begin()
        now_s += seconds
        pace.end(one, answered=answered, more_wait=False)
        assert (pace.took_s > before) == (seconds > 0)
