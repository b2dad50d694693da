"""What a server of the Open Inference Protocol says of a model, in the client's terms.

The protocol knows tensors only. The rest is in the artifact's manifest, which mapseek's server and
`mapseek export --layout triton` put into the parameters of the model's configuration: the model's
id, how pictures are scaled, the thresholds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mapseek.oip import open_inference_pb2 as oip
from pydantic import ValidationError

from inference.artifact import Manifest
from inference.client.results import Limits, ModelInfo, Thresholds
from inference.errors import UnsupportedError
from inference.oip.models import (
    IMAGES,
    LIMIT_PREFIX,
    MANIFEST,
    PROVIDER,
    pixels,
    version_of,
)
from inference.preprocess import Preprocessor

_MIB = 1024 * 1024
# What a server that tells no limits is sent at most.
_LIMITS = {
    "max_image_bytes": 16 * _MIB,
    "max_image_pixels": 40_000_000,
    "max_message_bytes": 17 * _MIB,
    "max_text_chars": 2000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A model of a server.

    Attributes:
        name: Its name there.
        info: It in the client's terms.
        manifest: Of its artifact.
        preprocess: Makes its pixels; None where the server itself decodes.
    """

    name: str
    info: ModelInfo
    manifest: Manifest
    preprocess: Preprocessor | None


def read_manifest(
    metadata: oip.ModelMetadataResponse, config: oip.ModelConfig, *, server: str
) -> Manifest:
    """The manifest of the artifact behind a model.

    Raises:
        UnsupportedError: There is none, or it is another model's.
    """
    text = config.parameters[MANIFEST].string_value if MANIFEST in config.parameters else ""
    if not text:
        raise UnsupportedError(
            f"{server}: {metadata.name} has no parameter {MANIFEST}, so nobody can tell which "
            "model's vectors it gives: write the repository with `mapseek export --layout triton`."
        )
    try:
        manifest = Manifest.model_validate_json(text)
        version = version_of(manifest.model_id)
    except (ValidationError, KeyError, ValueError) as error:
        raise UnsupportedError(
            f"{server}: the parameter {MANIFEST} of {metadata.name} cannot be read; it may be of a "
            "newer mapseek."
        ) from error
    if str(version) not in metadata.versions:
        raise UnsupportedError(
            f"{server}: {metadata.name} has the version {', '.join(metadata.versions) or 'none'}, "
            f"and its manifest stands for {version}: write the repository again with "
            "`mapseek export --layout triton`."
        )
    return manifest


def card(
    manifest: Manifest,
    metadata: oip.ModelMetadataResponse,
    config: oip.ModelConfig,
    *,
    has_text: bool,
    server: str,
) -> Card:
    """Everything about a model.

    Args:
        manifest: Of its artifact.
        metadata: Its tensors.
        config: Its configuration.
        has_text: Whether there is a model that reads texts beside it.
        server: The server's name, for messages.

    Raises:
        UnsupportedError: It takes neither encoded images nor the tower's pixels.
    """
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    limits = _limits(parameters)
    thresholds = None
    if manifest.thresholds is not None:
        thresholds = Thresholds(same=manifest.thresholds.same, similar=manifest.thresholds.similar)
    info = ModelInfo(
        id=manifest.model_id,
        name=manifest.name,
        revision=manifest.revision,
        dimensions=manifest.dimensions,
        image_size=manifest.preprocessing.image_size,
        precision=manifest.precision,
        provider=parameters.get(PROVIDER, "") or metadata.platform,
        has_text=has_text,
        thresholds=thresholds,
        limits=limits,
    )
    preprocess = None
    if not takes_images(metadata):
        _check_pixels(metadata, manifest, server)
        preprocess = Preprocessor(
            manifest.preprocessing,
            max_image_bytes=limits.max_image_bytes,
            max_image_pixels=limits.max_image_pixels,
        )
    return Card(name=metadata.name, info=info, manifest=manifest, preprocess=preprocess)


def takes_images(metadata: oip.ModelMetadataResponse) -> bool:
    """Whether a model takes encoded images."""
    return any(
        tensor.name == IMAGES.name and tensor.datatype == IMAGES.datatype
        for tensor in metadata.inputs
    )


def _check_pixels(metadata: oip.ModelMetadataResponse, manifest: Manifest, server: str) -> None:
    wanted = pixels(manifest)
    for tensor in metadata.inputs:
        fits = tensor.datatype == wanted.datatype and tuple(tensor.shape[1:]) == wanted.dims
        if tensor.name == wanted.name and fits:
            return
    raise UnsupportedError(
        f"{server}: {metadata.name} takes neither {IMAGES.name} nor {wanted.name} "
        f"({wanted.datatype} [N, {', '.join(map(str, wanted.dims))}])."
    )


def _limits(parameters: Mapping[str, str]) -> Limits:
    told = {}
    for name, default in _LIMITS.items():
        value = parameters.get(LIMIT_PREFIX + name, "")
        told[name] = int(value) if value.isdecimal() else default
    return Limits(**told)
