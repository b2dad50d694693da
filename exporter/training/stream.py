"""The training pictures: an endless, numbered stream of maps, and a window that slides along it.

Item k is a pure function of k and of the source, so a run that resumes at any step rebuilds exactly
the window that it had, and no picture is ever stored. A worker process draws ahead, which keeps the
interpreter of the training process free.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from exporter.training import art, corpus, mapart

SIDE: Final = 128
"""Pixels along a stored map, whatever its wall's shape: the model squashes pictures as well."""

_CHUNK: Final = 32
_AHEAD: Final = 24
"""Chunks in flight: several steps' worth, so that a slow chunk starves nobody."""


class Maps(NamedTuple):
    """A batch of maps."""

    pixels: npt.NDArray[np.uint8]
    """Shape (n, 128, 128, 3), RGB, squashed to a square."""

    aspects: npt.NDArray[np.float32]
    """Width over height of each wall, shape (n,)."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the stream's pictures come from."""

    seed: int
    """Separates streams: training, validation."""

    corpus: Path | None = None
    """A cache of `corpus.build`, or procedural art only."""

    corpus_share: float = 0.3
    """Fraction of the pictures that come from the corpus."""

    corpus_part: tuple[float, float] = (0.0, 0.9)
    """Which part of the corpus, so that validation sees pictures that training never does."""

    sibling_share: float = 0.25
    """Fraction of odd items that are crops or recolourings of the item before: hard negatives."""


def wall(source: Source, index: int) -> npt.NDArray[np.uint8]:
    """Draw item ``index`` at full size: (128 * rows, 128 * columns, 3), map colours only."""
    rng = np.random.default_rng([source.seed, index])
    if index % 2 and rng.random() < source.sibling_share:
        # The same numbers as when the even item was drawn, hence the same picture.
        picture = _picture(source, index - 1, np.random.default_rng([source.seed, index - 1]))
        picture = _variant(rng, picture)
    else:
        picture = _picture(source, index, rng)
    return mapart.quantise(picture, *mapart.random_style(rng))


def item(source: Source, index: int) -> tuple[npt.NDArray[np.uint8], float]:
    """Draw item ``index`` squashed to (128, 128, 3), and give the wall's width over height."""
    pixels = wall(source, index)
    height, width = pixels.shape[:2]
    if (width, height) != (SIDE, SIDE):
        pixels = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX))
    return pixels, width / height


def _picture(source: Source, index: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw the picture of an item before it becomes a map, at its wall's size."""
    shape = mapart.random_shape(rng)
    size = (shape[0] * mapart.MAP_SIDE, shape[1] * mapart.MAP_SIDE)
    if source.corpus is None or rng.random() >= source.corpus_share:
        # Streams with different seeds must not share pictures: validation relies on it.
        return art.draw(source.seed * 1_000_000_007 + index, size)
    pictures = corpus.load(source.corpus)
    low, high = (round(edge * len(pictures)) for edge in source.corpus_part)
    chosen = Image.fromarray(pictures[int(rng.integers(low, high))])
    if rng.random() < 0.5:
        chosen = _crop(rng, chosen, 0.6)
    return np.asarray(chosen.resize(size, Image.Resampling.BICUBIC))


def _crop(rng: np.random.Generator, image: Image.Image, least: float) -> Image.Image:
    """Cut out a random window whose sides are at least this fraction of the picture's."""
    wide, tall = (side * rng.uniform(least, 1) for side in image.size)
    left, top = rng.uniform(0, image.width - wide), rng.uniform(0, image.height - tall)
    return image.resize(image.size, Image.Resampling.BICUBIC, (left, top, left + wide, top + tall))


def _variant(rng: np.random.Generator, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Make a different picture that is easily mistaken for this one."""
    kind = int(rng.integers(4))
    if kind == 0:
        return np.ascontiguousarray(
            picture[..., [(1, 2, 0), (2, 0, 1), (0, 2, 1)][int(rng.integers(3))]]
        )
    if kind == 1:
        return 255 - picture
    if kind == 2:
        return np.ascontiguousarray(picture[:, ::-1])
    image = Image.fromarray(picture)
    wide, tall = (side * rng.uniform(0.45, 0.7) for side in image.size)
    left, top = rng.uniform(0, image.width - wide), rng.uniform(0, image.height - tall)
    box = (left, top, left + wide, top + tall)
    return np.asarray(image.resize(image.size, Image.Resampling.BICUBIC, box))


def draw_items(source: Source, indices: Sequence[int]) -> Maps:
    """Draw several items."""
    drawn = [item(source, index) for index in indices]
    pixels = np.stack([picture for picture, _ in drawn])
    return Maps(pixels, np.array([aspect for _, aspect in drawn], np.float32))


def _be_nice() -> None:
    """Let the training process have the cores first."""
    os.nice(5)


class Window:
    """The items ``[refresh * step, refresh * step + size)`` of a stream, kept in memory.

    Args:
        source: The stream.
        size: Items in the window; even.
        refresh: New items a step; even. Every picture is seen about ``batch / refresh`` times.
        step: Where to start, for a run that resumes.
        workers: Drawing processes; 0 draws in this process.
    """

    def __init__(
        self, source: Source, size: int, refresh: int, *, step: int = 0, workers: int = 1
    ) -> None:
        if size % 2 or refresh % 2:
            raise ValueError("The window's size and refresh must be even: siblings stay together.")
        self._source = source
        self._size = size
        self._refresh = refresh
        # Divides both, so that chunks end exactly where windows end and never overwrite an item
        # that is still in use.
        self._chunk = math.gcd(size, refresh, _CHUNK)
        self._ahead: deque[Future[Maps]] = deque()
        self._executor = None
        if workers:
            # spawn: forking a process that runs torch's threads can deadlock.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(workers, context, initializer=_be_nice)
        self._start = step * refresh
        self._requested = self._start
        self._received = self._start
        self._pixels = np.zeros((size, SIDE, SIDE, 3), np.uint8)
        self._aspects = np.ones(size, np.float32)
        self._receive_until(self._start + size)

    def advance(self) -> None:
        """Move on by one step, waiting for the new items if they are not drawn yet."""
        self._start += self._refresh
        self._receive_until(self._start + self._size)

    def sample(self, rng: np.random.Generator, count: int) -> Maps:
        """Pick ``count`` distinct items (even), each even item with the odd one that follows."""
        pairs = rng.choice(self._size // 2, count // 2, replace=False) * 2 + self._start
        slots = np.stack([pairs, pairs + 1], axis=1).reshape(-1) % self._size
        return Maps(self._pixels[slots], self._aspects[slots])

    def close(self) -> None:
        """Stop the workers and drop what they were drawing."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _receive_until(self, end: int) -> None:
        """Fill the ring up to item ``end``, keeping the workers ahead of it."""
        while self._received < end:
            self._request()
            maps = self._ahead.popleft().result()
            slots = (self._received + np.arange(len(maps.pixels))) % self._size
            self._pixels[slots] = maps.pixels
            self._aspects[slots] = maps.aspects
            self._received += len(maps.pixels)

    def _request(self) -> None:
        """Ask for chunks until enough are in flight."""
        while len(self._ahead) < (_AHEAD if self._executor else 1):
            indices = range(self._requested, self._requested + self._chunk)
            self._requested += self._chunk
            if self._executor is None:
                done: Future[Maps] = Future()
                done.set_result(draw_items(self._source, indices))
                self._ahead.append(done)
            else:
                self._ahead.append(self._executor.submit(draw_items, self._source, indices))
