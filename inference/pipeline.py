"""The way of a picture (or a text) through the server, and nothing about how it got there.

    admission ▶ decode threads ▶ batcher ▶ the engine's thread

is the way where one run takes the whole device: a GPU, or a large model on the CPU. A small model
on the CPU, of which each core can run a batch of its own, is reached by

    admission ▶ a batcher for each lane ▶ threads that decode and run, as many as cores

without a hand-over between two threads that want the same core. The threads of the bulk lane are
nicer than those of the interactive one, so the system lets interactive work pass at any moment.

One `Pipeline` serves pictures and texts: they share the bound on work and the threads, and each
has batchers of its own. Everything here lives on one event loop.
"""

import asyncio
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from opentelemetry import trace

from inference import heap, observation
from inference.admission import Admission
from inference.batcher import Batcher
from inference.engine import Embeddings, Engine, Pixels, TextEngine
from inference.errors import (
    EmbeddingError,
    EngineMemoryError,
    InvalidInputError,
    UnavailableError,
    UnsupportedError,
)
from inference.fields import Buffer
from inference.health import Health
from inference.lanes import Lane
from inference.observation import Observation
from inference.recovery import Pace, Recovery
from inference.runs import Embedding, Given, Outcome, Run, Watch
from inference.threads import LaneThreads

# At this, the kernel gives a thread a quarter of a core for which another thread competes, which
# is the share that bulk is sure of everywhere else, too.
_BULK_NICE = 5

# Giving memory back holds up whoever needs some for 10 ms: a fast server does it no more often.
_TIDY_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much the pipeline takes on.

    Attributes:
        slots: Most items between acceptance and answer.
        reserved_slots: How many of them bulk items may never take; fewer than `slots`.
        decode_threads: Threads that decode pictures and tokenise texts, where that is not done
            on the cores that run the model.
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
class _Waiting:
    """What waits for a run: an item or how to make it, and the caller's span."""

    given: Given
    span: trace.Span


_Path = dict[Lane, Batcher[_Waiting, Outcome]]
"""One kind of input: the batchers of its tower; one for both lanes where a run serves both."""


class _Way(NamedTuple):
    """Where an item goes, what waits there, and how long it is."""

    path: _Path
    given: Given
    size_bytes: int


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
        preprocess: Callable[[Buffer], Pixels],
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
        self._decoders: LaneThreads | None = None
        if images.cores is None:
            self._decoders = LaneThreads(
                limits.decode_threads, name="decode", bulk_share=limits.bulk_share
            )
            self._at_once = 1
            self._threads = dict.fromkeys(Lane, LaneThreads(1, name="engine"))
        else:
            self._at_once = images.cores.count
            self._threads = {
                Lane.INTERACTIVE: LaneThreads(self._at_once, name="core", stay=True),
                Lane.BULK: LaneThreads(self._at_once, name="bulk", nice=_BULK_NICE, stay=True),
            }
        self._prepare_image = preprocess
        self._images = self._path("image", images)
        self._prepare_text: Callable[[str], Any] | None = None
        self._texts: _Path | None = None
        if texts is not None:
            self._engines.append(texts)
            self._prepare_text = texts.tokenise
            self._texts = self._path("text", texts)
        self._pace = Pace(
            most_s=limits.watchdog_s, max_batch=max(engine.max_batch for engine in self._engines)
        )
        self._watch = Watch(self._health, self._pace)
        # What the engine is tried with in doubt: the first item that it embedded, or a warm-up.
        self._known_good: Callable[[], object] = images.warm_up
        self._knows_good = False
        self._recovery = Recovery(self._health, probe=self._probe, grace_s=limits.grace_s)
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

    async def embed(self, data: Buffer, lane: Lane, *, wait: bool = False) -> Embedded:
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
        return await self._embed(self._way_of(data), lane, wait=wait)

    async def embed_text(self, text: str, lane: Lane, *, wait: bool = False) -> Embedded:
        """Embeds one text; like `embed`.

        Raises:
            UnsupportedError: The model has no text tower.
        """
        return await self._embed(self._way_of(text), lane, wait=wait)

    async def embed_all(
        self,
        items: Sequence[Buffer] | Sequence[Pixels] | Sequence[str],
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
        ways = [self._way_of(item) for item in items]
        if wait:
            tasks = [asyncio.create_task(self._embed(way, lane, wait=True)) for way in ways]
        else:
            try:
                self._check_health()
                self._admission.try_enter(lane, len(items))
            except BaseException as error:
                for _ in items:
                    observation.rejected(error)
                raise
            tasks = [asyncio.create_task(self._admitted(way, lane)) for way in ways]
            for task, way in zip(tasks, ways, strict=True):
                # A task that is cancelled before it starts has no `finally`.
                task.add_done_callback(partial(self._leave, way, lane))
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
            del task, tasks  # an error that is raised holds this frame: not the frame the error

    async def warm_up(self) -> None:
        """Runs the towers on one of their threads until they are at full speed.

        Raises:
            StartupError: A tower's output is not what the manifest promises.
        """
        for engine in self._engines:
            await self._threads[Lane.INTERACTIVE].run(engine.warm_up, abandon=True)

    async def serve(self) -> None:
        """Runs the batching loops until `close`; run it as a task.

        Raises:
            ExceptionGroup: Of `EngineLostError`, or a loop broke, which is a bug: the process
                cannot serve any more.
        """
        try:
            async with asyncio.TaskGroup() as loops:
                self._loops = [
                    loops.create_task(batcher.serve())
                    for batcher in self._batchers()
                    for _ in range(self._at_once + 1)
                ]
                if not self._closed:
                    self._loops.append(loops.create_task(self._recovery.attend()))
                    self._loops.append(loops.create_task(self._tidy()))
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
        for batcher in self._batchers():
            batcher.close()
        if self._decoders is not None:
            self._decoders.stop()
        # Nobody waits any more, or the grace is over; a run that hangs must hold up neither.
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops)
        for threads in self._threads.values():
            threads.stop()

    async def _embed(self, way: _Way, lane: Lane, *, wait: bool) -> Embedded:
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
            return await self._admitted(way, lane)
        finally:
            self._leave(way, lane)

    def _leave(self, way: _Way, lane: Lane, _: object = None) -> None:
        self._admission.leave(lane, way.size_bytes)

    async def _admitted(self, way: _Way, lane: Lane) -> Embedded:
        """Embeds one item that holds a slot."""
        path, given, _ = way
        decode_s = queue_s = 0.0
        early = self._decoders if callable(given) else None
        observed = Observation(lane, "queue" if early is None else "decode")
        try:
            if early is not None and callable(given):
                decoded = await early.run(given, lane)
                given, decode_s, queue_s = decoded.value, decoded.ran_s, decoded.waited_s
                observed.entered("queue")
                observed.decoded(observed.since - decode_s, decode_s, waited_s=queue_s)
            self._check_health()  # nobody shall begin to wait for a run that hangs
            batched = await path[lane].submit(_Waiting(given, observed.span), lane)
            outcome, taken = batched.value, observed.since + batched.queue_s
            observed.waited(observed.since, batched.queue_s, batched.batch_size)
            if callable(given):
                observed.entered("decode", since=taken + outcome.prepare_after_s)
            if isinstance(outcome.embedding, Exception):
                try:
                    raise outcome.embedding  # observed like what is raised elsewhere
                finally:
                    del outcome, batched  # the error holds this frame: not the frame the error
            if callable(given):
                decode_s = outcome.prepare_s
                observed.decoded(observed.since, decode_s)
            queue_s += batched.queue_s + outcome.others_s
            observed.embedded(queue_s=queue_s, inference_s=outcome.inference_s)
        except BaseException as error:
            observed.failed(error)
            _forget_frames(error)
            raise
        finally:
            observed.left()
        return Embedded(
            embedding=outcome.embedding,
            decode_s=decode_s,
            queue_s=queue_s,
            inference_s=outcome.inference_s,
            batch_size=batched.batch_size,
        )

    def _path(self, kind: str, engine: Engine | TextEngine) -> _Path:
        made: dict[LaneThreads, Batcher[_Waiting, Outcome]] = {}
        for threads in self._threads.values():
            if threads not in made:
                made[threads] = Batcher(
                    partial(self._run, kind, threads, self._embedder(engine)),
                    max_batch=engine.max_batch,
                    bulk_share=self._limits.bulk_share,
                    at_once=self._at_once,
                )
        return {lane: made[threads] for lane, threads in self._threads.items()}

    def _embedder(self, engine: Engine | TextEngine) -> Callable[[Any], Embeddings]:
        cores = engine.cores
        if cores is None:
            return engine.embed

        def embed(items: Sequence[Any]) -> Embeddings:
            # A run that is alone may have all cores, and is over sooner.
            alone = sum(threads.busy for threads in self._threads.values()) == 1
            return engine.embed(items) if alone else cores.embed(items)

        return embed

    async def _run(
        self,
        kind: str,
        threads: LaneThreads,
        embed: Callable[[Any], Embeddings],
        take: Callable[[], Sequence[_Waiting]],
    ) -> Sequence[Outcome]:
        """Runs one batch on one of the threads, watched; it is taken there."""
        batch: list[_Waiting] = []

        def given() -> list[Given]:
            batch.extend(take())
            return [waiting.given for waiting in batch]

        run = Run(embed, given)
        failure: Exception | None = None
        try:
            ran = await self._watch.over(threads, run, began=lambda: run.began)
        except Exception as error:
            failure = error
            # A larger batch for which there is no memory is split and tried again.
            if len(batch) == 1 or not isinstance(error, EngineMemoryError | MemoryError):
                self._health.failed(error.__cause__ or error)
            raise
        finally:
            if batch:
                spans = [waiting.span for waiting in batch]
                observation.batch(kind, spans, began=run.started, error=failure)
        if run.items:
            self._health.succeeded()
            self._pace.ran(run.inference_s, run.items)
        if not self._knows_good and run.good is not None:
            self._knows_good, self._known_good = True, partial(embed, [run.good])
        return ran.value

    async def _probe(self) -> None:
        """Runs the engine on what it has done before; for `Recovery`."""
        began: float | None = None

        def probe() -> None:
            nonlocal began
            began = time.perf_counter()
            self._known_good()

        await self._watch.over(self._threads[Lane.INTERACTIVE], probe, began=lambda: began)
        self._health.succeeded()

    async def _tidy(self) -> None:
        """Gives back memory that is free: pictures of all lengths leave holes of all lengths."""
        while True:
            await self._admission.many_passed()
            await asyncio.to_thread(heap.give_back_free_pieces)
            await asyncio.sleep(_TIDY_PAUSE_S)

    def _check_health(self) -> None:
        if not self._health.healthy:
            raise _lost()

    def _flipped(self, healthy: bool, reason: str) -> None:  # noqa: FBT001 - the callback's shape
        if self._on_health is not None:
            self._on_health(healthy, reason)
        if not healthy:  # who waits can be answered elsewhere
            for batcher in self._batchers():
                batcher.abandon(_lost())

    def _way_of(self, item: Buffer | Pixels | str) -> _Way:
        if isinstance(item, bytes | memoryview):
            return _Way(self._images, partial(self._prepare_image, item), len(item))
        if isinstance(item, np.ndarray):
            return _Way(self._images, item, item.nbytes)
        if self._texts is None or self._prepare_text is None:
            raise UnsupportedError("The model that is served here has no text tower.")
        return _Way(self._texts, partial(self._prepare_text, item), len(item))

    def _batchers(self) -> set[Batcher[_Waiting, Outcome]]:
        paths = [self._images] if self._texts is None else [self._images, self._texts]
        return {batcher for path in paths for batcher in path.values()}


def _forget_frames(error: BaseException) -> None:
    """Lets an error, and what caused it, let go of the frames through which it came.

    They hold the item, and its whole batch, and the error itself: all would stay until the
    collector looks at what is old, which a burst of large pictures does not make it do. Of what is
    no error of ours, where it came from is kept as text, for the log.
    """
    if not isinstance(error, EmbeddingError | asyncio.CancelledError):
        error.add_note("".join(traceback.format_exception(error)))
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def _lost() -> UnavailableError:
    return UnavailableError(
        "The model does not answer at present: try again in a moment, or on another server."
    )


def _raise_named(error: BaseException | None, name: str) -> None:
    """Raises an error of one item of a batch; where the item is at fault, by its name."""
    try:
        if isinstance(error, InvalidInputError):
            raise InvalidInputError(f"{name}: {error}") from error
        if error is not None:
            raise error
    finally:
        del error  # it holds this frame: not the frame the error
