"""Where the kernel runs the threads, and how readily."""

import asyncio
import os
import sys
import threading

import pytest

from inference.threads import LaneThreads
from tests.inference.server.fakes import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


async def where(threads: LaneThreads, count: int) -> list[tuple[set[int], int]]:
    """Calls on all of the threads at once; on which cores each may run, and its priority."""
    barrier = threading.Barrier(count)

    def look() -> tuple[set[int], int]:
        barrier.wait()
        priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return os.sched_getaffinity(0), priority

    ran = await asyncio.gather(*(threads.run(look) for _ in range(count)))
    threads.stop()
    return [one.value for one in ran]


async def test_as_many_as_there_are_cores_keep_to_one_each() -> None:
    cores = os.sched_getaffinity(0)
    ran = await where(LaneThreads(len(cores), name="test", stay=True), len(cores))
    assert sorted(own for kept, _ in ran for own in kept) == sorted(cores)
    assert os.sched_getaffinity(0) == cores, "nobody else is moved"


@pytest.mark.parametrize(("more", "stay"), [(1, True), (0, False)])
async def test_others_run_wherever_there_is_room(*, more: int, stay: bool) -> None:
    cores = os.sched_getaffinity(0)
    count = len(cores) + more
    ran = await where(LaneThreads(count, name="test", stay=stay), count)
    assert [kept for kept, _ in ran] == [cores] * count


async def test_a_nice_thread_stands_back_alone() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    ((_, priority),) = await where(LaneThreads(1, name="test", nice=3), 1)
    assert priority == before + 3
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


async def test_the_thread_that_worked_last_is_woken_first() -> None:
    threads = LaneThreads(3, name="test")
    all_three = threading.Barrier(3)
    await asyncio.gather(*(threads.run(all_three.wait) for _ in range(3)))
    taken = set()
    for _ in range(20):
        await until(lambda: len(threads._free) == 3)
        taken.add((await threads.run(threading.get_ident)).value)
    threads.stop()
    assert len(taken) == 1
