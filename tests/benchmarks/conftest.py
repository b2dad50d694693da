"""A model of a few kilobytes in the exporter's format, which the real server loads and serves."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from benchmarks.overhead.tiny import save_tower

SIDE, DIMENSIONS = 32, 16


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeds a picture as a random projection of its coarse colours."""
    folder = tmp_path_factory.mktemp("tiny")
    weights = np.random.default_rng(0).normal(size=(48, DIMENSIONS)).astype(np.float32)
    tower = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        tiny (uint8[n,{SIDE},{SIDE},3] pixels) => (float[n,{DIMENSIONS}] image_embeds)
        <float grey = {{127.3}}> {{
            floats = Cast <to = {onnx.TensorProto.FLOAT}> (pixels)
            planes = Transpose <perm = [0, 3, 1, 2]> (floats)
            tiles = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (planes)
            features = Flatten (tiles)
            contrast = Sub (features, grey)
            projected = MatMul (contrast, weights)
            image_embeds = LpNormalization <axis = 1, p = 2> (projected)
        }}""")
    save_tower(folder, tower, weights, side=SIDE, dimensions=DIMENSIONS)
    return folder
