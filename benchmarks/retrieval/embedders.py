"""What is compared: models in this process, a running server's model, and a perceptual hash.

All give unit vectors, so that one dot product ranks them: a hash's bits become signs, and the
cosine of two hashes falls with their Hamming distance.
"""

import asyncio
import hashlib
import io
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import Provider
from bot.looks import DISCOUNT, VARIANTS, Variant
from inference.artifact import Artifact
from inference.client import ClientSettings, EmbeddingClient
from inference.cores import usable_cores
from inference.engine import EngineOptions, load_image_engine
from inference.errors import EmbeddingError
from inference.preprocess import Preprocessor

Vectors = NDArray[np.float32]

_BATCH = 32
_AHEAD = 4
_MAX_BYTES = 64 << 20
_MAX_PIXELS = 100_000_000
_HASH_SIDE = 16
_HASH_DECODED = 64


class Embedder(Protocol):
    """Something that makes comparable vectors of pictures."""

    @property
    def name(self) -> str:
        """What it is called in tables and caches; names the vector space."""

    def embed(self, pictures: Iterator[bytes]) -> Iterator[Vectors]:
        """Embeds encoded pictures, in order: unit vectors float32 [D], one each."""


class LocalModel:
    """A model folder, decoded and run in this process as the server would.

    Args:
        folder: As `mapseek export` writes it.
        provider: Where it runs.

    Raises:
        StartupError: The folder is no model, or the provider is missing.
    """

    def __init__(self, folder: Path, provider: Provider) -> None:
        self.artifact = Artifact.load(folder)
        self._cores = usable_cores()
        self._engine = load_image_engine(
            self.artifact,
            EngineOptions(provider=provider, threads=self._cores, max_batch=_BATCH),
        )
        self._decode = Preprocessor(
            self.artifact.manifest.preprocessing,
            max_image_bytes=_MAX_BYTES,
            max_image_pixels=_MAX_PIXELS,
        )

    @property
    def name(self) -> str:
        """The vector space's name."""
        return self.artifact.manifest.model_id

    def embed(self, pictures: Iterator[bytes]) -> Iterator[Vectors]:
        """Embeds encoded pictures, in order."""
        with ThreadPoolExecutor(self._cores) as pool:
            while batch := list(islice(pictures, _BATCH)):
                yield from self._engine.embed(list(pool.map(self._decode, batch)))


class ServedModel:
    """The model of a running server, over its bulk call.

    Args:
        settings: Where it is.

    Raises:
        EmbeddingError: It does not answer.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._name = asyncio.run(self._ask())

    @property
    def name(self) -> str:
        """The vector space's name."""
        return self._name

    def embed(self, pictures: Iterator[bytes]) -> Iterator[Vectors]:
        """Embeds encoded pictures, in order."""
        while batch := list(islice(pictures, 8 * _BATCH)):
            yield from asyncio.run(self._embed(batch))

    async def _ask(self) -> str:
        async with EmbeddingClient(self._settings) as client:
            return (await client.model()).id

    async def _embed(self, batch: Sequence[bytes]) -> list[Vectors]:
        async def numbered() -> AsyncIterator[tuple[int, bytes]]:
            for pair in enumerate(batch):
                yield pair

        found: dict[int, Vectors] = {}
        async with EmbeddingClient(self._settings) as client:
            async for item in client.embed_many(numbered()):
                if isinstance(item.outcome, EmbeddingError):
                    raise item.outcome
                found[item.id] = item.outcome.embedding
        return [found[number] for number in range(len(batch))]


class PerceptualHash:
    """256 bits: the signs of the 16 x 16 lowest frequencies around their median.

    The usual construction ("pHash", C. Zauner, 2010): grey, shrunk, a discrete cosine transform.
    """

    name = "phash 16x16"

    def __init__(self) -> None:
        steps = np.arange(_HASH_DECODED)
        frequencies = np.arange(_HASH_SIDE)[:, None]
        self._basis = np.cos(np.pi * (2 * steps + 1) * frequencies / (2 * _HASH_DECODED))

    def embed(self, pictures: Iterator[bytes]) -> Iterator[Vectors]:
        """Hashes encoded pictures, in order."""
        yield from map(self.hash, pictures)

    def hash(self, data: bytes) -> Vectors:
        """Hash one picture: a sixteenth or minus that for each bit, float32 [256]."""
        with Image.open(io.BytesIO(data)) as image:
            image.draft("L", (4 * _HASH_DECODED, 4 * _HASH_DECODED))
            grey = image.convert("L").resize(
                (_HASH_DECODED, _HASH_DECODED), Image.Resampling.LANCZOS
            )
        spectrum = self._basis @ np.asarray(grey, np.float64) @ self._basis.T
        # The first coefficient is the mean brightness, far above all others.
        middle = np.median(spectrum.reshape(-1)[1:])
        return np.where(spectrum.reshape(-1) > middle, 1 / 16, -1 / 16).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Views:
    """In which ways a query is embedded, and how their similarities make one.

    Attributes:
        variants: How the picture is shown.
        combine: The mean of the embeddings, or for each map the best of them, or what they agree on
            (`bot.looks.agreed`).
        discount: By how much the similarities of all variants but the first count less.
    """

    variants: tuple[Variant, ...]
    combine: Literal["mean", "max", "agreed"]
    discount: float = 0.0

    def file_name(self, kind: str) -> str:
        """Where a cache keeps the vectors of one kind of picture, shown in these ways."""
        if self.variants == (_WHOLE,):
            return f"{kind}.npy"
        return f"{kind}-{hashlib.sha256(repr(self.variants).encode()).hexdigest()[:12]}.npy"


def _centre(side: float) -> Variant:
    return Variant(((1 - side) / 2, (1 - side) / 2, (1 + side) / 2, (1 + side) / 2))


_WHOLE = Variant()
_CORNERS = tuple(Variant((x, y, x + 0.7, y + 0.7)) for y in (0.0, 0.3) for x in (0.0, 0.3))

VIEWS: dict[str, Views] = {
    "full": Views((_WHOLE,), "mean"),
    "centre": Views((_centre(0.75),), "mean"),
    "mean2": Views((_WHOLE, _centre(0.75)), "mean"),
    "max2": Views((_WHOLE, _centre(0.75)), "max"),
    "mean3": Views((_WHOLE, _centre(0.8), _centre(0.6)), "mean"),
    "max3": Views((_WHOLE, _centre(0.75), _centre(0.5)), "max"),
    "grid": Views((_WHOLE, _centre(0.7), *_CORNERS), "max"),
    # What `bot.search` does where the first look leaves doubt.
    "looks": Views((_WHOLE, *VARIANTS), "agreed", DISCOUNT),
}
"""What `--views` takes."""


def embed_files(
    embedder: Embedder,
    files: Sequence[Path],
    cache: Path,
    progress: Callable[[float], None],
    variants: Sequence[Variant] = (_WHOLE,),
) -> Vectors:
    """Embeds files in one or several ways, (n, V, D).

    Args:
        embedder: What embeds.
        files: Encoded pictures.
        cache: A ``.npy`` file; what it holds of the first of these files is not embedded again.
        progress: Told the share that is done.
        variants: How each picture is shown.
    """
    count = len(files) * len(variants)
    rows = list(np.load(cache)) if cache.exists() else []
    # An interrupted run may have stopped among a picture's variants.
    begun = len(rows) // len(variants)
    del rows[begun * len(variants) :]
    if begun < len(files):
        try:
            for vector in embedder.embed(_all_shown(files[begun:], variants)):
                rows.append(vector)
                progress(len(rows) / count)
        finally:
            # What an interrupted run has embedded is kept as well.
            if rows:
                cache.parent.mkdir(parents=True, exist_ok=True)
                unfinished = cache.with_suffix(".partial.npy")
                np.save(unfinished, np.stack(rows))
                unfinished.replace(cache)
    return np.stack(rows[:count]).reshape(len(files), len(variants), -1)


def embed_views(
    embedder: Embedder,
    files: Sequence[Path],
    views: Views,
    cache: Path,
    progress: Callable[[float], None],
) -> Vectors:
    """Embeds queries, (n, V, D); one row each where the variants are averaged."""
    vectors = embed_files(embedder, files, cache, progress, views.variants)
    if views.combine == "mean":
        vectors = vectors.mean(axis=1, keepdims=True)
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return vectors


def _all_shown(files: Iterable[Path], variants: Sequence[Variant]) -> Iterator[bytes]:
    """Shows one file after the other in all ways, the next ones while some are embedded."""
    ahead: deque[Future[list[bytes]]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        for path in files:
            ahead.append(pool.submit(_shown, path.read_bytes(), variants))
            if len(ahead) > _AHEAD:
                yield from ahead.popleft().result()
        for shown in ahead:
            yield from shown.result()


def _shown(data: bytes, variants: Sequence[Variant]) -> list[bytes]:
    if tuple(variants) == (_WHOLE,):
        return [data]
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    shown = []
    for variant in variants:
        encoded = io.BytesIO()
        variant.of(image).save(encoded, "PNG", compress_level=0)
        shown.append(encoded.getvalue())
    return shown


def latency_s(embedder: Embedder, files: Sequence[Path], views: Views) -> list[float]:
    """Seconds that each query takes alone, from its bytes to its vectors."""
    taken = []
    for path in files:
        data = path.read_bytes()
        began = time.perf_counter()
        for _ in embedder.embed(iter(_shown(data, views.variants))):
            pass
        taken.append(time.perf_counter() - began)
    return taken
