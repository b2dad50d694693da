"""Make what differs between views of one map count less: ``python -m exporter.training.whiten``.

Two embeddings are compared by cosine, which counts every direction alike. But views of the same map
differ in some directions much more than in others, and a contrastive loss over small batches is
slow to see to that. So, once the tower is trained, its embeddings are centred and divided by the
root of the covariance that views of one map have (within-class covariance normalisation: A. Hatch,
S. Kajarekar, A. Stolcke, Interspeech 2006). Both are linear, and end up in the weights of the last
two layers: the model costs what it did.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection

from exporter import locator
from exporter.locator import Locator
from exporter.training import corpus
from exporter.training.model import picture_side, save_folder
from exporter.training.stream import Source, draw_examples
from exporter.training.validate import embed

_SEED: Final = 900_002
"""The stream of the maps: neither trained on nor validated with."""

_CHUNK: Final = 16

_CONSOLE: Final = Console(stderr=True)

_SHRINKAGE: Final = 0.1
"""Share of its mean variance that is added to the covariance in every direction.

From 0.03 to 0.6 poor recall@1 on 500 held-out maps among 3,500 was within 0.003 of the best.
"""


def draw_views(
    tower: CLIPVisionModelWithProjection, finder: Locator | None, source: Source, count: int,
    *, workers: int = 1,
) -> Tensor:  # fmt: skip
    """Embed every view of the first ``count`` maps of a stream: ``float32`` (maps, views, d)."""
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    embeddings = []
    with ProcessPoolExecutor(workers) as pool:
        drawn = pool.map(partial(draw_examples, source), chunks)
        for examples in track(drawn, "views of maps", total=len(chunks), console=_CONSOLE):
            pixels = examples.pixels
            found = embed(tower, finder, pixels.reshape(-1, *pixels.shape[2:]), unit=False)
            embeddings.append(found.unflatten(0, pixels.shape[:2]))
    return torch.cat(embeddings)


def whiten(tower: CLIPVisionModelWithProjection, views: Tensor) -> None:
    """Change a tower in place, so that its unit embeddings of the same pictures are whitened.

    Args:
        tower: With a final layer norm and a linear projection, as CLIP has them.
        views: Its embeddings of several views of each map, the one as posted first, not
            normalised: ``float32`` (maps, views, d).
    """
    length = views.norm(dim=-1).mean()
    unit = functional.normalize(views.double(), dim=-1)
    apart = (unit[:, 1:] - unit[:, :1]).flatten(0, 1)
    covariance = apart.T @ apart / len(apart)
    projection = tower.visual_projection.weight
    # The projection may lead into more dimensions than it comes from.
    rank = min(projection.shape)
    covariance.diagonal().add_(_SHRINKAGE * covariance.trace() / rank)
    variances, directions = torch.linalg.eigh(covariance)
    root = directions / variances.sqrt() @ directions.T
    centre = length * unit.flatten(0, 1).mean(0)
    # The projection has no bias: of what it makes the mean, the layer before has to give less.
    shift = torch.linalg.lstsq(projection.detach().double(), centre[:, None]).solution[:, 0]
    # As long as before, on average.
    scale = length / ((views - centre) @ root).norm(dim=-1).mean()
    with torch.no_grad():
        tower.vision_model.post_layernorm.bias.sub_(shift)
        projection.copy_(scale * root @ projection.double())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m exporter.training.whiten",
        description="Whiten a trained tower: the last step, and again after every training.",
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="a Hugging Face folder")
    add("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    add("--maps", type=int, default=3000, help="maps to learn from (default: %(default)s)")
    corpus.add_option(parser)
    add("--workers", type=int, default=os.cpu_count() or 1, help="drawing processes")
    arguments = parser.parse_args(argv)
    tower = CLIPVisionModelWithProjection.from_pretrained(arguments.model).eval()
    finder = locator.load(arguments.model)
    side = picture_side(tower, finder)
    source = Source(_SEED, tuple(arguments.corpus), side=side, lean=0.5)
    views = draw_views(tower, finder, source, arguments.maps, workers=arguments.workers)
    whiten(tower, views)
    save_folder(tower, finder, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
