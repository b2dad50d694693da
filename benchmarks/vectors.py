"""Vectors as an archive of maps has them: embeddings of drawn maps, grown to any number.

Random directions say little about a search that is not exact: they are all equally far apart.
Those of pictures crowd: they lie in a cone and in few dimensions, and near-copies lie close. So
maps are drawn and embedded, and more are made between neighbours of them, with noise along the
dimensions that the model uses. The queries are views and near-copies of drawn maps.
Only some of the vectors are ever in memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.pictures import encode
from benchmarks.report import Progress
from benchmarks.workers import worker_pool
from bot.archive.port import Vector
from exporter.training import mapart, scenes
from inference.artifact import Artifact
from inference.cores import usable_cores
from inference.engine import EngineOptions, load_image_engine
from inference.preprocess import Preprocessor

# Maps that no model of the project was trained on.
_FIRST_MAP = 900_000_000
_NEIGHBOURS = 10
# Share of the spread of all maps by which a new one differs from the line between two.
_NOISE = 0.25
# The same for a query that is a near-copy.
_COPY_NOISE = 0.15
_LONGEST_SIDE = 10_000_000
# As many matches as an answer shows.
MATCHES = 3
# Two matches whose cosines differ by less are as good as each other.
_SAME_SCORE = 1e-5
_NOTHING = -2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """Embeddings of drawn maps and what was learnt from them.

    Attributes:
        model_id: The model.
        drawn: Of the maps themselves, float32 [N, D].
        queries: To search with, float32 [Q, D].
        neighbours: The nearest other maps of each, int64 [N, K].
        spread: The deviations along the axes that the model uses, as rows: float32 [A, D].
    """

    model_id: str
    drawn: Vector
    queries: Vector
    neighbours: NDArray[np.int64]
    spread: Vector

    def vectors(self, start: int, count: int) -> Vector:
        """So many vectors from that number on, the drawn ones first; the same on every call."""
        rng = np.random.default_rng([1, start])
        kept = self.drawn[start : start + count]
        size = count - len(kept)
        one = rng.integers(len(self.drawn), size=size)
        other = self.neighbours[one, rng.integers(self.neighbours.shape[1], size=size)]
        share = rng.random((size, 1), dtype=np.float32)
        made = self.drawn[one] + share * (self.drawn[other] - self.drawn[one])
        return np.concatenate([kept, _noisy(rng, made, self.spread, _NOISE)])


class Truth:
    """The best scores of every query among all vectors so far.

    Args:
        queries: float32 [Q, D].
    """

    def __init__(self, queries: Vector) -> None:
        self._queries = queries
        self._scores = np.full((len(queries), MATCHES), _NOTHING, np.float32)

    def add(self, vectors: Vector) -> None:
        """Compares more vectors: float32 [N, D]."""
        scores = np.concatenate([self._scores, self._queries @ vectors.T], axis=1)
        self._scores = np.sort(scores, axis=1)[:, -MATCHES:]

    def recall(self, found: Iterable[Iterable[float]]) -> float:
        """Share of the true `MATCHES` nearest, by the cosines of what each query found."""
        right = sum(
            score > float(best[0]) - _SAME_SCORE
            for scores, best in zip(found, self._scores, strict=True)
            for score in scores
        )
        # Fewer where there are not so many vectors.
        return right / int((self._scores != _NOTHING).sum())


def draw_maps(model: Path, *, maps: int, queries: int, progress: Progress) -> Maps:
    """Draws and embeds maps, and views of some of them.

    Args:
        model: Folder of the model.
        maps: How many to draw; two at least.
        queries: How many to search with: half views, half near-copies.
        progress: Is told how far it is.
    """
    artifact = Artifact.load(model)
    engine = load_image_engine(artifact, EngineOptions())
    decode = Preprocessor(
        artifact.manifest.preprocessing, max_image_bytes=2**30, max_image_pixels=_LONGEST_SIDE
    )
    views = min(maps, -(-queries // 2))
    files: list[bytes] = []
    with worker_pool(usable_cores()) as pool:
        for made in (
            pool.map(_map_file, range(maps), chunksize=4),
            pool.map(_view_file, range(views), chunksize=2),
        ):
            for file in made:
                files.append(file)
                progress("drawing maps and views of them", len(files) / (maps + views))
    embedded = np.concatenate(
        [
            engine.embed([decode(file) for file in files[start : start + engine.max_batch]])
            for start in range(0, len(files), engine.max_batch)
        ]
    )
    drawn, seen = embedded[:maps], embedded[maps:]
    alike = drawn @ drawn.T
    np.fill_diagonal(alike, -1)
    spread = _spread(drawn)
    rng = np.random.default_rng(2)
    chosen = drawn[rng.integers(maps, size=queries - views)]
    return Maps(
        model_id=artifact.manifest.model_id,
        drawn=drawn,
        queries=np.concatenate([seen, _noisy(rng, chosen, spread, _COPY_NOISE)]),
        neighbours=np.argsort(-alike, axis=1)[:, : min(_NEIGHBOURS, maps - 1)],
        spread=spread,
    )


def _spread(drawn: Vector) -> Vector:
    _, sizes, axes = np.linalg.svd(drawn - drawn.mean(axis=0), full_matrices=False)
    spread: Vector = (sizes / np.sqrt(len(drawn)))[:, None] * axes
    return spread


def _noisy(rng: np.random.Generator, vectors: Vector, spread: Vector, share: float) -> Vector:
    noise = rng.standard_normal((len(vectors), len(spread)), dtype=np.float32) @ spread
    made = vectors + np.float32(share) * noise
    unit: Vector = made / np.linalg.norm(made, axis=1, keepdims=True)
    return unit


def _map_file(number: int) -> bytes:
    return encode(Image.fromarray(mapart.draw_map(_FIRST_MAP + number)), "PNG", compress_level=1)


def _view_file(number: int) -> bytes:
    kind = scenes.Kind.GOOD if number % 2 else scenes.Kind.POST
    rng = np.random.default_rng([number, 1])
    return scenes.render_file(mapart.draw_map(_FIRST_MAP + number), rng, kind)[0]
