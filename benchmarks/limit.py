"""What the machine can do at most: the same decoding and the same model, with no server.

Two things are measured. The throughput of the best pipeline that can be built from the server's
own parts: threads that decode, and full batches for the model, overlapped, in turns, or each core
with pictures of its own, whichever is fastest here. And the time of one picture alone: decode it,
run the model on it.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import Provider
from inference.artifact import Artifact
from inference.cores import usable_cores
from inference.engine import Engine, EngineOptions, load_image_engine
from inference.preprocess import Preprocessor

Pixels = NDArray[np.uint8]

BATCHES = (1, 2, 4, 8, 16, 32)

# The best few are tried again, so many times in turns.
_FINALISTS = 4
_FINAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way to arrange the work.

    Attributes:
        order: "overlapped" decodes the next batch while the model runs, "in turns" does not; with
            "each core" every core decodes a batch and runs it on one thread, for itself.
        decode_threads: Threads that decode.
        engine_threads: Threads of one run.
        batch: Pictures in one run.
    """

    order: Literal["overlapped", "in turns", "each core"]
    decode_threads: int
    engine_threads: int
    batch: int

    def __str__(self) -> str:
        if self.order == "each core":
            return f"{self.decode_threads} cores, each decodes and runs batches of {self.batch}"
        return (
            f"{self.decode_threads} decoding threads {self.order} with "
            f"batches of {self.batch} on {self.engine_threads} threads"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a recipe was.

    Attributes:
        images: Pictures embedded.
        seconds: In which time.
        cpu_s: CPU time of the process for them.
    """

    images: int
    seconds: float
    cpu_s: float

    @property
    def throughput(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def cpu_ms_per_image(self) -> float:
        """CPU time for one picture, in milliseconds."""
        return self.cpu_s / self.images * 1000 if self.images else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Single:
    """One picture after another, alone.

    Attributes:
        decode_s: Seconds of each decode.
        run_s: Seconds of each run of the model.
        total_s: Seconds of both.
    """

    decode_s: Sequence[float]
    run_s: Sequence[float]
    total_s: Sequence[float]


class Limit:
    """Measures without a server; find the best arrangement with `search` first.

    Args:
        artifact: The model.
        pictures: Encoded pictures, taken round and round.
        max_image_bytes: As the server's.
        max_image_pixels: As the server's.
        provider: As the server's.
    """

    def __init__(
        self,
        artifact: Artifact,
        pictures: Sequence[bytes],
        *,
        max_image_bytes: int,
        max_image_pixels: int,
        provider: Provider = "auto",
    ) -> None:
        self._artifact = artifact
        self._pictures = pictures
        self._decode: Callable[[bytes], Pixels] = Preprocessor(
            artifact.manifest.preprocessing,
            max_image_bytes=max_image_bytes,
            max_image_pixels=max_image_pixels,
        )
        self._options = EngineOptions(provider=provider, max_batch=max(BATCHES))
        self._engines: dict[tuple[int, int], Engine] = {}

    def candidates(self) -> list[Recipe]:
        """The arrangements that are worth a try on this machine."""
        cores = usable_cores()
        threads = sorted({1, max(1, cores // 2), cores})
        overlapped = [
            Recipe(order="overlapped", decode_threads=decode, engine_threads=engine, batch=batch)
            for decode, engine, batch in itertools.product(threads, threads, BATCHES)
        ]
        # Taking turns, anything less than all cores leaves some idle.
        in_turns = [
            Recipe(order="in turns", decode_threads=cores, engine_threads=cores, batch=batch)
            for batch in BATCHES
        ]
        each_core = [
            Recipe(order="each core", decode_threads=cores, engine_threads=1, batch=batch)
            for batch in BATCHES
        ]
        return [*overlapped, *in_turns, *each_core]

    def search(
        self, seconds: float, *, on_try: Callable[[Recipe, float], None] | None = None
    ) -> Recipe:
        """Finds the fastest arrangement: all of them once, then the best few again, in turns.

        Each is judged by its best try: what else the machine does only ever slows one down.

        Args:
            seconds: How long each try takes.
            on_try: Told before each try what is tried and for how long, in seconds.
        """
        paces: dict[Recipe, float] = {}

        def fastest(recipes: Sequence[Recipe]) -> list[Recipe]:
            for recipe in recipes:
                if on_try is not None:
                    on_try(recipe, seconds)
                pace = self.throughput(recipe, seconds).throughput
                paces[recipe] = max(pace, paces.get(recipe, 0.0))
            return sorted(recipes, key=lambda recipe: -paces[recipe])

        good = fastest(self.candidates())[:_FINALISTS]
        best = fastest(good * _FINAL)[0]
        kept = {best.engine_threads, usable_cores()}
        self._engines = {key: engine for key, engine in self._engines.items() if key[0] in kept}
        return best

    def search_seconds(self, seconds: float) -> float:
        """How long `search` measures."""
        return seconds * (len(self.candidates()) + _FINAL * _FINALISTS)

    def throughput(self, recipe: Recipe, seconds: float) -> Pace:
        """Runs an arrangement for a while, filled pipeline at both ends."""
        if recipe.order == "each core":
            return self._on_each_core(recipe, seconds)
        engine = self._engine(recipe.engine_threads)
        if recipe.order == "overlapped":
            return self._overlapped(engine, recipe, seconds)
        return self._in_turns(engine, recipe, seconds)

    def single(self, seconds: float) -> Single:
        """Embeds one picture at a time, on all cores, for a while (at least once)."""
        engine = self._engine(usable_cores())
        decode_s, run_s, total_s = [], [], []
        end = time.perf_counter() + seconds
        for data in itertools.cycle(self._pictures):
            started = time.perf_counter()
            pixels = self._decode(data)
            decoded = time.perf_counter()
            engine.embed([pixels])
            ended = time.perf_counter()
            decode_s.append(decoded - started)
            run_s.append(ended - decoded)
            total_s.append(ended - started)
            if ended >= end:
                break
        return Single(decode_s=decode_s, run_s=run_s, total_s=total_s)

    def _engine(self, threads: int, number: int = 0) -> Engine:
        key = threads, number
        if key not in self._engines:
            engine = load_image_engine(self._artifact, replace(self._options, threads=threads))
            engine.warm_up()
            self._engines[key] = engine
        return self._engines[key]

    def _overlapped(self, engine: Engine, recipe: Recipe, seconds: float) -> Pace:
        # Room for the next batch while one runs.
        decoded: queue.Queue[Pixels] = queue.Queue(maxsize=2 * recipe.batch)
        stop = threading.Event()
        numbers = itertools.count()  # next() on it is atomic

        def decode() -> None:
            while not stop.is_set():
                decoded.put(self._decode(self._pictures[next(numbers) % len(self._pictures)]))

        threads = [
            threading.Thread(target=decode, daemon=True) for _ in range(recipe.decode_threads)
        ]
        for thread in threads:
            thread.start()
        try:
            return _pace(
                lambda: len(engine.embed([decoded.get() for _ in range(recipe.batch)])),
                seconds,
            )
        finally:
            stop.set()
            # A thread may wait for room.
            while any(thread.is_alive() for thread in threads):
                with suppress(queue.Empty):
                    decoded.get(timeout=0.01)

    def _in_turns(self, engine: Engine, recipe: Recipe, seconds: float) -> Pace:
        pictures = itertools.cycle(self._pictures)
        with ThreadPoolExecutor(recipe.decode_threads) as pool:

            def turn() -> int:
                batch = [next(pictures) for _ in range(recipe.batch)]
                return len(engine.embed(list(pool.map(self._decode, batch))))

            return _pace(turn, seconds)

    def _on_each_core(self, recipe: Recipe, seconds: float) -> Pace:
        numbers = itertools.count()  # next() on it is atomic
        embedded: queue.SimpleQueue[int] = queue.SimpleQueue()
        stop = threading.Event()

        def work(engine: Engine) -> None:
            while not stop.is_set():
                batch = [
                    self._decode(self._pictures[next(numbers) % len(self._pictures)])
                    for _ in range(recipe.batch)
                ]
                embedded.put(len(engine.embed(batch)))

        # Loaded before any runs.
        engines = [self._engine(1, number) for number in range(recipe.decode_threads)]
        with ThreadPoolExecutor(len(engines)) as pool:
            for engine in engines:
                pool.submit(work, engine)
            try:
                return _pace(embedded.get, seconds)
            finally:
                stop.set()


def _pace(step: Callable[[], int], seconds: float) -> Pace:
    """Repeats a step that embeds some pictures; the first one only fills the pipeline."""
    step()
    images = 0
    cpu = time.process_time()
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        images += step()
    return Pace(images=images, seconds=elapsed, cpu_s=time.process_time() - cpu)
