"""Models as the protocol describes them: names, tensors, and the parameters that mapseek adds.

Shared by everyone who describes our models or reads the description: the server, the exporter (for
Triton) and the client.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mapseek.oip import open_inference_pb2 as oip

from inference.artifact import IMAGE_TOWER, Manifest

PLATFORM: Final = "onnxruntime_onnx"

# Parameters of a model's configuration.
MANIFEST: Final = "mapseek_manifest"
PROVIDER: Final = "mapseek_provider"
LIMIT_PREFIX: Final = "mapseek_"  # before the fields of `mapseek.v1.Limits`

_DATA_TYPES: Final = {
    "BYTES": oip.TYPE_STRING,
    "UINT8": oip.TYPE_UINT8,
    "INT64": oip.TYPE_INT64,
    "FP32": oip.TYPE_FP32,
}
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One input or output of a model.

    Attributes:
        name: Its name.
        datatype: The protocol's word for the type of its elements.
        dims: Its shape without the dimension of the batch.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model that can be asked for.

    Attributes:
        name: Its name.
        version: Its only version, a number that names the vector space.
        inputs: What it takes: one of these a request.
        output: What it gives.
        max_batch: Most elements of one request.
        parameters: Of its configuration.
    """

    name: str
    version: int
    inputs: tuple[Tensor, ...]
    output: Tensor
    max_batch: int
    parameters: Mapping[str, str] = field(default_factory=dict)

    def metadata(self) -> oip.ModelMetadataResponse:
        """Its inputs and outputs."""
        return oip.ModelMetadataResponse(
            name=self.name,
            versions=[str(self.version)],
            platform=PLATFORM,
            inputs=[_metadata(tensor) for tensor in self.inputs],
            outputs=[_metadata(self.output)],
        )

    def config(self) -> oip.ModelConfig:
        """What there is to say about it in Triton's terms."""
        config = oip.ModelConfig(
            name=self.name,
            platform=PLATFORM,
            backend="onnxruntime",
            version_policy=oip.ModelVersionPolicy(
                specific=oip.ModelVersionPolicy.Specific(versions=[self.version])
            ),
            max_batch_size=self.max_batch,
            default_model_filename=IMAGE_TOWER,
            dynamic_batching=oip.ModelDynamicBatching(),
        )
        for tensor in self.inputs:
            config.input.add(
                name=tensor.name,
                data_type=_DATA_TYPES[tensor.datatype],
                dims=tensor.dims,
                optional=len(self.inputs) > 1,
            )
        config.output.add(
            name=self.output.name,
            data_type=_DATA_TYPES[self.output.datatype],
            dims=self.output.dims,
        )
        for name, value in self.parameters.items():
            config.parameters[name].string_value = value
        return config


def _metadata(tensor: Tensor) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=[-1, *tensor.dims]
    )


PIXELS: Final = "pixels"
"""Name of the image tower's own input, whatever its size."""
IMAGES: Final = Tensor(name="images", datatype="BYTES", dims=(1,))
TEXTS: Final = Tensor(name="texts", datatype="BYTES", dims=(1,))


def pixels(manifest: Manifest) -> Tensor:
    """The image tower's own input: RGB at its size."""
    side = manifest.preprocessing.image_size
    return Tensor(name=PIXELS, datatype="UINT8", dims=(side, side, 3))


def image_embeds(manifest: Manifest) -> Tensor:
    """The image tower's output: unit vectors."""
    return Tensor(name="image_embeds", datatype="FP32", dims=(manifest.dimensions,))


def text_embeds(manifest: Manifest) -> Tensor:
    """The text tower's output: unit vectors in the space of the images."""
    return Tensor(name="text_embeds", datatype="FP32", dims=(manifest.dimensions,))


def image_model_name(manifest: Manifest) -> str:
    """The image tower's name: the model's, with _ for what no name of a folder may hold."""
    return _NOT_IN_NAMES.sub("_", manifest.name).lstrip(".") or "model"


def text_model_name(manifest: Manifest) -> str:
    """The text tower's name."""
    return f"{image_model_name(manifest)}_text"


def version_of(model_id: str) -> int:
    """The version that names a vector space: the fingerprint of a model's id as a number.

    Raises:
        ValueError: The id has no fingerprint.
    """
    return int(model_id.rpartition("@")[2], 16)


def served(
    manifest: Manifest, *, max_batch: int, parameters: Mapping[str, str]
) -> dict[str, Model]:
    """What mapseek's server offers of an artifact, by name.

    Args:
        manifest: The artifact's.
        max_batch: Most elements of one request.
        parameters: What else to tell of it.
    """
    parameters = {MANIFEST: manifest.model_dump_json(exclude={"tools"}), **parameters}
    version = version_of(manifest.model_id)
    name = image_model_name(manifest)
    models = [
        Model(
            name=given,
            version=version,
            inputs=inputs,
            output=image_embeds(manifest),
            max_batch=max_batch,
            parameters=parameters,
        )
        for given, inputs in (
            (name, (IMAGES, pixels(manifest))),
            # As Triton serves it: for tools that fill every input that there is.
            (f"{name}_pixels", (pixels(manifest),)),
        )
    ]
    if manifest.text is not None:
        models.append(
            Model(
                name=text_model_name(manifest),
                version=version,
                inputs=(TEXTS,),
                output=text_embeds(manifest),
                max_batch=max_batch,
                parameters=parameters,
            )
        )
    return {model.name: model for model in models}
