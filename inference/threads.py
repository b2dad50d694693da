"""Threads that take calls from two lanes, so that blocking work never blocks the event loop."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from inference.errors import ShuttingDownError
from inference.lanes import Lane, LaneQueue

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran(Generic[T]):
    """What a call returned, and its time.

    Attributes:
        value: The call's result.
        waited_s: Seconds until a thread took the call.
        ran_s: Seconds that the call took.
    """

    value: T
    waited_s: float
    ran_s: float


class _Job(Generic[T]):
    __slots__ = ("call", "finished", "freed", "lane", "loop", "queued", "waiter")

    def __init__(self, call: Callable[[], T], lane: Lane) -> None:
        self.call = call
        self.lane = lane
        self.loop = asyncio.get_running_loop()
        self.waiter: asyncio.Future[Ran[T]] = self.loop.create_future()
        self.queued = time.perf_counter()
        self.finished = False
        self.freed: asyncio.Future[None] | None = None

    def run(self) -> Ran[T] | BaseException:
        """Makes the call, on one of the threads."""
        started = time.perf_counter()
        try:
            value = self.call()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
            return error
        ended = time.perf_counter()
        return Ran(value=value, waited_s=started - self.queued, ran_s=ended - started)

    def deliver(self, result: Ran[T] | BaseException) -> None:
        """Hands over what came of it, on one of the threads."""
        try:
            self.loop.call_soon_threadsafe(self._finish, result)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _finish(self, result: Ran[T] | BaseException) -> None:
        self.finished = True
        if not self.waiter.done():
            if isinstance(result, BaseException):
                self.waiter.set_exception(result)
            else:
                self.waiter.set_result(result)
        if self.freed is not None and not self.freed.done():
            self.freed.set_result(None)

    def give_up(self) -> None:
        """Lets go of whoever waits for it, though its thread may never come back."""
        self._finish(ShuttingDownError())

    async def until_finished(self) -> None:
        """Waits for the thread even if the waiting task is cancelled again meanwhile."""
        while not self.finished:
            self.freed = self.loop.create_future()
            try:
                await self.freed
            except asyncio.CancelledError:
                continue


class LaneThreads:
    """A few daemon threads that run blocking calls: interactive ones first, bulk never starved.

    A free thread takes the next call itself, without a detour over the event loop, and no call
    is promised to a thread before one is free. Of several that are free, the one that worked last
    is woken: its core is the warmest. They are daemons so that a call which never returns cannot
    keep the process from ending.

    Args:
        count: How many threads.
        name: What to call them.
        bulk_share: Part of the calls that bulk is sure of while both lanes wait.
        nice: How far the threads stand back behind others for a core, as `nice(2)` counts it:
            with 5, they get a quarter of a core that somebody else wants, too. Linux only.
        stay: Whether each keeps to a core of its own, where there is one for each: the system
            then moves the small threads around them, and never one of them away from its cache.
            Linux only.
    """

    def __init__(
        self,
        count: int,
        *,
        name: str,
        bulk_share: float = 0.25,
        nice: int = 0,
        stay: bool = False,
    ) -> None:
        if count < 1:
            raise ValueError(f"{name} needs at least one thread, not {count}")
        self._count = count
        self._name = name
        self._nice = nice
        self._stay = stay
        self._waiting: LaneQueue[_Job[object]] = LaneQueue(bulk_share=bulk_share)
        self._running: set[_Job[object]] = set()
        self._lock = threading.Lock()  # around what waits, runs, is free, and whether it stopped
        self._free: list[threading.Lock] = []  # one for each thread that is, which it waits for
        self._stopped = False
        self._started = False

    @property
    def waiting(self) -> int:
        """How many calls wait for a thread."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """How many threads are at work."""
        return len(self._running)

    async def run(
        self, call: Callable[[], T], lane: Lane = Lane.INTERACTIVE, *, abandon: bool = False
    ) -> Ran[T]:
        """Runs a call on one of the threads and returns its result; its exceptions pass through.

        If the task is cancelled while the call waits, the call is dropped. If it is cancelled
        while the call runs, the cancellation goes on once the thread is free, so that whoever
        counts the work counts it to its end; with `abandon` it goes on at once.

        Raises:
            ShuttingDownError: `stop` was called, before or while the call waited.
        """
        job = _Job(call, lane)
        with self._lock:
            if self._stopped:
                raise ShuttingDownError
            if not self._started:
                self._start()
            self._waiting.put(job, lane)  # type: ignore[arg-type]  # the queue holds any result
            if self._free:
                self._free.pop().release()
        try:
            return await job.waiter
        except asyncio.CancelledError:
            with self._lock:
                dropped = self._waiting.discard(job, lane)  # type: ignore[arg-type]  # as above
            if not dropped and not abandon:
                await job.until_finished()
            raise

    def stop(self) -> None:
        """Ends each thread after its present call; whoever still waits is refused."""
        with self._lock:
            self._stopped = True
            dropped = [*self._waiting.take(len(self._waiting)), *self._running]
            while self._free:
                self._free.pop().release()
        for job in dropped:
            job.give_up()

    def _start(self) -> None:
        self._started = True
        cores = _cores_for(self._count) if self._stay else [None] * self._count
        for number, core in enumerate(cores):
            threading.Thread(
                target=self._work, args=[core], name=f"{self._name}-{number}", daemon=True
            ).start()

    def _work(self, core: int | None) -> None:
        if sys.platform == "linux":  # elsewhere a priority would be the whole process's
            thread = threading.get_native_id()
            with suppress(OSError):
                if self._nice:
                    now = os.getpriority(os.PRIO_PROCESS, thread)
                    os.setpriority(os.PRIO_PROCESS, thread, now + self._nice)
                if core is not None:
                    os.sched_setaffinity(thread, {core})
        woken = threading.Lock()
        woken.acquire()
        while (job := self._next(woken)) is not None:
            result = job.run()
            with self._lock:  # before its caller can ask for more: it is not at work any more
                self._running.discard(job)
            job.deliver(result)
            # Otherwise an idle thread would hold the last picture in memory.
            del job, result

    def _next(self, woken: threading.Lock) -> _Job[object] | None:
        """Waits for a call; None once the threads are to end."""
        while True:
            with self._lock:
                if self._stopped:
                    return None
                if self._waiting:
                    (job,) = self._waiting.take(1)
                    self._running.add(job)
                    return job
                self._free.append(woken)
            woken.acquire()


def _cores_for(count: int) -> Sequence[int | None]:
    """A core for each of so many threads, where the process may use just so many."""
    if sys.platform == "linux" and len(cores := os.sched_getaffinity(0)) == count:
        return sorted(cores)
    return [None] * count
