"""A run of the model over a batch, and the watch that is kept over it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from inference.errors import InferenceError
from inference.health import Health
from inference.recovery import Pace
from inference.threads import LaneThreads, Ran

Embedding = NDArray[np.float32]
Item = NDArray[Any]
"""What a tower reads: pixels or token ids."""
Given = Item | Callable[[], Item]
"""An item, or how to make it: decode a picture, tokenise a text."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one item of a run.

    Attributes:
        embedding: float32 [D] of unit length, or why there is none.
        prepare_after_s: Seconds from the run's start until the item was prepared.
        prepare_s: Seconds of preparing it; 0 if it came prepared.
        others_s: Seconds of preparing the other items of the run.
        inference_s: Seconds of the model, for all items together.
    """

    embedding: Embedding | Exception
    prepare_after_s: float
    prepare_s: float
    others_s: float
    inference_s: float


class Run:
    """Prepares what is not prepared yet and runs the model over it; call it once, on any thread.

    An item that cannot be prepared has its error for an outcome and spoils no other; what the
    model raises, the call raises.

    Args:
        embed: The model: items [N, ...] to float32 [N, D].
        take: Called first, for the items; there may be none.

    Attributes:
        started: When it had its items, as `time.perf_counter` tells it.
        began: When the model began, as `time.perf_counter` tells it; None before.
        inference_s: How many seconds the model took; 0 before it is done.
        items: How many items it was given.
        good: One of them, of which it made an embedding.
    """

    def __init__(
        self, embed: Callable[[Any], NDArray[np.float32]], take: Callable[[], Sequence[Given]]
    ) -> None:
        self._embed = embed
        self._take = take
        self.started = 0.0
        self.began: float | None = None
        self.inference_s = 0.0
        self.items = 0
        self.good: Item | None = None

    def __call__(self) -> list[Outcome]:
        """Returns the outcomes in the order of the items."""
        given = self._take()
        started = self.started = time.perf_counter()
        items: list[Item | Exception] = []
        times = [started]
        for one in given:
            items.append(_prepared(one))
            times.append(time.perf_counter())
        embeddings = iter(self._run([item for item in items if isinstance(item, np.ndarray)]))
        preparing_s = times[-1] - started
        return [
            Outcome(
                embedding=item if isinstance(item, Exception) else next(embeddings),
                prepare_after_s=began - started,
                prepare_s=ended - began,
                others_s=preparing_s - (ended - began),
                inference_s=self.inference_s,
            )
            for item, began, ended in zip(items, times[:-1], times[1:], strict=True)
        ]

    def _run(self, items: list[Item]) -> list[Embedding | Exception]:
        if not items:
            return []
        self.began = time.perf_counter()
        embeddings = self._embed(items)
        self.inference_s = time.perf_counter() - self.began
        self.items = len(items)
        # Looked at here, because numpy lets go of the interpreter's lock for arrays of this size,
        # and on the event loop every such pause costs a wait behind the other threads.
        finite = np.isfinite(embeddings.sum(axis=1))  # one odd number spoils the sum
        self.good = next((one for one, good in zip(items, finite, strict=True) if good), None)
        # A picture can overflow a half-precision model; its neighbours are none the worse for it.
        return [
            row if good else InferenceError("The model returned no numbers for this item.")
            for row, good in zip(embeddings, finite, strict=True)
        ]


def _prepared(given: Given) -> Item | Exception:
    if isinstance(given, np.ndarray):
        return given
    try:
        return given()
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to this item's caller
        return error


class Watch:
    """Has calls of the engine made, and tells its health of those that do not return.

    Args:
        health: Whom to tell.
        pace: How long is too long.
    """

    def __init__(self, health: Health, pace: Pace) -> None:
        self._health = health
        self._pace = pace

    async def over(
        self,
        threads: LaneThreads,
        call: Callable[[], T],
        *,
        began: Callable[[], float | None],
    ) -> Ran[T]:
        """Makes a call on one of the threads.

        Args:
            threads: The threads.
            call: The call.
            began: Tells when the model began, on the clock of `time.perf_counter`, or None while
                it has not.
        """
        loop = asyncio.get_running_loop()
        limit_s = self._pace.limit_s
        hung = False
        timer: asyncio.TimerHandle

        # Is given itself: a function that knew itself would keep all that was run, by way of
        # `began`, until the collector comes.
        def look(again: Callable[..., None]) -> None:
            nonlocal timer, hung
            since = began()
            left_s = limit_s if since is None else since + limit_s - time.perf_counter()
            if left_s > 0:
                timer = loop.call_later(left_s, again, again)
            else:
                hung = True
                self._health.hung(limit_s)

        timer = loop.call_later(limit_s, look, look)
        try:
            return await threads.run(call, abandon=True)
        finally:
            timer.cancel()
            if hung:
                self._health.returned()
