"""The training pictures: an endless, numbered stream of maps with views, and a window along it.

Item k is a pure function of k and of the source, so a run that resumes at any step rebuilds exactly
the window that it had, and no picture is ever stored. Worker processes draw ahead, which keeps the
interpreter of the training process free.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from exporter.training import art, corpus, mapart, views

SMALL_SIDE: Final = 16
"""Pixels along the small map that the tower's training head predicts."""

_CHUNK: Final = 16
_AHEAD: Final = 16
"""Chunks in flight: several steps' worth, so that a slow chunk starves nobody."""

_VIEWS_SEED: Final = 0x7669_6577
_DRESSING_SEED: Final = 0x626F_7264


Pixels = npt.NDArray[np.uint8]
Corners = npt.NDArray[np.float32]


class Examples(NamedTuple):
    """Maps with views of each. The first view is one as posted, the others are searched with."""

    pixels: npt.NDArray[np.uint8]
    """Shape (n, views, side, side, 3), RGB."""

    corners: npt.NDArray[np.float32]
    """Shape (n, views, 4, 2), see `views.View`."""

    small: npt.NDArray[np.uint8]
    """The maps themselves, squashed and small: (n, 16, 16, 3)."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the stream's pictures come from, and how they are seen."""

    seed: int
    """Separates streams: training, validation."""

    corpora: tuple[Path, ...] = ()
    """Caches of `corpus.build`; procedural art only where there are none."""

    corpus_share: float = 0.5
    """Fraction of the pictures that come from the corpora."""

    corpus_part: tuple[float, float] = (0.0, 0.9)
    """Which part of each corpus, so that validation sees pictures that training never does."""

    sibling_share: float = 0.25
    """Fraction of odd items that are easily mistaken for the item before: hard negatives."""

    part_share: float = 0.4
    """Fraction of the pictures of which the map shows a part, enlarged."""

    coarse_share: float = 0.15
    """Fraction of the pictures with few and large pixels."""

    border_share: float = 0.2
    """Fraction of the pictures with a painted border; siblings of such may differ inside only."""

    side: int = 192
    """Pixels along a view."""

    queries: int = 3
    """Views of each map to search with, beside the one as posted."""

    lean: float = 0.6
    """A view's hardness is u ** lean, u uniform in 0..1: below 1, more views are hard."""


def wall(source: Source, index: int) -> npt.NDArray[np.uint8]:
    """Draw item ``index`` at full size: (128 * rows, 128 * columns, 3), map colours only."""
    rng = np.random.default_rng([source.seed, index])
    sibling = bool(index % 2 and rng.random() < source.sibling_share)
    first = index - 1 if sibling else index
    # The same numbers as when the even item was drawn, hence the same shape, picture, border
    # and size of pixels.
    shared = np.random.default_rng([source.seed, first]) if sibling else rng
    dressing = np.random.default_rng([source.seed, first, _DRESSING_SEED])
    has_border = dressing.random() < source.border_share
    coarse = dressing.random() < source.coarse_share
    shape = mapart.random_shape(shared)
    # Two of a series have a border in common and nothing else.
    series = sibling and has_border and rng.random() < 0.5
    variant = sibling and not series
    # Others show another part of one picture, or the same part in other colours or mirrored.
    cut_anew = variant and rng.random() < 0.4
    picture = _picture(source, index if series else first, rng if series else shared, shape)
    cutting = rng if cut_anew or series else shared
    if cut_anew or cutting.random() < source.part_share:
        picture = np.asarray(_crop(cutting, Image.fromarray(picture), 0.3, 0.75))
    if coarse:
        picture = _coarsen(dressing, picture)
    if has_border:
        picture = _paint_border(dressing, picture)
    if variant and not cut_anew:
        picture = _recolour_or_mirror(rng, picture)
    return mapart.quantise(picture, *mapart.random_style(rng))


def _paint_border(
    rng: np.random.Generator, picture: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Paint bands around a picture, perhaps with a title: they are part of the map."""
    picture = picture.copy()
    height, width = picture.shape[:2]
    bands = int(rng.integers(1, 4))
    edges = np.sort(rng.uniform(0.01, 0.16, bands))[::-1] * min(height, width)
    # From the widest to the narrowest: each leaves what is inside of it, and none covers all.
    for number, edge in enumerate(edges):
        out = max(1, round(edge))
        colour = rng.integers(0, 256, 3)
        if number == 0:
            small = (width - 2 * out, height - 2 * out)
            inside = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
            picture[:] = colour
            picture[out:-out, out:-out] = inside
        else:
            for part in (np.s_[:out], np.s_[-out:], np.s_[:, :out], np.s_[:, -out:]):
                picture[part] = colour
    if rng.random() < 0.5:
        letters = "".join(chr(code) for code in rng.integers(65, 91, int(rng.integers(1, 7))))
        size = rng.uniform(0.3, 0.7) * min(height, width) / mapart.MAP_SIDE
        at = (int(rng.uniform(0.05, 0.6) * width), height - max(1, round(edges[0] * 0.2)))
        tone = tuple(int(level) for level in rng.integers(0, 256, 3))
        cv2.putText(picture, letters, at, cv2.FONT_HERSHEY_SIMPLEX, size, tone, 1)
    return picture


def _coarsen(rng: np.random.Generator, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Draw a picture again with large pixels, as small sprites are when they fill a map."""
    height, width = picture.shape[:2]
    pixel = min(height, width) / math.exp(rng.uniform(math.log(12), math.log(64)))
    small = (max(1, round(width / pixel)), max(1, round(height / pixel)))
    shrunk = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    coarse: Pixels = cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_NEAREST)
    return coarse


def _picture(
    source: Source, index: int, rng: np.random.Generator, shape: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Draw the picture of an item before it becomes a map, at its wall's size."""
    size = (shape[0] * mapart.MAP_SIDE, shape[1] * mapart.MAP_SIDE)
    if not source.corpora or rng.random() >= source.corpus_share:
        # Streams with different seeds must not share pictures: validation relies on it.
        return art.draw(source.seed * 1_000_000_007 + index, size)
    # Large corpora are drawn from more often, though less than their size would have it.
    corpora = [corpus.load(path) for path in source.corpora]
    weights = np.sqrt([len(pictures) for pictures in corpora])
    pictures = corpora[int(rng.choice(len(corpora), p=weights / weights.sum()))]
    low, high = (round(edge * len(pictures)) for edge in source.corpus_part)
    chosen = Image.fromarray(pictures[int(rng.integers(low, high))])
    if rng.random() < 0.5:
        chosen = _crop(rng, chosen, 0.6, 1.0)
    return np.asarray(chosen.resize(size, Image.Resampling.BICUBIC))


def _crop(rng: np.random.Generator, image: Image.Image, least: float, most: float) -> Image.Image:
    """Cut out a random window whose sides are such fractions of the picture's."""
    wide, tall = (side * rng.uniform(least, most) for side in image.size)
    left, top = rng.uniform(0, image.width - wide), rng.uniform(0, image.height - tall)
    return image.resize(image.size, Image.Resampling.BICUBIC, (left, top, left + wide, top + tall))


def _recolour_or_mirror(
    rng: np.random.Generator, picture: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Make a different picture that is easily mistaken for this one."""
    kind = int(rng.integers(3))
    if kind == 0:
        return np.ascontiguousarray(
            picture[..., [(1, 2, 0), (2, 0, 1), (0, 2, 1)][int(rng.integers(3))]]
        )
    if kind == 1:
        return 255 - picture
    return np.ascontiguousarray(picture[:, ::-1])


def draw_examples(source: Source, indices: Sequence[int]) -> Examples:
    """Draw several items with their views."""
    cv2.setNumThreads(1)  # a worker has one core
    walls = [wall(source, index) for index in indices]
    textures = _textures(source.seed)
    pixels, corners = [], []
    for at, index in enumerate(indices):
        rng = np.random.default_rng([source.seed, index, _VIEWS_SEED])
        # Neighbours on the wall come from the same chunk; which they are does not matter.
        others = [walls[(at + step) % len(walls)] for step in (3, 5)]
        maps = [walls[at], *(other for other in others if other is not walls[at])]
        drawn = [views.archive(rng, maps, textures, source.side)]
        for _ in range(source.queries):
            hardness = float(rng.random() ** source.lean)
            # Bad pictures are taken from afar and aside; good ones may be.
            reach = max(hardness, float(rng.random()))
            drawn.append(views.degrade(rng, maps, textures, source.side, hardness, reach=reach))
        pixels.append(np.stack([view.pixels for view in drawn]))
        corners.append(np.stack([view.corners for view in drawn]))
    small = [
        cv2.resize(pixels, (SMALL_SIDE, SMALL_SIDE), interpolation=cv2.INTER_AREA)
        for pixels in walls
    ]
    return Examples(np.stack(pixels), np.stack(corners), np.stack(small).astype(np.uint8))


def _vary(rng: np.random.Generator, examples: Examples) -> None:
    """Mirror and recolour items, all alike, in place: other maps for nothing.

    All alike, because what is easily mistaken for another map has to stay so.
    """
    pixels, corners, small = examples
    if rng.random() < 0.5:
        pixels[:] = pixels[..., ::-1, :].copy()
        small[:] = small[..., ::-1, :].copy()
        corners[:] = corners[..., [1, 0, 3, 2], :] * (-1, 1)
    if rng.random() < 0.3:
        order = rng.permutation(3)
        pixels[:], small[:] = pixels[..., order], small[..., order]


@cache
def _textures(seed: int) -> views.Textures:
    return views.Textures(seed)


def _be_nice() -> None:
    """Let the training process have the cores first, and decide what Ctrl-C means."""
    # A terminal sends it to every process; a worker that ends of it breaks the whole pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(19)


class Window:
    """The items ``[refresh * step, refresh * step + size)`` of a stream, kept in memory.

    Args:
        source: The stream.
        size: Items in the window; even.
        refresh: New items a step; even. Every item is sampled about ``batch / refresh`` times.
        step: Where to start, for a run that resumes.
        workers: Drawing processes; 0 draws in this process.
        corners: Decides a new item's corners from its pixels and where they were drawn.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        refresh: int,
        *,
        step: int = 0,
        workers: int = 1,
        corners: Callable[[Pixels, Corners], Corners] = lambda _pixels, drawn: drawn,
    ) -> None:
        if size % 2 or refresh % 2:
            raise ValueError("The window's size and refresh must be even: siblings stay together.")
        self._source = source
        self._corners = corners
        self._size = size
        self._refresh = refresh
        # Divides both, so that chunks end exactly where windows end and never overwrite an item
        # that is still in use.
        self._chunk = math.gcd(size, refresh, _CHUNK)
        self._ahead: deque[Future[Examples]] = deque()
        self._executor = None
        if workers:
            # spawn: forking a process that runs torch's threads can deadlock.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(workers, context, initializer=_be_nice)
        self._start = step * refresh
        self._requested = self._start
        self._received = self._start
        views_each, side = 1 + source.queries, source.side
        self._ring = Examples(
            np.zeros((size, views_each, side, side, 3), np.uint8),
            np.zeros((size, views_each, 4, 2), np.float32),
            np.zeros((size, SMALL_SIDE, SMALL_SIDE, 3), np.uint8),
        )
        self._receive_until(self._start + size)

    def advance(self) -> None:
        """Move on by one step, waiting for the new items if they are not drawn yet."""
        self._start += self._refresh
        self._receive_until(self._start + self._size)

    def sample(
        self, rng: np.random.Generator, count: int, *, posted: float = 1.0, alike: float = 0.0
    ) -> Examples:
        """Pick ``count`` distinct items (even), each even item with the odd one that follows.

        Args:
            rng: Decides.
            count: Items.
            posted: Share of the items of which one view is as posted; of the others both search
                (if there are two that do).
            alike: Share of the pairs that are there because another even item looks like theirs.

        Returns:
            Two views of each.
        """
        pairs = self._pairs(rng, count // 2, alike)
        slots = np.stack([pairs * 2, pairs * 2 + 1], axis=1).reshape(-1)
        queries = self._source.queries
        query = rng.integers(0, queries, count)
        other = (query + rng.integers(1, max(2, queries), count)) % queries
        first = np.where(rng.random(count) < posted, 0, 1 + other)
        chosen = np.stack([first, 1 + query], axis=1)
        at = slots[:, None], chosen
        picked = Examples(self._ring.pixels[at], self._ring.corners[at], self._ring.small[slots])
        _vary(rng, picked)
        return picked

    def _pairs(self, rng: np.random.Generator, count: int, alike: float) -> npt.NDArray[np.int64]:
        """Pick distinct pairs of the ring: some at random, and to these the most alike.

        Most of a random batch is so easily told apart that nothing is learnt from it.
        """
        found = round(alike * count)
        pairs = rng.permutation(self._size // 2)[: count - found]
        if not found:
            return pairs
        # Contrast and brightness are what a bad picture changes first.
        small = self._ring.small[::2].reshape(self._size // 2, -1).astype(np.float32)
        small -= small.mean(1, keepdims=True)
        small /= np.linalg.norm(small, axis=1, keepdims=True) + 1.0
        likeness = small[np.resize(pairs, found)] @ small.T
        likeness[:, pairs] = -np.inf
        neighbours = np.empty(found, np.int64)
        for at, row in enumerate(likeness):
            neighbours[at] = row.argmax()
            likeness[:, neighbours[at]] = -np.inf
        return np.concatenate([pairs, neighbours])

    def close(self) -> None:
        """Stop the workers and drop what they were drawing."""
        if self._executor is not None:
            # Waited for: at exit, Python would wake a pool that is just closing its pipe (OSError).
            self._executor.shutdown(wait=True, cancel_futures=True)

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
            drawn = self._ahead.popleft().result()
            slots = (self._received + np.arange(len(drawn.small))) % self._size
            self._ring.pixels[slots] = drawn.pixels
            self._ring.corners[slots] = self._corners(drawn.pixels, drawn.corners)
            self._ring.small[slots] = drawn.small
            self._received += len(drawn.small)

    def _request(self) -> None:
        """Ask for chunks until enough are in flight."""
        while len(self._ahead) < (_AHEAD if self._executor else 1):
            indices = range(self._requested, self._requested + self._chunk)
            self._requested += self._chunk
            if self._executor is None:
                done: Future[Examples] = Future()
                done.set_result(draw_examples(self._source, indices))
                self._ahead.append(done)
            else:
                self._ahead.append(self._executor.submit(draw_examples, self._source, indices))
