"""The artwork that the set is made of: any folder of pictures, read, filtered, and split in two."""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.workers import worker_pool
from exporter.training.art import picture_paths
from inference.errors import StartupError

Pixels = NDArray[np.uint8]

# Smaller ones are buttons and bullets; flat ones are shapes to be filled in.
_LEAST_SIDE = 40
_LEAST_DEVIATION = 14.0
# Longer ones are strips: frames of an animation, parts of a window.
_MOST_ASPECT = 2.6
_THUMBNAIL = 16
# Root mean square difference of two thumbnails, of 255, below which one picture is enough: nobody
# could say which of the two a photo shows. Anywhere: sizes of a wallpaper, copies. In one folder:
# frames of an animation, too.
_SAME_BELOW = 14.0
_FRAME_BELOW = 34.0
_GROUND = 110
_LEAST_ALPHA = 24
# Decoded at most this large: the largest wall of maps is 384 pixels wide.
_DECODED = 768


class Half(StrEnum):
    """Which part of the artwork; models are chosen by the first and judged by the second."""

    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Piece:
    """One picture of the folder.

    Attributes:
        path: Where it lies, relative to the folder.
        width: In pixels.
        height: In pixels.
    """

    path: str
    width: int
    height: int

    @property
    def source(self) -> str:
        """The folder's subfolder that it comes from, which is one package or one artist."""
        return self.path.split("/", 1)[0]

    @property
    def half(self) -> Half:
        """Decided by the folder that the file lies in, so that a series is never torn apart."""
        digest = hashlib.sha256(str(Path(self.path).parent).encode()).digest()
        return Half.VALIDATION if digest[0] % 4 == 0 else Half.TEST


def collect(
    folder: Path, cache: Path, workers: int, progress: Callable[[str, float], None]
) -> list[Piece]:
    """List the pictures that can become maps, without those that look like one before.

    Args:
        folder: Pictures at any depth, one subfolder for each source.
        cache: File that keeps the list; made anew when the files' names or sizes change.
        workers: Decoding processes.
        progress: Told what is going on.

    Raises:
        StartupError: There are no pictures.
    """
    paths = picture_paths(folder)
    names = [path.relative_to(folder).as_posix() for path in paths]
    sizes = [path.stat().st_size for path in paths]
    rules = (_LEAST_SIDE, _LEAST_DEVIATION, _MOST_ASPECT, _SAME_BELOW, _FRAME_BELOW)
    state = hashlib.sha256(json.dumps([names, sizes, rules]).encode()).hexdigest()
    pieces = _cached(cache, state)
    if pieces is None:
        pieces = _read(folder, names, workers, progress)
        cache.parent.mkdir(parents=True, exist_ok=True)
        document = {"state": state, "pieces": [(p.path, p.width, p.height) for p in pieces]}
        partial_file = cache.with_suffix(".partial")
        partial_file.write_text(json.dumps(document))
        partial_file.replace(cache)
    if not pieces:
        raise StartupError(
            f"{folder} has no picture that could become a map: {len(paths)} files were read, and "
            f"each was unreadable, nearly blank, smaller than {_LEAST_SIDE} pixels or a strip. "
            "`make retrieval-art` builds a folder that has."
        )
    return pieces


def _cached(cache: Path, state: str) -> list[Piece] | None:
    try:
        document = json.loads(cache.read_text())
        if document["state"] != state:
            return None
        return [Piece(*fields) for fields in document["pieces"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(
    folder: Path,
    names: Sequence[str],
    workers: int,
    progress: Callable[[str, float], None],
) -> list[Piece]:
    kept: list[Piece] = []
    folders = np.array([hash(name.rpartition("/")[0]) for name in names])
    kept_folders = np.empty_like(folders)
    squares = np.empty(len(names), np.float32)
    side = (_THUMBNAIL * _THUMBNAIL * 3) ** 0.5
    thumbnails = np.empty((len(names), _THUMBNAIL * _THUMBNAIL * 3), np.float32)
    with worker_pool(workers) as pool:
        examined = pool.map(partial(_examine, folder), names, chunksize=32)
        for index, (name, found) in enumerate(zip(names, examined, strict=True)):
            if index % 64 == 0:
                progress(f"reading the artwork: {len(kept):,} kept", index / len(names))
            if found is None:
                continue
            width, height, thumbnail = found
            known = thumbnails[: len(kept)]
            square = float(thumbnail @ thumbnail)
            # |a - b|^2 from dot products: a hundredth of the time of the differences themselves.
            apart = np.sqrt(np.maximum(squares[: len(kept)] + square - 2 * (known @ thumbnail), 0))
            beside = kept_folders[: len(kept)] == folders[index]
            if (apart / side < np.where(beside, _FRAME_BELOW, _SAME_BELOW)).any():
                continue
            thumbnails[len(kept)], squares[len(kept)] = thumbnail, square
            kept_folders[len(kept)] = folders[index]
            kept.append(Piece(name, width, height))
    return kept


def _examine(folder: Path, name: str) -> tuple[int, int, NDArray[np.float32]] | None:
    """Its size and a thumbnail, or None where it is of no use."""
    try:
        picture = load(folder, name, (_GROUND,) * 3)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    width, height = picture.size
    if min(width, height) < _LEAST_SIDE or max(width, height) > _MOST_ASPECT * min(width, height):
        return None
    small = picture.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    thumbnail = np.asarray(small, np.float32).reshape(-1)
    if np.asarray(picture.convert("L")).std() < _LEAST_DEVIATION:
        return None
    return width, height, thumbnail


def load(folder: Path, name: str, ground: tuple[int, ...]) -> Image.Image:
    """Read a piece: RGB, at most 768 pixels a side, its transparent rim cut off.

    Raises:
        OSError: It is no readable picture.
    """
    # Wallpapers are large, and Pillow's warning below its limit is no news.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    with Image.open(folder / name) as opened:
        opened.draft("RGB", (_DECODED, _DECODED))
        if opened.mode in {"RGB", "L"} and "transparency" not in opened.info:
            picture = opened.convert("RGB")
            picture.thumbnail((_DECODED, _DECODED), reducing_gap=2.0)
            return picture
        transparent = opened.convert("RGBA")
    box = transparent.getchannel("A").point(lambda alpha: 255 * (alpha > _LEAST_ALPHA)).getbbox()
    if box is None:
        raise OSError("it is transparent")
    transparent = transparent.crop(box)
    transparent.thumbnail((_DECODED, _DECODED), reducing_gap=2.0)
    flat = Image.new("RGBA", transparent.size, (*ground[:3], 255))
    flat.alpha_composite(transparent)
    return flat.convert("RGB")
