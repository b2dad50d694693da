"""Work-conserving dynamic batching: an engine that becomes free takes what waits, at once.

There is no timer. A lone item never waits for company; while the engine runs, items gather, and
the engine itself takes the next batch when it is free again, so a batch can grow until the very
moment that it starts. Knows nothing of images, arrays or transports.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from inference.errors import (
    EmbeddingError,
    EngineMemoryError,
    InferenceError,
    ShuttingDownError,
)
from inference.lanes import Lane, LaneQueue

In = TypeVar("In")
Out = TypeVar("Out")

_log = logging.getLogger("mapseek.batcher")

# How much of what usually is inside comes from the present moment.
_PRESENT = 0.2

# So many full batches in a row must fit before larger ones are tried again: what the failures
# cost is then nothing beside them.
_FULL_RUNS_BEFORE_GROWING = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Batched(Generic[Out]):
    """One item's result and what it cost.

    Attributes:
        value: What the engine made of the item.
        queue_s: Seconds from submission to the start of the run.
        run_s: Seconds that the run of the whole batch took.
        batch_size: How many items shared the run.
    """

    value: Out
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(slots=True, eq=False)
class _Waiter(Generic[In, Out]):
    item: In
    lane: Lane
    arrived: float
    future: asyncio.Future[Batched[Out]]


class Batcher(Generic[In, Out]):
    """Gathers single items into batches for an engine that runs one batch, or a few, at a time.

    The contract: a batch starts as soon as the engine is free and holds what waits then, up to
    `max_batch`; where several run at once, each takes its part of what is inside; lanes as in
    `LaneQueue`, first in, first out within a lane; a cancelled caller leaves the queue; a batch
    that fails is halved and run again until the items at fault stand alone, within bounds, and
    the loop goes on; nothing here ever cancels a caller's future.

    Args:
        run: Is given how to take the items of a batch. It calls that once, on any thread, at the
            moment when the engine is free for them, and returns as many results in the same order;
            they may be none. Its exceptions reach the callers, each as an instance of its own: an
            `EmbeddingError` as what it is, anything else as `InferenceError`. `EngineMemoryError`
            (or `MemoryError`) on a batch of several lowers the ceiling to half of it, and its
            items are tried again in smaller batches.
        max_batch: Most items in a batch.
        bulk_share: Part of the places that bulk is sure of while both lanes wait.
        at_once: How many batches the engine runs at once. One takes all that waits; of several,
            each takes so much that all are equal.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self,
        run: Callable[[Callable[[], Sequence[In]]], Awaitable[Sequence[Out]]],
        *,
        max_batch: int,
        bulk_share: float = 0.25,
        at_once: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, not {max_batch}")
        self._run = run
        self._max_batch = max_batch
        self._at_once = at_once
        self._clock = clock
        self._waiting: LaneQueue[_Waiter[In, Out]] = LaneQueue(bulk_share=bulk_share)
        # The batches that were taken and are not answered yet, in the order of their taking.
        self._running: list[list[_Waiter[In, Out]]] = []
        self._usually_inside = 0.0
        self._ordered = 0  # runs that have not taken their items yet
        self._lock = threading.Lock()  # around these four: the engine takes on its own threads
        self._wake = asyncio.Event()
        self._refusal: Exception | None = None
        self._most_batch = max_batch
        self._full_runs = 0

    @property
    def max_batch(self) -> int:
        """The present ceiling: what was asked for, or less after the engine ran out of memory."""
        return self._max_batch

    @property
    def waiting(self) -> int:
        """How many items wait for a run."""
        return len(self._waiting)

    async def submit(self, item: In, lane: Lane) -> Batched[Out]:
        """Waits until the item has been through the engine.

        Raises:
            ShuttingDownError: `close` was called before.
            UnavailableError: The run hangs, see `abandon`.
            InferenceError: The run failed, or the loop is dead.
            EmbeddingError: Whatever else of that kind the run raised.
        """
        if self._refusal is not None:
            raise fresh(self._refusal)
        future: asyncio.Future[Batched[Out]] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(item, lane, self._clock(), future)
        with self._lock:
            self._waiting.put(waiter, lane)
        self._wake.set()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            with self._lock:
                self._waiting.discard(waiter, lane)
            raise

    async def serve(self) -> None:
        """Runs batches until `close` is called and nothing waits; run it as a task.

        Run as many such tasks as the engine runs batches at once, and one more, whose run is
        ordered ahead so that the engine need not wait for the event loop; end all of them when one
        ends. However they end, no caller is left waiting: those still there get
        `ShuttingDownError` if the task was cancelled, and `InferenceError` if the loop broke,
        which is a bug.
        """
        refusal: Exception = InferenceError("The server has a fault and must be restarted.")
        batch: list[_Waiter[In, Out]] = []
        try:
            while await self._more_waits():
                await self._run_batch(batch)
                with self._lock:
                    self._running = [other for other in self._running if other is not batch]
                self._wake.set()
                batch = []  # whose items shall not be kept until the next one
        except asyncio.CancelledError:
            refusal = ShuttingDownError()
            raise
        else:
            refusal = ShuttingDownError()
        finally:
            self._refusal = refusal
            self._wake.set()
            _settle(batch + self._all_waiting(), refusal)

    def close(self) -> None:
        """Refuses new items with `ShuttingDownError`; `serve` returns once nothing waits."""
        if self._refusal is None:
            self._refusal = ShuttingDownError()
        self._wake.set()

    def abandon(self, error: Exception) -> None:
        """Answers everybody who waits or is being run with this error; the run itself goes on."""
        with self._lock:
            running = [waiter for batch in self._running for waiter in batch]
        _settle(running + self._all_waiting(), error)

    def _all_waiting(self) -> "list[_Waiter[In, Out]]":
        with self._lock:
            return self._waiting.take(len(self._waiting))

    async def _more_waits(self) -> bool:
        """Waits until there is something that no run is ordered for; False once there will not."""
        while len(self._waiting) <= self._ordered:
            if self._refusal is not None and not self._waiting:
                return False
            self._wake.clear()
            await self._wake.wait()
        return True

    def _part(self) -> int:
        """How many of those that wait the next run takes.

        Half of all that is inside shall run and half wait, in equal parts: what waits is its own
        part, and one for each run that goes on beside it. Then nobody waits for a large batch.
        What is inside is averaged over the last runs: who has just been answered is missing for a
        moment, and a part that is smaller for it leaves a few waiting for one run more.
        """
        if self._at_once == 1:
            return len(self._waiting)
        # One more than these may be taken and not answered, but is no longer run.
        beside = self._running[-(self._at_once - 1) :]
        inside = len(self._waiting) + sum(map(len, beside))
        self._usually_inside += _PRESENT * (inside - self._usually_inside)
        return max(1, math.ceil(self._usually_inside / (2 * self._at_once - 1)))

    async def _run_batch(self, batch: "list[_Waiter[In, Out]]") -> None:
        """Orders a run; `batch` gets what waits when the engine is free for it."""
        taken = False
        with self._lock:
            self._ordered += 1

        def take() -> None:
            nonlocal taken
            with self._lock:
                taken = True
                self._ordered -= 1
                chosen = self._waiting.take(min(self._part(), self._max_batch))
                batch.extend(waiter for waiter in chosen if not waiter.future.done())
                self._running.append(batch)

        try:
            error = await self._attempt(batch, take)
        finally:
            if not taken:
                with self._lock:
                    self._ordered -= 1
        if error is not None:
            if not batch:  # no item is at fault for that
                raise error
            await self._try_parts(batch, error)

    async def _try_parts(self, batch: "list[_Waiter[In, Out]]", failure: Exception) -> None:
        """Runs a batch that failed in ever smaller parts, down to the items at fault."""
        # The parts that are still to be run, the first one last. Half of these runs find one item
        # at fault; they are bounded for the sake of an engine that fails on everything.
        part, runs_left = batch, 4 * len(batch).bit_length()
        error: Exception | None = failure
        parts: list[list[_Waiter[In, Out]]] = []
        while True:
            runs_left -= 1
            if error is not None and (len(part) == 1 or runs_left <= 0):
                _fail(part, error)
            elif isinstance(error, EngineMemoryError | MemoryError):
                others = [waiter for rest in reversed(parts) for waiter in rest]
                self._shrink(part, part + others)
                return
            elif error is not None:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
            if not parts:
                return
            part = [waiter for waiter in parts.pop() if not waiter.future.done()]
            error = await self._attempt(part) if part else None

    async def _attempt(
        self, part: "list[_Waiter[In, Out]]", take: Callable[[], None] = lambda: None
    ) -> Exception | None:
        """Runs the items of a part, which `take` may fill first, and answers unless it fails."""
        started = 0.0

        def items() -> list[In]:
            nonlocal started
            started = self._clock()
            take()
            return [waiter.item for waiter in part]

        try:
            results = await self._run(items)
            run_s = self._clock() - started
            if len(results) != len(part):
                raise InferenceError(  # noqa: TRY301 - a wrong length is one more failing run
                    f"The engine returned {len(results)} results for {len(part)} items."
                )
        except Exception as error:  # noqa: BLE001 - no engine error may end the loop
            return error
        for waiter, value in zip(part, results, strict=True):
            if not waiter.future.done():
                waiter.future.set_result(
                    Batched(
                        value=value,
                        queue_s=max(0.0, started - waiter.arrived),
                        run_s=run_s,
                        batch_size=len(part),
                    )
                )
        if self._max_batch < self._most_batch and len(part) == self._max_batch:
            self._grow()
        return None

    def _shrink(self, part: list[_Waiter[In, Out]], again: list[_Waiter[In, Out]]) -> None:
        self._max_batch = len(part) // 2
        self._full_runs = 0
        _log.warning(
            "The engine ran out of memory on a batch of %d: from now on at most %d are run at "
            "once. Set MAPSEEK_MAX_BATCH=%d, or give the engine more memory.",
            len(part),
            self._max_batch,
            self._max_batch,
        )
        with self._lock:
            for waiter in reversed(again):
                if not waiter.future.done():
                    self._waiting.put_back(waiter, waiter.lane)

    def _grow(self) -> None:
        """Tries larger batches again after many that fitted: memory may be free by now."""
        self._full_runs += 1
        if self._full_runs >= _FULL_RUNS_BEFORE_GROWING:
            self._full_runs = 0
            self._max_batch = min(2 * self._max_batch, self._most_batch)
            _log.info("Batches of up to %d are tried again.", self._max_batch)


def fresh(error: Exception) -> Exception:
    """Another instance of an error, for another caller: a traceback belongs to one raise."""
    # Not by calling the class: what its constructor takes is its own affair.
    other: Exception = type(error).__new__(type(error), *error.args)
    other.__dict__.update(error.__dict__)
    other.__cause__ = error.__cause__
    return other


def _fail(waiters: Sequence[_Waiter[In, Out]], error: Exception) -> None:
    _log.error("A batch of %d failed.", len(waiters), exc_info=error)
    if not isinstance(error, EmbeddingError):
        kind = EngineMemoryError if isinstance(error, MemoryError) else InferenceError
        cause, error = error, kind("The model failed on this batch.")
        error.__cause__ = cause
    _settle(waiters, error)


def _settle(waiters: Sequence[_Waiter[In, Out]], error: Exception) -> None:
    for waiter in waiters:
        if not waiter.future.done():
            waiter.future.set_exception(fresh(error))
