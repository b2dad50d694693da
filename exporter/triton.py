"""An artifact as a model repository of Triton: one folder a tower, ready for `tritonserver`.

    OUT/manifest.json             what it is; written last, and nothing to Triton
    OUT/NAME/config.pbtxt
    OUT/NAME/VERSION/model.onnx
    OUT/NAME_text/...             where there is a text tower, with its tokenizer.json

The version is the number that names the vector space, so every answer of Triton's tells which model
made it. The graphs are the artifact's, byte for byte.
"""

import shutil
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf import text_format

from exporter.errors import ExportError, first_line
from exporter.staging import write_manifest
from inference.artifact import IMAGE_TOWER, MANIFEST, TEXT_TOWER, TOKENIZER, Artifact, Manifest
from inference.oip import models
from inference.oip.models import Model, Tensor

CONFIG: Final = "config.pbtxt"
MAX_BATCH: Final = 64

# Past it Triton refuses, as mapseek's server does past MAPSEEK_QUEUE_SIZE.
_QUEUE_SIZE: Final = 256
# As the client counts them: 1 is interactive, 2 is bulk.
_PRIORITIES: Final = 2
_ONNX_TYPES: Final = {"UINT8": "tensor(uint8)", "INT64": "tensor(int64)", "FP32": "tensor(float)"}
_HEADER: Final = """\
# Written by `mapseek export --layout triton`. Batching and instances may be changed; the parameter
# mapseek_manifest and the version tell mapseek's client whose vectors these are.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What Triton is told about running the model.

    Attributes:
        max_batch: Most pictures (or texts) in one run.
        instances: Copies of the model for each device; 0 leaves it to Triton.
    """

    max_batch: int = MAX_BATCH
    instances: int = 0


def repository_files(manifest: Manifest) -> AbstractSet[str]:
    """Every file of the repository, relative to its folder."""
    files = {MANIFEST}
    for tower in _towers(manifest, MAX_BATCH):
        name = tower.model.name
        files |= {f"{name}/{CONFIG}", f"{name}/{tower.model.version}/{IMAGE_TOWER}"}
        files |= {f"{name}/{file}" for file in tower.beside}
    return files


def write(artifact: Artifact, folder: Path, serving: Serving) -> None:
    """Writes the repository, the manifest last.

    Args:
        artifact: The model; its files are copied.
        folder: Where to; see `exporter.staging.staged`.
        serving: What Triton is told.

    Raises:
        ExportError: A graph is not what the manifest says.
    """
    for tower in _towers(artifact.manifest, serving.max_batch):
        graph = artifact.file(tower.file)
        _check(graph, tower.model)
        home = folder / tower.model.name
        version = home / str(tower.model.version)
        version.mkdir(parents=True)
        (home / CONFIG).write_text(config(tower.model, serving), encoding="utf-8")
        shutil.copyfile(graph, version / IMAGE_TOWER)
        for file in tower.beside:
            shutil.copyfile(artifact.file(file), home / file)
    write_manifest(folder, artifact.manifest)


def config(model: Model, serving: Serving) -> str:
    """The text of a model's config.pbtxt.

    Batches are made as mapseek's server makes them: what waits is run as soon as an instance is
    free, interactive requests first.
    """
    message = model.config()
    batching = message.dynamic_batching
    batching.priority_levels = _PRIORITIES
    batching.default_priority_level = 1
    batching.default_queue_policy.allow_timeout_override = True
    batching.default_queue_policy.max_queue_size = _QUEUE_SIZE
    if serving.instances:
        message.instance_group.add(count=serving.instances)
    (tensor,) = model.inputs
    for size in sorted({serving.max_batch, 1}, reverse=True):  # so that memory is taken once
        warmup = message.model_warmup.add(name=f"batch of {size}", batch_size=size)
        data = warmup.inputs[tensor.name]
        data.data_type = message.input[0].data_type
        data.dims.extend(tensor.dims)
        data.zero_data = True
    return _HEADER + text_format.MessageToString(message, as_utf8=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tower:
    """A graph of the artifact, the model that it becomes, and what lies beside that."""

    file: str
    model: Model
    beside: tuple[str, ...] = ()


def _towers(manifest: Manifest, max_batch: int) -> list[_Tower]:
    version = models.version_of(manifest.model_id)
    parameters = {models.MANIFEST: manifest.model_dump_json(exclude={"tools"})}
    towers = [
        _Tower(
            file=IMAGE_TOWER,
            model=Model(
                name=models.image_model_name(manifest),
                version=version,
                inputs=(models.pixels(manifest),),
                output=models.image_embeds(manifest),
                max_batch=max_batch,
                parameters=parameters,
            ),
        )
    ]
    if manifest.text is not None:
        tokens = Tensor(name="input_ids", datatype="INT64", dims=(manifest.text.context_length,))
        towers.append(
            _Tower(
                file=TEXT_TOWER,
                model=Model(
                    name=models.text_model_name(manifest),
                    version=version,
                    inputs=(tokens,),
                    output=models.text_embeds(manifest),
                    max_batch=max_batch,
                    parameters=parameters,
                ),
                beside=(TOKENIZER,),
            )
        )
    return towers


def _check(graph: Path, model: Model) -> None:
    """Compares what Triton is told with the graph itself.

    Raises:
        ExportError: They differ, or onnxruntime cannot read the graph.
    """
    import onnxruntime  # noqa: PLC0415 (of an extra, and needed for this only)

    try:
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise ExportError(f"{graph} cannot be read: {first_line(error)}") from error
    for wanted, found in (
        (model.inputs, session.get_inputs()),
        ((model.output,), session.get_outputs()),
    ):
        told = [(tensor.name, _ONNX_TYPES[tensor.datatype], tensor.dims) for tensor in wanted]
        real = [(tensor.name, tensor.type, tuple(tensor.shape[1:])) for tensor in found]
        if not all(map(_agree, told, real)) or len(told) != len(real):
            raise ExportError(
                f"{graph} has {real}, and a repository of {told} was to be written: export the "
                "model again."
            )


def _agree(
    told: tuple[str, str, tuple[int, ...]], real: tuple[str, str, tuple[int | str, ...]]
) -> bool:
    """Whether name and type are equal, and the dimensions are or are free in the graph."""
    return (
        told[:2] == real[:2]
        and len(told[2]) == len(real[2])
        and all(
            wanted == found or not isinstance(found, int)
            for wanted, found in zip(told[2], real[2], strict=True)
        )
    )
