"""Recall on held-out maps: ``python -m exporter.training.validate --pictures FILE [--model DIR]``.

The pictures come from the renderer of `scenes`, which training never sees, and from maps that
training never draws: another seed's procedural art, and the last tenth of the corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection

from exporter import locator
from exporter.locator import Locator
from exporter.training import corpus, scenes
from exporter.training.model import MEAN, STD
from exporter.training.stream import Source, wall
from inference.renders import MARGIN, framed

Pixels = npt.NDArray[np.uint8]

_SEED: Final = 900_001
"""The stream of the held-out maps."""

_TASKS: Final = (("gallery", "post"), ("query", "post"), ("query", "good"), ("query", "poor"))


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """Pictures of the same maps, in the same order, at the model's size.

    Attributes:
        galleries: What the archive holds, by name (clean, post): (n, side, side, 3).
        queries: What members ask with, by name (post, good, poor): (n, side, side, 3).
    """

    galleries: dict[str, Pixels]
    queries: dict[str, Pixels]

    def save(self, path: Path) -> None:
        """Write one ``.npz`` file, whole or not at all."""
        unfinished = path.with_suffix(".partial.npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"gallery/{name}": pixels for name, pixels in self.galleries.items()}
        arrays |= {f"query/{name}": pixels for name, pixels in self.queries.items()}
        np.savez(unfinished, allow_pickle=False, **arrays)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            parts: dict[str, dict[str, Pixels]] = {"gallery": {}, "query": {}}
            for key in arrays.files:
                kind, name = key.split("/", 1)
                parts[kind][name] = arrays[key]
        return cls(parts["gallery"], parts["query"])


def draw(
    count: int, side: int = 192, corpora: tuple[Path, ...] = (), *, workers: int = 1
) -> ValidationSet:
    """Draw the pictures of the first ``count`` held-out maps.

    Args:
        count: Number of maps.
        side: Pixels along a picture: the model's image size.
        corpora: Caches of `corpus.build`; the last tenth of each is held out.
        workers: Drawing processes.
    """
    source = Source(seed=_SEED, corpora=corpora, corpus_part=(0.9, 1.0), sibling_share=0.1)
    with ProcessPoolExecutor(workers) as pool:
        drawn = list(pool.map(partial(_draw_one, source, side), range(count), chunksize=4))
    stacked = {key: np.stack([pictures[key] for pictures in drawn]) for key in drawn[0]}
    return ValidationSet(
        {name: pixels for (role, name), pixels in stacked.items() if role == "gallery"},
        {name: pixels for (role, name), pixels in stacked.items() if role == "query"},
    )


def _draw_one(source: Source, side: int, index: int) -> dict[tuple[str, str], Pixels]:
    """Every picture of one map."""
    pixels = wall(source, index)
    pictures = {("gallery", "clean"): squash(Image.fromarray(pixels), side)}
    for task, (role, kind) in enumerate(_TASKS):
        rng = np.random.default_rng([_SEED, index, task])
        pictures[role, kind] = squash(scenes.render_view(pixels, rng, kind), side)
    return pictures


def squash(image: Image.Image, side: int) -> Pixels:
    """Resize the whole picture to a square, as the server does, clean renders in their margin."""
    image = framed(image.convert("RGB"), MARGIN)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def embed(
    tower: CLIPVisionModelWithProjection,
    finder: Locator | None,
    pixels: Pixels,
    *,
    batch: int = 64,
    unit: bool = True,
) -> Tensor:
    """Embed pictures of the model's size: ``float32`` (n, dimensions).

    Args:
        tower: The model.
        finder: Shows the tower the map alone; None shows it the picture.
        pixels: ``uint8`` (n, side, side, 3), RGB.
        batch: How many at once.
        unit: Whether to scale the vectors to unit length.
    """
    device = next(tower.parameters()).device
    mean = torch.tensor(MEAN, device=device)[:, None, None]
    std = torch.tensor(STD, device=device)[:, None, None]
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(pixels), batch):
            part = torch.tensor(pixels[start : start + batch], device=device)
            scaled = part.permute(0, 3, 1, 2).float() / 255
            if finder is not None:
                scaled = finder.upright(scaled, tower.config.image_size)
            embeds = tower(pixel_values=(scaled - mean) / std).image_embeds.float()
            vectors.append(functional.normalize(embeds, dim=1) if unit else embeds)
    return torch.cat(vectors)


def recall(
    tower: CLIPVisionModelWithProjection, finder: Locator | None, pictures: ValidationSet
) -> dict[str, float]:
    """Measure how often a query's own map comes first, and among the first three.

    Returns:
        ``"<query>/<gallery>@<k>"`` to a fraction of the queries.
    """
    galleries = {name: embed(tower, finder, each) for name, each in pictures.galleries.items()}
    scores: dict[str, float] = {}
    for query, pixels in pictures.queries.items():
        vectors = embed(tower, finder, pixels)
        own = torch.arange(len(vectors), device=vectors.device)[:, None]
        for gallery, archive in galleries.items():
            first = (vectors @ archive.T).topk(3, dim=1).indices == own
            for k in (1, 3):
                found = first[:, :k].any(1).float().mean()
                scores[f"{query}/{gallery}@{k}"] = round(float(found), 4)
    return scores


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m exporter.training.validate",
        description="Draw the held-out pictures, and measure a model on them.",
    )
    add = parser.add_argument
    add(
        "--pictures", type=Path, required=True, metavar="NPZ", help="drawn there if it is not there"
    )
    add("--maps", type=int, default=500, help="how many maps to draw (default: %(default)s)")
    corpus.add_option(parser)
    add("--workers", type=int, default=os.cpu_count() or 1, help="drawing processes")
    add("--model", type=Path, metavar="DIR", help="a Hugging Face folder to measure")
    arguments = parser.parse_args(argv)
    if not arguments.pictures.exists():
        drawn = draw(arguments.maps, corpora=tuple(arguments.corpus), workers=arguments.workers)
        drawn.save(arguments.pictures)
    if arguments.model is not None:
        tower = CLIPVisionModelWithProjection.from_pretrained(arguments.model).eval()
        pictures = ValidationSet.load(arguments.pictures)
        scores = recall(tower, locator.load(arguments.model), pictures)
        sys.stdout.write(json.dumps(scores, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
