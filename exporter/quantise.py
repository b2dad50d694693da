"""Eight-bit towers: which arithmetic, and how the ranges are found.

Weights are signed and have seven bits, one scale per output channel: with all eight, the dot
product instruction of processors without VNNI saturates, and a model that was verified on one
machine would be wrong on another. Activations are unsigned with one scale per tensor, found
beforehand on drawn pictures. Scales found at run time would follow the whole batch, and then a
picture's embedding would depend on whose picture came with it.

Before that, large activations of single channels are moved into the weights, where a scale per
channel can hold them (G. Xiao et al., "SmoothQuant", 2023); in float32 the tower stays the same.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

Feed = Mapping[str, NDArray[Any]]
"""One run's input by name."""

_QKV: Final = frozenset({"q_proj", "k_proj", "v_proj"})
LADDER: Final[tuple[frozenset[str], ...]] = (
    _QKV | {"out_proj", "fc1", "fc2"},
    _QKV | {"out_proj", "fc1"},
    _QKV | {"fc1"},
    _QKV,
)
"""Which of a layer's matrices become eight-bit: all, then without the ones that mind most.

`fc2` comes first, since what it reads, the output of the activation function, has the longest tail.
The patch embedding and the projections are a hundredth of the work and stay in float32.
"""

# How a channel's size is shared between activation (1) and weight (0); the paper's value.
_SHARE: Final = 0.5
_SMALLEST: Final = 1e-5

# Intermediate files, in sizes of the float32 graph.
_ROOM: Final = 3


def smooth(tower: nn.Module, layers: Iterable[Any], batches: Iterable[Tensor]) -> None:
    """Evens out a tower's activations in place, without changing what it computes.

    Args:
        tower: Takes a batch as its only argument.
        layers: Its encoder layers.
        batches: What to measure the activations on.
    """
    largest: dict[nn.Module, Tensor] = {}

    def measure(norm: nn.Module, _inputs: object, output: Tensor) -> None:
        peak = output.abs().flatten(0, -2).amax(dim=0)
        largest[norm] = torch.maximum(largest.get(norm, peak), peak)

    pairs = [pair for layer in layers for pair in _norms(layer)]
    with torch.inference_mode(), ExitStack() as hooks:
        for norm, _ in pairs:
            hooks.enter_context(_Removed(norm.register_forward_hook(measure)))
        for batch in batches:
            tower(batch)
    with torch.no_grad():
        for norm, readers in pairs:
            weights = torch.stack([reader.weight.abs().amax(dim=0) for reader in readers])
            weight = weights.amax(dim=0).clamp(min=_SMALLEST)
            activation = largest[norm].clamp(min=_SMALLEST)
            factor = activation**_SHARE / weight ** (1 - _SHARE)
            norm.weight.div_(factor)
            norm.bias.div_(factor)
            for reader in readers:
                reader.weight.mul_(factor)


def _norms(layer: Any) -> list[tuple[Any, list[Any]]]:
    """A layer's norms, each with the matrices that read its output."""
    attention = layer.self_attn
    return [
        (layer.layer_norm1, [attention.q_proj, attention.k_proj, attention.v_proj]),
        (layer.layer_norm2, [layer.mlp.fc1]),
    ]


class _Removed:
    """A hook that is gone at the end of the block."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def quantise(source: Path, target: Path, feeds: Iterable[Feed], matrices: frozenset[str]) -> None:
    """Writes an eight-bit copy of a graph.

    Args:
        source: A float32 graph.
        target: The file to write.
        feeds: Inputs to find the ranges of the activations with.
        matrices: Names of the linear layers to quantise, from `LADDER`.

    Raises:
        OSError: There is too little room for it.
    """
    # Some intermediate files are written by native code, which cuts them off in silence.
    if shutil.disk_usage(target.parent).free < _ROOM * source.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    with _working_in(target.parent) as work:
        prepared = work / "prepared.onnx"
        # Symbolic shape inference cannot follow the reshapes, and nothing here needs it.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            _Reader(iter(feeds)),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=_nodes(prepared, matrices),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


@contextmanager
def _working_in(folder: Path) -> Iterator[Path]:
    """A temporary folder, which is also where libraries put their temporary files meanwhile.

    So a killed export leaves nothing elsewhere, and a small /tmp is no limit.
    """
    former = tempfile.tempdir
    with tempfile.TemporaryDirectory(dir=folder) as work:
        tempfile.tempdir = work
        try:
            yield Path(work)
        finally:
            tempfile.tempdir = former


def _nodes(path: Path, matrices: frozenset[str]) -> list[str]:
    """Names of the nodes that multiply by these linear layers' weights."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul"
        and node.input[1] in weights
        and not matrices.isdisjoint(node.name.split("/"))
    ]


class _Reader(CalibrationDataReader):
    """Feeds one after another, as onnxruntime asks for them."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        feed = next(self._feeds, None)
        return None if feed is None else {name: np.asarray(value) for name, value in feed.items()}
