"""The steps from a checkpoint to a complete folder; `exporter.export` decides where it goes."""

import importlib.metadata
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from exporter import checkpoint, pictures, quantise, verify
from exporter.checkpoint import Checkpoint, TextSide
from exporter.hub import Report, Source
from exporter.staging import write_manifest
from exporter.towers import INPUT_IDS, OPSET, PIXELS, ImageTower, TextTower, trace
from exporter.verify import FidelityError
from inference.artifact import (
    IMAGE_TOWER,
    TEXT_TOWER,
    TOKENIZER,
    Artifact,
    Fidelity,
    Manifest,
    Precision,
    Thresholds,
    sha256_of,
)
from inference.artifact import TextTower as TextEntry
from inference.preprocess import reference as square

_VERIFY_PICTURES: Final = 30
_CALIBRATION_PICTURES: Final = 48
_CALIBRATION_BATCH: Final = 8
_TOOLS: Final = ("onnx", "onnxruntime", "optimum", "optimum-onnx", "torch", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One tower on its way into a graph.

    Attributes:
        title: "image" or "text".
        file: Name of the graph's file.
        module: The graph as a module; its tower is changed in place by fp16 and int8.
        layers: The tower's encoder layers.
        input_name: The graph's input.
        batches: What to find the ranges of eight-bit activations with.
        check: Compares the file with PyTorch's answers, taken before any change.
    """

    title: str
    file: str
    module: ImageTower | TextTower
    layers: Iterable[Any]
    input_name: str
    batches: Callable[[], Iterator[NDArray[Any]]]
    check: Callable[[Artifact], Fidelity]


def build(
    source: Source,
    folder: Path,
    *,
    name: str,
    license_id: str,
    precision: Precision,
    thresholds: Thresholds | None,
    report: Report,
) -> Manifest:
    """Fills an empty folder with a verified artifact, the manifest last.

    Args:
        source: The checkpoint.
        folder: Where to write; empty.
        name: The model's name in the manifest.
        license_id: Its licence.
        precision: Arithmetic of the towers.
        thresholds: Decision points, where somebody has measured them.
        report: Told each step.

    Returns:
        The manifest that was written.

    Raises:
        ExportError: The checkpoint cannot be exported, or not well enough at this precision.
    """
    report("Loading the checkpoint")
    loaded = checkpoint.load(source.folder)
    manifest = Manifest(
        name=name,
        revision=source.revision,
        license=license_id,
        dimensions=loaded.dimensions,
        precision=precision,
        opset=OPSET,
        preprocessing=loaded.recipe.preprocessing,
        text=_text_entry(loaded.text),
        thresholds=thresholds,
        sha256={},
        tools={tool: importlib.metadata.version(tool) for tool in _TOOLS},
    )
    report("Computing the reference in PyTorch")
    sides = [_image_side(loaded, source.folder)]
    if loaded.text is not None:
        # Not by its own `save`, whose error on a full disk cannot be told from others.
        (folder / TOKENIZER).write_text(loaded.text.tokenizer.to_str(pretty=True), encoding="utf-8")
        sides.append(_text_side(loaded.text))
    elif loaded.has_text_tower:
        report("The checkpoint has no tokeniser, so its text tower is left out")
    fidelity = {
        side.title: _write(side, Artifact(folder=folder, manifest=manifest), report)
        for side in sides
    }
    digests = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    manifest = manifest.model_copy(update={"fidelity": fidelity, "sha256": digests})
    write_manifest(folder, manifest)
    return manifest


def _image_side(loaded: Checkpoint, folder: Path) -> _Side:
    drawn = list(pictures.drawn("verify", _VERIFY_PICTURES))
    expected = verify.image_reference(loaded, folder, drawn)

    def batches() -> Iterator[NDArray[Any]]:
        pixels = [
            square(data, loaded.recipe.preprocessing)
            for data in pictures.drawn("calibrate", _CALIBRATION_PICTURES)
        ]
        for first in range(0, len(pixels), _CALIBRATION_BATCH):
            yield np.stack(pixels[first : first + _CALIBRATION_BATCH])

    return _Side(
        title="image",
        file=IMAGE_TOWER,
        module=ImageTower(loaded.image_tower, loaded.recipe, loaded.finder),
        layers=loaded.image_tower.vision_model.encoder.layers,
        input_name=PIXELS,
        batches=batches,
        check=lambda artifact: verify.check_image_tower(artifact, expected, drawn),
    )


def _text_side(text: TextSide) -> _Side:
    expected = verify.text_reference(text, pictures.TEXTS)

    def batches() -> Iterator[NDArray[Any]]:
        yield text.token_ids(pictures.CALIBRATION_TEXTS).numpy()

    return _Side(
        title="text",
        file=TEXT_TOWER,
        module=TextTower(text.tower),
        layers=text.tower.text_model.encoder.layers,
        input_name=INPUT_IDS,
        batches=batches,
        check=lambda artifact: verify.check_text_tower(artifact, expected, pictures.TEXTS),
    )


def _text_entry(text: TextSide | None) -> TextEntry | None:
    if text is None:
        return None
    return TextEntry(context_length=text.context_length, pad_token_id=text.pad_token_id)


def _write(side: _Side, artifact: Artifact, report: Report) -> Fidelity:
    """Writes one tower's graph at the manifest's precision, and verifies it."""
    path = artifact.file(side.file)
    match artifact.manifest.precision:
        case Precision.INT8:
            return _write_int8(side, artifact, report)
        case Precision.FP16:
            side.module.tower.half()
        case Precision.FP32:
            pass
    report(f"Writing the {side.title} tower")
    trace(side.module, path)
    return _verify(side, artifact, report)


def _verify(side: _Side, artifact: Artifact, report: Report) -> Fidelity:
    report(f"Verifying the {side.title} tower against PyTorch")
    fidelity = side.check(artifact)
    shown = math.floor(fidelity.min_cosine * 1e6) / 1e6  # rounded up, it could reach a bar
    report(
        f"Verified: cosine similarity at least {shown:.6f} at batches of "
        f"{', '.join(map(str, fidelity.batch_sizes))} (the bar of {artifact.manifest.precision} "
        f"is {verify.BARS[artifact.manifest.precision]})"
    )
    return fidelity


def _write_int8(side: _Side, artifact: Artifact, report: Report) -> Fidelity:
    """Quantises as many of the matrices as the bar allows."""
    path = artifact.file(side.file)
    report(f"Evening out the activations of the {side.title} tower")
    batches = list(side.batches())
    quantise.smooth(side.module, side.layers, (torch.from_numpy(batch) for batch in batches))
    with tempfile.TemporaryDirectory(dir=artifact.folder) as work:
        wide = Path(work) / side.file
        trace(side.module, wide)
        for tried, matrices in enumerate(quantise.LADDER, start=1):
            report(f"Quantising the {side.title} tower: {', '.join(sorted(matrices))}")
            feeds = ({side.input_name: batch} for batch in batches)
            quantise.quantise(wide, path, feeds, matrices)
            try:
                return _verify(side, artifact, report)
            except FidelityError as error:
                if tried == len(quantise.LADDER):
                    raise
                report(f"{error} Leaving more of it in float32.")
    raise AssertionError("the ladder has at least one rung")  # pragma: no cover
