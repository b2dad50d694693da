"""What the machine can do at most: the same decoding and the same model, with no server.

Two things are measured. The throughput of the best pipeline that can be built from the server's
own parts: threads that decode, and full batches for the model, overlapped or in turns, whichever is
faster here. And the time of one picture alone: decode it, run the model on it.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import Provider
from inference.artifact import Artifact
from inference.engine import Engine, EngineOptions, load_image_engine
from inference.preprocess import Preprocessor
from inference.providers import usable_cores

Pixels = NDArray[np.uint8]

BATCHES = (1, 2, 4, 8, 16, 32)

# The best few are tried again, this many times as long.
_FINALISTS = 4
_FINAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way to arrange the work.

    Attributes:
        overlap: Decode the next batch while the model runs; otherwise take turns.
        decode_threads: Threads that decode.
        engine_threads: Threads of one run.
        batch: Pictures in one run.
    """

    overlap: bool
    decode_threads: int
    engine_threads: int
    batch: int

    def __str__(self) -> str:
        order = "overlapped with" if self.overlap else "in turns with"
        return (
            f"{self.decode_threads} decoding threads {order} "
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
        self._engines: dict[int, Engine] = {}

    def candidates(self) -> list[Recipe]:
        """The arrangements that are worth a try on this machine."""
        cores = usable_cores()
        threads = sorted({1, max(1, cores // 2), cores})
        recipes = [
            Recipe(overlap=overlap, decode_threads=decode, engine_threads=engine, batch=batch)
            for overlap, decode, engine, batch in itertools.product(
                (True, False), threads, threads, BATCHES
            )
        ]
        # Taking turns, anything less than all cores leaves some idle.
        return [
            recipe
            for recipe in recipes
            if recipe.overlap or recipe.decode_threads == recipe.engine_threads == cores
        ]

    def search(
        self, seconds: float, *, on_try: Callable[[Recipe, float], None] | None = None
    ) -> Recipe:
        """Finds the fastest arrangement: all of them once, then the best few again and longer.

        Args:
            seconds: How long each one is tried at first.
            on_try: Told before each try what is tried and for how long, in seconds.
        """

        def fastest(recipes: Sequence[Recipe], each_s: float) -> list[Recipe]:
            paces: dict[Recipe, float] = {}
            for recipe in recipes:
                if on_try is not None:
                    on_try(recipe, each_s)
                paces[recipe] = self.throughput(recipe, each_s).throughput
            return sorted(recipes, key=lambda recipe: -paces[recipe])

        good = fastest(self.candidates(), seconds)[:_FINALISTS]
        best = fastest(good, _FINAL * seconds)[0]
        kept = {best.engine_threads, usable_cores()}
        self._engines = {count: engine for count, engine in self._engines.items() if count in kept}
        return best

    def search_seconds(self, seconds: float) -> float:
        """How long `search` measures."""
        return seconds * (len(self.candidates()) + _FINAL * _FINALISTS)

    def throughput(self, recipe: Recipe, seconds: float) -> Pace:
        """Runs an arrangement for a while, filled pipeline at both ends."""
        engine = self._engine(recipe.engine_threads)
        if recipe.overlap:
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

    def _engine(self, threads: int) -> Engine:
        if threads not in self._engines:
            engine = load_image_engine(self._artifact, replace(self._options, threads=threads))
            engine.warm_up()
            self._engines[threads] = engine
        return self._engines[threads]

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


def _pace(step: Callable[[], int], seconds: float) -> Pace:
    """Repeats a step that embeds some pictures; the first one only fills the pipeline."""
    step()
    images = 0
    cpu = time.process_time()
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        images += step()
    return Pace(images=images, seconds=elapsed, cpu_s=time.process_time() - cpu)
