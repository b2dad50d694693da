"""The way of a picture (or a text) through the server, and nothing about how it got there.

    admission ▶ decode threads ▶ batcher ▶ the engine's thread

One `Pipeline` serves both kinds: they share the bound on work, the decode threads and the engine's
thread, and each has a batcher of its own. Everything here lives on one event loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from opentelemetry import trace

from inference import observation
from inference.admission import Admission
from inference.batcher import Batcher
from inference.engine import Embeddings, Engine, Pixels, TextEngine
from inference.errors import (
    EngineMemoryError,
    InferenceError,
    InvalidInputError,
    UnavailableError,
    UnsupportedError,
)
from inference.health import Health
from inference.lanes import Lane
from inference.observation import Observation
from inference.recovery import Pace, Recovery
from inference.threads import LaneThreads, Ran

Embedding = NDArray[np.float32]
In = TypeVar("In")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much the pipeline takes on.

    Attributes:
        slots: Most items between acceptance and answer.
        reserved_slots: How many of them bulk items may never take; fewer than `slots`.
        decode_threads: Threads that decode pictures and tokenise texts.
        bulk_share: Part of the work that bulk is sure of while interactive items wait too.
        failures_allowed: Runs in a row that may fail before the engine is doubted.
        watchdog_s: A run that takes longer, in seconds, counts as hung; less once it is known
            how long runs take, see `Pace`.
        grace_s: How long the engine may hang or fail, in seconds, before it is given up; None
            means for ever.
    """

    slots: int = 256
    reserved_slots: int = 64
    decode_threads: int = 2
    bulk_share: float = 0.25
    failures_allowed: int = 2
    watchdog_s: float = 60.0
    grace_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """An embedding and where its time went.

    Attributes:
        embedding: float32 [D] of unit length.
        decode_s: Seconds of decoding and resizing, or of tokenising.
        queue_s: Seconds of waiting, for a decode thread and for the engine together.
        inference_s: Seconds of the model's run over the whole batch.
        batch_size: How many items shared that run.
    """

    embedding: Embedding
    decode_s: float
    queue_s: float
    inference_s: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What waits for the engine: pixels or token ids, and the caller's span."""

    item: NDArray[Any]
    span: trace.Span


class _Path(Generic[In]):
    """One kind of input: how it is prepared, and the batcher of its tower."""

    def __init__(
        self,
        prepare: Callable[[In], NDArray[Any]] | None,
        batcher: Batcher[_Prepared, Embedding | None],
    ) -> None:
        self.prepare = prepare  # None: it comes prepared
        self.batcher = batcher


class Pipeline:
    """Embeds pictures and texts for many callers at once.

    Life: build it, run `serve` as a task, `warm_up`, then `embed` and `embed_text` from any number
    of tasks; `close` drains it, and `serve` returns. If `serve` raises, the process should end.

    Args:
        images: The image tower.
        preprocess: Encoded bytes to the tower's pixels; called on the decode threads, so it must
            be safe there. Raises `InvalidInputError`.
        texts: The text tower, where the model has one.
        limits: How much to take on.
        on_health: Called on the event loop with the new state and its reason whenever `healthy`
            flips: when the engine fails on what it could do before, when a run hangs, when a loop
            breaks, and when a run succeeds again.
    """

    def __init__(
        self,
        *,
        images: Engine,
        preprocess: Callable[[bytes], Pixels],
        texts: TextEngine | None = None,
        limits: Limits,
        on_health: Callable[[bool, str], None] | None = None,
    ) -> None:
        self._limits = limits
        self._engines: list[Engine | TextEngine] = [images]
        self._on_health = on_health
        self._health = Health(self._flipped, failures_allowed=limits.failures_allowed)
        self._admission = Admission(
            limits.slots, reserved=limits.reserved_slots, bulk_share=limits.bulk_share
        )
        self._decoders = LaneThreads(
            limits.decode_threads, name="decode", bulk_share=limits.bulk_share
        )
        self._engine_thread = LaneThreads(1, name="engine")
        # Held for every run of either tower: a batch is chosen when the thread is really free.
        self._turn = asyncio.Lock()
        self._images = self._path("image", preprocess, images)
        self._pixels: _Path[Pixels] = _Path(None, self._images.batcher)
        self._texts: _Path[str] | None = None
        if texts is not None:
            self._engines.append(texts)
            self._texts = self._path("text", texts.tokenise, texts)
        self._pace = Pace(
            most_s=limits.watchdog_s, max_batch=max(engine.max_batch for engine in self._engines)
        )
        # What the engine is tried with in doubt: the first item that it embedded, or a warm-up.
        self._known_good: Callable[[], object] = images.warm_up
        self._knows_good = False
        self._recovery = Recovery(
            self._health, turn=self._turn, probe=self._probe, grace_s=limits.grace_s
        )
        self._loops: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def healthy(self) -> bool:
        """Whether the engine can be trusted at present."""
        return self._health.healthy

    @property
    def inside(self) -> int:
        """How many items are between acceptance and answer."""
        return self._admission.inside

    async def embed(self, data: bytes, lane: Lane, *, wait: bool = False) -> Embedded:
        """Embeds one picture.

        Args:
            data: The encoded file.
            lane: How urgent it is.
            wait: When the server is full: wait for a slot instead of being refused.

        Raises:
            InvalidInputError: The picture is at fault.
            OverloadedError: The server is full (never with `wait`).
            ShuttingDownError: The server is draining.
            UnavailableError: The engine hangs, or fails on everything.
            InferenceError: The model failed.
        """
        return await self._embed(self._images, data, lane, wait=wait)

    async def embed_text(self, text: str, lane: Lane, *, wait: bool = False) -> Embedded:
        """Embeds one text; like `embed`.

        Raises:
            UnsupportedError: The model has no text tower.
        """
        return await self._embed(self._text_path(), text, lane, wait=wait)

    async def embed_all(
        self,
        items: Sequence[bytes] | Sequence[Pixels] | Sequence[str],
        lane: Lane,
        *,
        name: str,
        wait: bool = False,
    ) -> list[Embedded]:
        """Embeds a batch: all of it or, at the first failure, nothing.

        Args:
            items: Encoded pictures, pixels uint8 [S, S, 3] of the tower's size (which need no
                decoding), or texts; all of one kind, at least one, at most as many as bulk has
                slots.
            lane: How urgent they are.
            name: What to call them: an error about the fourth then begins with `NAME[3]: `.
            wait: When the server is full: wait for slots, one by one, instead of being refused.

        Raises:
            EmbeddingError: As `embed` and `embed_text` raise it.
        """
        path = self._path_of(items[0])
        if wait:
            tasks = [
                asyncio.create_task(self._embed(path, item, lane, wait=True)) for item in items
            ]
        else:
            try:
                self._check_health()
                self._admission.try_enter(lane, len(items))
            except BaseException as error:
                for _ in items:
                    observation.rejected(error)
                raise
            tasks = [asyncio.create_task(self._admitted(path, item, lane)) for item in items]
            for task in tasks:  # a task that is cancelled before it starts has no `finally`
                task.add_done_callback(lambda _: self._admission.leave(lane))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for number, task in enumerate(tasks):
                if task.done() and not task.cancelled():
                    _raise_named(task.exception(), f"{name}[{number}]")
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def warm_up(self) -> None:
        """Runs the towers on the engine's thread until they are at full speed.

        Raises:
            StartupError: A tower's output is not what the manifest promises.
        """
        for engine in self._engines:
            async with self._turn:
                await self._engine_thread.run(engine.warm_up, abandon=True)

    async def serve(self) -> None:
        """Runs the batching loops until `close`; run it as a task.

        Raises:
            ExceptionGroup: Of `EngineLostError`, or a loop broke, which is a bug: the process
                cannot serve any more.
        """
        try:
            async with asyncio.TaskGroup() as loops:
                self._loops = [loops.create_task(path.batcher.serve()) for path in self._paths()]
                if not self._closed:
                    self._loops.append(loops.create_task(self._recovery.attend()))
        except* Exception as errors:
            self._health.broke(errors.exceptions[0])
            raise

    async def close(self, *, grace_s: float) -> None:
        """Refuses new items, waits for the accepted ones, then stops the threads.

        Items that are not answered within `grace_s` seconds get `ShuttingDownError`. Safe to call
        more than once.
        """
        self._closed = True
        self._admission.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._admission.empty()
        for path in self._paths():
            path.batcher.close()
        self._decoders.stop()
        # Nobody waits any more, or the grace is over; a run that hangs must hold up neither.
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops)
        self._engine_thread.stop()

    async def _embed(self, path: _Path[In], data: In, lane: Lane, *, wait: bool) -> Embedded:
        try:
            self._check_health()
            if wait:
                await self._admission.enter(lane)
            else:
                self._admission.try_enter(lane)
        except BaseException as error:
            observation.rejected(error)
            raise
        try:
            return await self._admitted(path, data, lane)
        finally:
            self._admission.leave(lane)

    async def _admitted(self, path: _Path[In], data: In, lane: Lane) -> Embedded:
        """Embeds one item that holds a slot."""
        observed = Observation(lane)
        decoded: Ran[NDArray[Any]]
        try:
            if path.prepare is None:
                decoded = Ran(value=np.asarray(data), waited_s=0.0, ran_s=0.0)
            else:
                decoded = await self._decoders.run(partial(path.prepare, data), lane)
            observed.decoded(decoded)
            self._check_health()  # nobody shall begin to wait for a run that hangs
            batched = await path.batcher.submit(_Prepared(decoded.value, observed.span), lane)
            embedding = _numbers(batched.value)
            observed.embedded(batched)
        except BaseException as error:
            observed.failed(error)
            raise
        finally:
            observed.left()
        return Embedded(
            embedding=embedding,
            decode_s=decoded.ran_s,
            queue_s=decoded.waited_s + batched.queue_s,
            inference_s=batched.run_s,
            batch_size=batched.batch_size,
        )

    def _path(
        self, kind: str, prepare: Callable[[In], NDArray[Any]], engine: Engine | TextEngine
    ) -> _Path[In]:
        batcher: Batcher[_Prepared, Embedding | None] = Batcher(
            partial(self._run, kind, engine.embed),
            max_batch=engine.max_batch,
            bulk_share=self._limits.bulk_share,
            turn=self._turn,
        )
        return _Path(prepare, batcher)

    async def _run(
        self, kind: str, embed: Callable[[Any], Embeddings], batch: Sequence[_Prepared]
    ) -> Sequence[Embedding | None]:
        """Runs one batch on the engine's thread, watched."""
        items = [prepared.item for prepared in batch]
        try:
            with observation.batch(kind, [prepared.span for prepared in batch]):
                ran = await self._watched(partial(_rows, embed, items))
        except (EngineMemoryError, MemoryError) as error:
            if len(batch) == 1:  # a larger batch is split and tried again
                self._health.failed(error.__cause__ or error)
            raise
        except Exception as error:
            self._health.failed(error.__cause__ or error)
            raise
        self._health.succeeded()
        self._pace.ran(ran.ran_s, len(items))
        if not self._knows_good and ran.value[0] is not None:
            self._knows_good, self._known_good = True, partial(embed, items[:1])
        return ran.value

    async def _watched(self, call: Callable[[], T]) -> Ran[T]:
        """Makes a call on the engine's thread; the caller has the turn."""
        limit_s = self._pace.limit_s
        watchdog = asyncio.get_running_loop().call_later(limit_s, self._health.hung, limit_s)
        try:
            return await self._engine_thread.run(call, abandon=True)
        finally:
            watchdog.cancel()

    async def _probe(self) -> None:
        """Runs the engine on what it has done before; for `Recovery`."""
        await self._watched(self._known_good)
        self._health.succeeded()

    def _check_health(self) -> None:
        if not self._health.healthy:
            raise _lost()

    def _flipped(self, healthy: bool, reason: str) -> None:  # noqa: FBT001 - the callback's shape
        if self._on_health is not None:
            self._on_health(healthy, reason)
        if not healthy:  # who waits can be answered elsewhere
            for path in self._paths():
                path.batcher.abandon(_lost())

    def _path_of(self, item: bytes | Pixels | str) -> "_Path[Any]":
        if isinstance(item, bytes):
            return self._images
        return self._text_path() if isinstance(item, str) else self._pixels

    def _text_path(self) -> _Path[str]:
        if self._texts is None:
            raise UnsupportedError("The model that is served here has no text tower.")
        return self._texts

    def _paths(self) -> "list[_Path[Any]]":
        return [self._images] if self._texts is None else [self._images, self._texts]


def _lost() -> UnavailableError:
    return UnavailableError(
        "The model does not answer at present: try again in a moment, or on another server."
    )


def _raise_named(error: BaseException | None, name: str) -> None:
    """Raises an error of one item of a batch; where the item is at fault, by its name."""
    if isinstance(error, InvalidInputError):
        raise InvalidInputError(f"{name}: {error}") from error
    if error is not None:
        raise error


def _rows(embed: Callable[[Any], Embeddings], items: Sequence[Any]) -> list[Embedding | None]:
    """Runs a batch; None stands for a row that holds no numbers.

    The check is made beside the run, because numpy lets go of the interpreter's lock for arrays of
    this size, and on the event loop every such pause costs a wait behind the decoding threads: a
    tenth of the throughput at 32 callers.
    """
    embeddings = embed(items)
    finite = np.isfinite(embeddings.sum(axis=1))  # one odd number spoils the sum
    return [row if good else None for row, good in zip(embeddings, finite, strict=True)]


def _numbers(row: Embedding | None) -> Embedding:
    # One picture can overflow a half-precision model; its neighbours are none the worse for it.
    if row is None:
        raise InferenceError("The model returned no numbers for this item.")
    return row
