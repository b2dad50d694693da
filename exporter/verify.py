"""Whether an exported tower still is the checkpoint: measured on the code that serves it."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessor

from exporter.checkpoint import Checkpoint, TextSide
from exporter.errors import ExportError
from inference.artifact import Artifact, Fidelity, Precision
from inference.engine import EngineOptions, load_image_engine, load_text_engine
from inference.preprocess import reference as square
from inference.renders import framed

BARS: Final = {Precision.FP32: 0.9999, Precision.FP16: 0.999, Precision.INT8: 0.99}
"""The least cosine similarity to PyTorch that the worst picture may have."""

BATCH_SIZES: Final = (1, 3, 8)
"""At each of them every picture is embedded; the last batch of a size may be smaller."""

# How far rounding may take a vector from length one, and a picture's vectors from each other: the
# last bit of a float differs with the size of the batch, and now and then it decides an integer.
_LENGTH_TOLERANCE: Final = 1e-3
_INVARIANCE: Final = {Precision.FP32: 0.9999, Precision.FP16: 0.9999, Precision.INT8: 0.999}
# Pictures that PyTorch computes at once, for memory's sake.
_REFERENCE_BATCH: Final = 8

Embeddings = NDArray[np.floating[Any]]


class FidelityError(ExportError):
    """The tower works, but rounds more than its precision may: from PyTorch, or from itself."""


def check_image_tower(
    artifact: Artifact, embeddings: Embeddings, pictures: Sequence[bytes]
) -> Fidelity:
    """Compares the image tower as it will be served with PyTorch.

    Args:
        artifact: The folder with its graph in place; the manifest need not be written yet.
        embeddings: PyTorch's answer to these pictures, from `image_reference`.
        pictures: Encoded pictures.

    Returns:
        How close it came.

    Raises:
        ExportError: It is below the bar, not of unit length or width, or depends on the batch.
    """
    manifest = artifact.manifest
    options = EngineOptions(provider="cpu", max_batch=max(BATCH_SIZES))
    engine = load_image_engine(artifact, options)
    pixels = np.stack([square(data, manifest.preprocessing) for data in pictures])
    return _check("image", artifact, embeddings, lambda at: engine.embed(pixels[at]))


def image_reference(loaded: Checkpoint, folder: Path, pictures: Sequence[bytes]) -> Embeddings:
    """What the checkpoint makes of pictures, in PyTorch and with its own image processor.

    Args:
        loaded: The checkpoint, in float32.
        folder: Where it lies, for `preprocessor_config.json`.
        pictures: Encoded pictures.

    Returns:
        float64 [N, D] of unit length.
    """
    processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    rows = []
    with torch.inference_mode():
        for first in range(0, len(pictures), _REFERENCE_BATCH):
            images = [
                framed(Image.open(io.BytesIO(data)), loaded.recipe.preprocessing.render_margin)
                for data in pictures[first : first + _REFERENCE_BATCH]
            ]
            values = processor(images, return_tensors="pt")["pixel_values"]
            if loaded.finder is not None:
                values = _upright(loaded, values)
            rows.append(_unit(loaded.image_tower(pixel_values=values).image_embeds))
    return np.concatenate(rows)


def _upright(loaded: Checkpoint, values: torch.Tensor) -> torch.Tensor:
    """Lets the locator see plain colours, and the tower what it gives, scaled as before."""
    assert loaded.finder is not None  # noqa: S101 (the caller asked)
    mean, std = (
        torch.tensor(each)[:, None, None] for each in (loaded.recipe.mean, loaded.recipe.std)
    )
    side = loaded.image_tower.config.image_size
    return (loaded.finder.upright(values * std + mean, side) - mean) / std


def check_text_tower(artifact: Artifact, embeddings: Embeddings, texts: Sequence[str]) -> Fidelity:
    """Compares the text tower as it will be served, tokeniser included, with PyTorch.

    Args:
        artifact: The folder with its graph and tokeniser in place.
        embeddings: PyTorch's answer to these texts, from `text_reference`.
        texts: Any texts.

    Returns:
        How close it came.

    Raises:
        ExportError: It is below the bar, not of unit length or width, or depends on the batch.
    """
    options = EngineOptions(provider="cpu", max_batch=max(BATCH_SIZES))
    engine = load_text_engine(artifact, options)
    if engine is None:
        raise ExportError("The manifest names no text tower.")
    token_ids = np.stack([engine.tokenise(text) for text in texts])
    return _check("text", artifact, embeddings, lambda at: engine.embed(token_ids[at]))


def text_reference(text: TextSide, texts: Sequence[str]) -> Embeddings:
    """What the checkpoint makes of texts, in PyTorch and with its own tokeniser.

    Args:
        text: The checkpoint's text side, in float32.
        texts: Any texts.

    Returns:
        float64 [N, D] of unit length.
    """
    with torch.inference_mode():
        return _unit(text.tower(input_ids=text.token_ids(texts)).text_embeds)


def _unit(embeddings: torch.Tensor) -> Embeddings:
    unit: Embeddings = torch.nn.functional.normalize(embeddings.double(), dim=-1).numpy()
    return unit


def _check(
    tower: str, artifact: Artifact, expected: Embeddings, embed: Callable[[slice], Embeddings]
) -> Fidelity:
    """Embeds everything at every batch size, and judges."""
    manifest = artifact.manifest
    count = len(expected)
    runs = []
    for size in BATCH_SIZES:
        parts = [embed(slice(first, first + size)) for first in range(0, count, size)]
        runs.append(np.concatenate(parts).astype(np.float64))
    found = np.stack(runs)  # [batch sizes, pictures, D]
    if found.shape[-1] != manifest.dimensions:
        raise ExportError(
            f"The {tower} tower gives {found.shape[-1]} numbers instead of the "
            f"{manifest.dimensions} of the checkpoint's projection."
        )
    lengths = np.linalg.norm(found, axis=-1)
    if not np.all(np.abs(lengths - 1) < _LENGTH_TOLERANCE):  # also where one is not a number
        raise ExportError(
            f"The {tower} tower gives vectors of length {lengths.min():.4f} to "
            f"{lengths.max():.4f} instead of 1."
        )
    found /= lengths[..., None]
    cosines = np.einsum("bnd,nd->bn", found, expected)
    worst, bar = float(cosines.min()), BARS[manifest.precision]
    if worst < bar:
        raise FidelityError(
            f"The {manifest.precision} {tower} tower is not close enough to PyTorch: its worst "
            f"cosine similarity is {worst:.7g}, {bar - worst:.2g} below the bar of {bar}."
        )
    among = float(np.einsum("bnd,nd->bn", found, found[0]).min())
    if among < _INVARIANCE[manifest.precision]:
        raise FidelityError(
            f"The {tower} tower's answer depends on the size of the batch: cosine similarity "
            f"{among:.6f} between batches of {BATCH_SIZES} of the same pictures."
        )
    return Fidelity(
        min_cosine=worst,
        mean_cosine=float(cosines.mean()),
        pictures=count,
        batch_sizes=BATCH_SIZES,
    )
