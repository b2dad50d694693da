"""Work-conserving dynamic batching: an engine that becomes free takes what waits, at once.

There is no timer. A lone item never waits for company; while the engine runs, items gather, and
the next batch is chosen only when the engine is free again, so a batch can grow until the very
moment that it starts. Knows nothing of images, arrays or transports.
"""

import asyncio
import logging
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
    """Gathers single items into batches for an engine that runs one batch at a time.

    The contract: a batch starts as soon as the engine is free and holds what waits then, up to
    `max_batch`; lanes as in `LaneQueue`, first in, first out within a lane; a cancelled caller
    leaves the queue; a failing run fails the callers of exactly that batch and the loop goes on;
    nothing here ever cancels a caller's future.

    Args:
        run: Takes the items of a batch and returns as many results in the same order. Its
            exceptions reach the batch's callers: an `EmbeddingError` as it is, anything else as
            `InferenceError`. `EngineMemoryError` on a batch of several lowers the ceiling to half
            of it, and its items are tried again in smaller batches.
        max_batch: Most items in a batch.
        bulk_share: Part of the places that bulk is sure of while both lanes wait.
        turn: Taken for every run: batchers that share an engine share its turn.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self,
        run: Callable[[Sequence[In]], Awaitable[Sequence[Out]]],
        *,
        max_batch: int,
        bulk_share: float = 0.25,
        turn: asyncio.Lock | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, not {max_batch}")
        self._run = run
        self._max_batch = max_batch
        self._turn = turn or asyncio.Lock()
        self._clock = clock
        self._waiting: LaneQueue[_Waiter[In, Out]] = LaneQueue(bulk_share=bulk_share)
        self._running: list[_Waiter[In, Out]] = []
        self._wake = asyncio.Event()
        self._refusal: Exception | None = None

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
            InferenceError: The run failed, or the loop is dead.
            EmbeddingError: Whatever else of that kind the run raised.
        """
        if self._refusal is not None:
            # A new instance, because a traceback belongs to one raise.
            raise type(self._refusal)(*self._refusal.args)
        waiter = _Waiter[In, Out](
            item, lane, self._clock(), asyncio.get_running_loop().create_future()
        )
        self._waiting.put(waiter, lane)
        self._wake.set()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._waiting.discard(waiter, lane)
            raise

    async def serve(self) -> None:
        """Runs batches until `close` is called and nothing waits; run it as a task.

        However it ends, no caller is left waiting: those still there get `ShuttingDownError` if
        the task was cancelled, and `InferenceError` if the loop broke, which is a bug.
        """
        refusal: Exception = InferenceError("The server has a fault and must be restarted.")
        try:
            while await self._something_waits():
                async with self._turn:
                    await self._run_batch()
        except asyncio.CancelledError:
            refusal = ShuttingDownError()
            raise
        else:
            refusal = ShuttingDownError()
        finally:
            self._refusal = refusal
            _settle(self._running + self._waiting.take(len(self._waiting)), refusal)

    def close(self) -> None:
        """Refuses new items with `ShuttingDownError`; `serve` returns once nothing waits."""
        if self._refusal is None:
            self._refusal = ShuttingDownError()
        self._wake.set()

    async def _something_waits(self) -> bool:
        while not self._waiting:
            if self._refusal is not None:
                return False
            self._wake.clear()
            await self._wake.wait()
        return True

    async def _run_batch(self) -> None:
        taken = self._waiting.take(self._max_batch)
        batch = [waiter for waiter in taken if not waiter.future.done()]
        if not batch:  # everybody left while another batcher had the turn
            return
        self._running = batch
        started = self._clock()
        try:
            results = await self._run([waiter.item for waiter in batch])
            run_s = self._clock() - started
            if len(results) != len(batch):
                raise InferenceError(  # noqa: TRY301 - a wrong length is one more failing run
                    f"The engine returned {len(results)} results for {len(batch)} items."
                )
        except Exception as error:  # noqa: BLE001 - no engine error may end the loop
            if isinstance(error, EngineMemoryError) and len(batch) > 1:
                self._split(batch)
            else:
                self._fail(batch, error)
        else:
            for waiter, value in zip(batch, results, strict=True):
                if not waiter.future.done():
                    waiter.future.set_result(
                        Batched(
                            value=value,
                            queue_s=started - waiter.arrived,
                            run_s=run_s,
                            batch_size=len(batch),
                        )
                    )
        self._running = []

    def _fail(self, batch: list[_Waiter[In, Out]], error: Exception) -> None:
        _log.error("A batch of %d failed.", len(batch), exc_info=error)
        if not isinstance(error, EmbeddingError):
            cause, error = error, InferenceError("The model failed on this batch.")
            error.__cause__ = cause
        _settle(batch, error)

    def _split(self, batch: list[_Waiter[In, Out]]) -> None:
        self._max_batch = len(batch) // 2
        _log.warning(
            "The engine ran out of memory on a batch of %d: from now on at most %d are run at "
            "once. Set MAPSEEK_MAX_BATCH=%d, or give the engine more memory.",
            len(batch),
            self._max_batch,
            self._max_batch,
        )
        for waiter in reversed(batch):
            if not waiter.future.done():
                self._waiting.put_back(waiter, waiter.lane)


def _settle(waiters: Sequence[_Waiter[In, Out]], error: Exception) -> None:
    for waiter in waiters:
        if not waiter.future.done():
            waiter.future.set_exception(error)
