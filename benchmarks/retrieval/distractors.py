"""Maps that nobody asks for: procedural art, drawn once, for the archive only."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.retrieval.pictures import GALLERY, VERSION, run_chunks
from exporter.training import mapart, scenes

# Far from the seeds of training, of the sample archive and of other benchmarks.
_FIRST = 5_000_000_000
# Posts are drawn smaller than the set's: twice a model's input in height is still enough.
_REDUCE = 2


@dataclass(frozen=True, slots=True)
class Distractors:
    """Files of maps that fill the archive.

    Attributes:
        gallery: Clean renders.
        posts: The same maps as people post them.
    """

    gallery: list[Path]
    posts: list[Path]


def draw_distractors(
    cache: Path, count: int, workers: int, progress: Callable[[str, float], None]
) -> Distractors:
    """Draw those that are not on disk yet, and list them all."""
    out = cache / f"distractors-v{VERSION}"
    for kind in (GALLERY, scenes.Kind.POST):
        (out / kind).mkdir(parents=True, exist_ok=True)
    posts = [out / scenes.Kind.POST / f"{number:06}.jpg" for number in range(count)]
    missing = [number for number, post in enumerate(posts) if not post.exists()]
    for done in run_chunks(partial(_draw_one, out), missing, workers):
        progress(f"drawing {count:,} distractors", (count - len(missing) + done) / count)
    gallery = [out / GALLERY / f"{number:06}.png" for number in range(count)]
    return Distractors(gallery, posts)


def _draw_one(out: Path, number: int) -> None:
    """Draw one map and a post of it; the post is written last."""
    pixels = mapart.draw_map(_FIRST + number)
    Image.fromarray(pixels).save(out / GALLERY / f"{number:06}.png", compress_level=1)
    taken = scenes.take(pixels, np.random.default_rng([_FIRST, number]), reduce=_REDUCE)
    unfinished = out / scenes.Kind.POST / f"{number:06}.partial"
    with Image.open(io.BytesIO(taken.data)) as image:
        image.save(unfinished, "JPEG", quality=90)
    unfinished.replace(out / scenes.Kind.POST / f"{number:06}.jpg")
