"""A model that costs next to nothing, with pixels and embeddings as long as a real one's."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

from inference.artifact import (
    IMAGE_TOWER,
    MANIFEST,
    Artifact,
    Manifest,
    Precision,
    Preprocessing,
    sha256_of,
)

# As of ViT-B/32, the model that messages are measured for.
SIDE, DIMENSIONS = 224, 512

# It looks at so many points of each side.
_POINTS = 4


def save_tiny(folder: Path, *, side: int = SIDE, dimensions: int = DIMENSIONS) -> Artifact:
    """Writes a model folder whose tower projects a few of the pixels, chosen by position.

    Args:
        folder: Where to; it is there.
        side: Of the square input, in pixels; a multiple of four.
        dimensions: Length of the embeddings.
    """
    weights = np.random.default_rng(0).normal(size=(3 * _POINTS**2, dimensions))
    tower = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        tiny (uint8[n,{side},{side},3] pixels) => (float[n,{dimensions}] image_embeds)
        <int64[2] starts = {{0, 0}}, int64[2] ends = {{{side}, {side}}}, int64[2] axes = {{1, 2}},
         int64[2] steps = {{{side // _POINTS}, {side // _POINTS}}}, float grey = {{127.3}}> {{
            points = Slice (pixels, starts, ends, axes, steps)
            floats = Cast <to = {onnx.TensorProto.FLOAT}> (points)
            features = Flatten (floats)
            contrast = Sub (features, grey)
            projected = MatMul (contrast, weights)
            image_embeds = LpNormalization <axis = 1, p = 2> (projected)
        }}""")
    return save_tower(folder, tower, weights, side=side, dimensions=dimensions)


def save_tower(
    folder: Path,
    tower: onnx.ModelProto,
    weights: NDArray[np.floating[Any]],
    *,
    side: int,
    dimensions: int,
) -> Artifact:
    """Writes the model folder of a tower that lacks its `weights` still."""
    initial = onnx.numpy_helper.from_array(weights.astype(np.float32), "weights")
    tower.graph.initializer.append(initial)
    onnx.save(tower, str(folder / IMAGE_TOWER))
    manifest = Manifest(
        name="tiny",
        dimensions=dimensions,
        precision=Precision.FP32,
        opset=17,
        preprocessing=Preprocessing(image_size=side, resize="squash", interpolation="bicubic"),
        sha256={IMAGE_TOWER: sha256_of(folder / IMAGE_TOWER)},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return Artifact.load(folder)
