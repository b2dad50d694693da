"""Real ONNX models that are small enough to be understood, in complete model folders."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from inference.artifact import (
    IMAGE_TOWER,
    MANIFEST,
    TEXT_TOWER,
    TOKENIZER,
    Manifest,
    Precision,
    TextTower,
    sha256_of,
)
from tests.inference.core.pictures import preprocessing

SIDE = 8
CONTEXT = 6
DIMENSIONS = 5
# Runs of more than one item would need this many bytes for each further one: more than there are.
_ABSURD = 1 << 50

_rng = np.random.default_rng(7)
IMAGE_WEIGHTS = _rng.normal(size=(SIDE * SIDE * 3, DIMENSIONS)).astype(np.float32)
TEXT_WEIGHTS = _rng.normal(size=(CONTEXT, DIMENSIONS)).astype(np.float32)


def expected(items: NDArray[Any], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the towers compute."""
    rows = items.reshape(len(items), -1).astype(np.float32) @ weights
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows / lengths
    return unit


def save_tower(
    path: Path,
    *,
    input_name: str = "pixels",
    input_type: int = TensorProto.UINT8,
    input_shape: tuple[int | str, ...] = ("N", SIDE, SIDE, 3),
    weights: NDArray[np.float32] = IMAGE_WEIGHTS,
    output_name: str = "embeds",
    output_type: int = TensorProto.FLOAT,
    unit: bool = True,
    shaped_as: tuple[int, int] | None = None,
    hungry: bool = False,
) -> None:
    """Writes a graph that projects its flattened input and scales the rows to unit length.

    Args:
        path: Where to.
        input_name: Name of the input.
        input_type: Its type.
        input_shape: Its shape.
        weights: The projection.
        output_name: Name of the output.
        output_type: Type of the output.
        unit: Whether the rows are scaled.
        shaped_as: Shape that the output takes in a run, and that nobody can tell before.
        hungry: Whether a batch of more than one needs more memory than there is.
    """
    constants: dict[str, NDArray[Any]] = {"weights": weights, "one": np.array([1], np.int64)}
    nodes = [
        helper.make_node("Cast", [input_name], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["rows"]),
    ]
    rows = "rows"
    if unit:
        nodes += [
            helper.make_node("ReduceL2", [rows, "one"], ["lengths"], keepdims=1),
            helper.make_node("Div", [rows, "lengths"], ["unit"]),
        ]
        rows = "unit"
    if shaped_as is not None:
        constants |= {"shape": np.array(shaped_as, np.int64), "none": np.array([0], np.int64)}
        nodes += [
            helper.make_node("ReduceMax", ["floats"], ["brightest"], keepdims=0),
            helper.make_node("Cast", ["brightest"], ["number"], to=TensorProto.INT64),
            helper.make_node("Mul", ["number", "none"], ["unforeseen"]),
            helper.make_node("Add", ["shape", "unforeseen"], ["target"]),
            helper.make_node("Reshape", [rows, "target"], ["shaped"]),
        ]
        rows = "shaped"
    if hungry:
        constants |= {"absurd": np.array([_ABSURD], np.int64)}
        nodes += [
            helper.make_node("Shape", [rows], ["size"], start=0, end=1),
            helper.make_node("Sub", ["size", "one"], ["others"]),
            helper.make_node("Mul", ["others", "absurd"], ["room"]),
            helper.make_node("ConstantOfShape", ["room"], ["vast"]),
            helper.make_node("ReduceSum", ["vast"], ["nothing"], keepdims=0),
            helper.make_node("Add", [rows, "nothing"], ["fed"]),
        ]
        rows = "fed"
    nodes.append(helper.make_node("Cast", [rows], [output_name], to=output_type))
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info(input_name, input_type, input_shape)],
        [helper.make_tensor_value_info(output_name, output_type, ("N", "D"))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)


def save_text_tower(path: Path, *, output_name: str = "embeds") -> None:
    save_tower(
        path,
        output_name=output_name,
        input_name="input_ids",
        input_type=TensorProto.INT64,
        input_shape=("N", CONTEXT),
        weights=TEXT_WEIGHTS,
    )


def save_tokenizer(path: Path, *, marks: bool = True) -> None:
    """Writes a tokenizer of a few words; `marks` puts CLIP's start and end around a text."""
    words = ["<pad>", "<start>", "<end>", "a", "b", "map", "<unknown>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if marks:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
        )
    tokenizer.save(str(path))


def write_manifest(folder: Path, *, name: str = "tiny", text: TextTower | None = None) -> None:
    files = [path for path in folder.iterdir() if path.name != MANIFEST]
    fields: dict[str, Any] = {
        "name": name,
        "dimensions": DIMENSIONS,
        "precision": Precision.FP32,
        "opset": 18,
        "preprocessing": preprocessing("squash", side=SIDE),
        "text": text,
        "sha256": {path.name: sha256_of(path) for path in files},
    }
    (folder / MANIFEST).write_text(Manifest(**fields).model_dump_json())


def save_model(folder: Path, *, name: str = "tiny", text: bool = False, **tower: Any) -> Path:
    """Writes a complete model folder; `tower` changes its image tower."""
    folder.mkdir(exist_ok=True)
    save_tower(folder / IMAGE_TOWER, **tower)
    if text:
        save_text_tower(folder / TEXT_TOWER, output_name="text_embeds")
        save_tokenizer(folder / TOKENIZER)
    entry = TextTower(context_length=CONTEXT, pad_token_id=0) if text else None
    write_manifest(folder, name=name, text=entry)
    return folder
