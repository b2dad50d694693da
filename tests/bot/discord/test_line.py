"""Who is answered next, and who is told to come back, where more is asked than can be answered."""

import asyncio
from contextlib import suppress

import pytest

from bot.answering.line import BusyError, Line
from bot.answering.pace import Pace

# Of `line_of`: at the pace that is guessed at first, two are answered in this share of the time.
TWO_WAIT = 0.16 / 600


def line_of(at_once: int, **options: float) -> Line:
    """A line in which so many run at once, whatever the pace."""
    pace = Pace(first=at_once, least=at_once, most=at_once)
    return Line(pace, **({"guild_share": 1, "due_s": 600} | options))  # type: ignore[arg-type]


class Hall:
    """A line with people in it, of whom the test says when each is done."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.running: list[str] = []
        self.refused: list[str] = []
        self._gates: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, *, member: int, guild: int) -> None:
        self._gates[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._ask(name, member, guild))
        await _settle()

    async def _ask(self, name: str, member: int, guild: int) -> None:
        try:
            async with self.line.turn(member_id=member, guild_id=guild):
                self.running.append(name)
                await self._gates[name].wait()
        except BusyError:
            self.refused.append(name)

    async def finish(self, name: str) -> None:
        self._gates[name].set()
        await self._tasks[name]
        await _settle()

    async def give_up(self, name: str) -> None:
        self._tasks[name].cancel()
        with suppress(asyncio.CancelledError):
            await self._tasks[name]
        await _settle()

    async def close(self) -> None:
        for gate in self._gates.values():
            gate.set()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        assert (self.line.running, self.line.waiting) == (0, 0)


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_so_many_run_and_guilds_take_turns() -> None:
    hall = Hall(line_of(1))
    for name in ("a1", "a2", "a3"):
        await hall.come(name, member=int(name[1]), guild=1)
    await hall.come("b1", member=7, guild=2)
    assert hall.running == ["a1"]
    for name in ("a1", "a2", "b1"):
        await hall.finish(name)
    assert hall.running == ["a1", "a2", "b1", "a3"], "one guild after the other"
    await hall.close()


async def test_a_member_and_a_guild_have_so_many_at_once_and_others_go_past_them() -> None:
    hall = Hall(line_of(8, guild_share=3 / 8))
    for number in range(4):
        await hall.come(f"bob{number}", member=43, guild=1)
    await hall.come("eve", member=44, guild=1)
    await hall.come("ann", member=45, guild=1)
    await hall.come("far", member=46, guild=2)
    assert hall.running == ["bob0", "bob1", "eve", "far"]
    await hall.finish("bob0")
    assert hall.running[-1] == "ann", "who has less running goes first"
    await hall.close()


async def test_a_full_line_refuses_at_once_and_keeps_a_place_for_other_guilds() -> None:
    line = line_of(4, planned=TWO_WAIT)
    hall = Hall(line)
    for number in range(7):
        await hall.come(f"a{number}", member=number, guild=1)
    assert hall.refused == ["a6"]
    assert line.is_full_for(member_id=9, guild_id=1)
    assert not line.is_full_for(member_id=9, guild_id=2)
    for number in range(3):
        await hall.come(f"b{number}", member=10 + number, guild=2)
    assert hall.refused == ["a6", "a5", "a4", "b2"], "the latest of the guild that has most here"
    await hall.finish("a0")
    await hall.finish("a1")
    assert sorted(hall.running) == ["a0", "a1", "a2", "a3", "b0", "b1"]
    await hall.close()


async def test_one_members_flood_leaves_the_others_of_the_guild_a_place() -> None:
    hall = Hall(line_of(4, planned=TWO_WAIT))
    for number in range(6):
        await hall.come(f"flood{number}", member=1, guild=1)
    assert hall.running == ["flood0", "flood1"]
    await hall.come("one", member=2, guild=1)
    assert hall.running[-1] == "one"
    for number in range(2):
        await hall.come(f"other{number}", member=3 + number, guild=1)
    assert hall.running[-1] == "other0"
    assert hall.refused == ["flood4", "flood5", "flood3"]
    await hall.close()


async def test_the_line_is_as_long_as_the_pace_of_late_allows() -> None:
    clock = Clock()
    pace = Pace(first=4, least=4, most=4, clock=clock)
    line = Line(pace, guild_share=1, due_s=600, planned=1.5 / 600)
    for _ in range(40):
        several = [pace.begin() for _ in range(4)]
        clock.now_s += 0.5
        for one in several:
            pace.end(one, answered=True, more_wait=False)
    hall = Hall(line)
    for number in range(20):
        await hall.come(str(number), member=number, guild=1)
    assert len(hall.running) == 4
    assert line.waiting == 8, "four in half a second are eight in the second that is left"
    await hall.close()


async def test_who_is_not_called_in_time_is_told() -> None:
    hall = Hall(line_of(1, due_s=0))
    await hall.come("runs", member=1, guild=1)
    await hall.come("waits", member=2, guild=1)
    await asyncio.sleep(0)
    assert (hall.running, hall.refused) == (["runs"], ["waits"])
    await hall.close()


async def test_who_gives_up_leaves_no_trace() -> None:
    hall = Hall(line_of(1))
    await hall.come("first", member=1, guild=1)
    await hall.come("second", member=2, guild=1)
    await hall.come("third", member=3, guild=1)
    await hall.give_up("second")
    await hall.give_up("first")
    assert hall.running == ["first", "third"]
    await hall.close()


async def test_given_up_at_the_moment_of_being_called_it_makes_room() -> None:
    line = line_of(1)
    gate = asyncio.Event()

    async def hold() -> None:
        async with line.turn(member_id=1, guild_id=1):
            await gate.wait()

    async def wait() -> None:
        async with line.turn(member_id=2, guild_id=1):
            pytest.fail("it was given up")

    holding = asyncio.create_task(hold())
    waiting = asyncio.create_task(wait())
    await _settle()
    waiting.cancel()
    gate.set()
    await asyncio.gather(holding, waiting, return_exceptions=True)
    async with line.turn(member_id=3, guild_id=1):
        assert line.running == 1


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_old_posts_give_way_while_somebody_waits() -> None:
    line = line_of(1)
    hall = Hall(line)
    await line.give_way(60)
    await hall.come("runs", member=1, guild=1)
    await line.give_way(60)
    await hall.come("waits", member=2, guild=1)
    giving = asyncio.create_task(line.give_way(60))
    await _settle()
    assert line.is_crowded
    assert not giving.done()
    await line.give_way(0)  # no longer than that
    await hall.finish("runs")
    await giving
    assert not line.is_crowded
    await hall.close()
