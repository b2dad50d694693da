"""A checkpoint's `preprocessor_config.json` in the artifact's terms.

The file has had three dialects: the first CLIP feature extractor (`"size": 224`), the image
processor (`"size": {"shortest_edge": 224}`), and the fast one, which adds keys that are mostly
null. Whatever the server could not do exactly is refused: a picture prepared a little differently
gives an embedding that is a little wrong, and nobody would ever be told.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from exporter.errors import ExportError
from inference.artifact import Preprocessing

FILE: Final = "preprocessor_config.json"

# What `transformers` assumes where the file is silent.
_CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
_CLIP_SIZE: Final = 224
_RESCALE: Final = 1 / 255

# The numbers are Pillow's `Resampling` members, as the file writes them.
_FILTERS: Final[Mapping[object, Literal["bilinear", "bicubic"]]] = {2: "bilinear", 3: "bicubic"}

_UNDERSTOOD: Final = frozenset(
    {
        "crop_size", "do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize",
        "image_mean", "image_std", "resample", "rescale_factor", "size",
    }
)  # fmt: skip
# They name code or say how a library moves arrays about; no pixel depends on them.
_IRRELEVANT: Final = frozenset(
    {
        "auto_map", "data_format", "default_to_square", "device", "disable_grouping",
        "feature_extractor_type", "image_processor_type", "input_data_format", "processor_class",
        "return_tensors", "transformers_version",
    }
)  # fmt: skip

Channels = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a picture becomes the tower's floats: outside the graph, then inside it.

    Attributes:
        preprocessing: What the server does: the way to square uint8 pixels.
        rescale: Inside the graph: the factor on the bytes 0..255.
        mean: Inside the graph: subtracted after rescaling, for red, green and blue.
        std: Inside the graph: divided by, last.
    """

    preprocessing: Preprocessing
    rescale: float
    mean: Channels
    std: Channels


def read(folder: Path, *, image_size: int, render_margin: float = 0.0) -> Recipe:
    """Reads a checkpoint folder's preprocessing.

    Args:
        folder: The checkpoint.
        image_size: Side in pixels of the square that the tower was built for.
        render_margin: See `Preprocessing`; no preprocessor's file says it.

    Raises:
        ExportError: The file is missing, is no JSON object, or asks for what is not supported.
    """
    path = folder / FILE
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ExportError(
            f"{folder} has no {FILE}, so nobody can say how its pictures are prepared: "
            "copy the file from the model that it was trained from."
        ) from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ExportError(f"{path} is no JSON object.")
    return parse(config, image_size=image_size, render_margin=render_margin, where=str(path))


def parse(
    config: Mapping[str, object],
    *,
    image_size: int,
    render_margin: float = 0.0,
    where: str = FILE,
) -> Recipe:
    """Translates the content of a `preprocessor_config.json`.

    Args:
        config: The file's object.
        image_size: Side in pixels of the square that the tower was built for.
        render_margin: As in `read`.
        where: Begins the error messages.

    Raises:
        ExportError: It asks for what is not supported; the message names the setting.
    """
    settings = {key: value for key, value in config.items() if value is not None}
    unknown = [key for key in sorted(settings.keys() - _UNDERSTOOD - _IRRELEVANT) if settings[key]]
    if unknown:
        raise ExportError(f"{where}: {unknown[0]} = {settings[unknown[0]]!r} is not supported.")
    for switch in ("do_resize", "do_rescale"):
        if not settings.get(switch, True):
            raise ExportError(f"{where}: {switch} = false is not supported.")
    resample = settings.get("resample", 3)
    if not isinstance(resample, int) or resample not in _FILTERS:
        raise ExportError(
            f"{where}: resample = {resample!r} is not supported, only 2 (bilinear) and 3 (bicubic)."
        )
    normalise = bool(settings.get("do_normalize", True))
    mean = _channels(settings, "image_mean", _CLIP_MEAN, where) if normalise else (0.0, 0.0, 0.0)
    std = _channels(settings, "image_std", _CLIP_STD, where) if normalise else (1.0, 1.0, 1.0)
    if 0 in std:
        raise ExportError(f"{where}: image_std holds a zero.")
    return Recipe(
        preprocessing=Preprocessing(
            image_size=image_size,
            resize=_resize(settings, image_size, where),
            interpolation=_FILTERS[resample],
            render_margin=render_margin,
        ),
        rescale=_number(settings.get("rescale_factor", _RESCALE), "rescale_factor", where),
        mean=mean,
        std=std,
    )


def _resize(
    settings: Mapping[str, object], image_size: int, where: str
) -> Literal["squash", "crop"]:
    """Which of the two ways to a square the settings describe."""
    size = settings.get("size", {"shortest_edge": _CLIP_SIZE})
    if isinstance(size, int):  # the first dialect
        size = {"shortest_edge": size}
    crops = bool(settings.get("do_center_crop", True))
    crop = settings.get("crop_size", {"height": _CLIP_SIZE, "width": _CLIP_SIZE})
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    square = {"height": image_size, "width": image_size}
    if crops and crop != square:
        raise ExportError(
            f"{where}: crop_size = {crop!r} does not give the {image_size} x {image_size} pixels "
            "that the model reads."
        )
    if size == square:  # the crop, if there is one, cuts nothing off
        return "squash"
    if size == {"shortest_edge": image_size} and crops:
        return "crop"
    raise ExportError(
        f"{where}: size = {size!r} with do_center_crop = {str(crops).lower()} is not supported: "
        f'use {{"height": {image_size}, "width": {image_size}}}, or '
        f'{{"shortest_edge": {image_size}}} with a centre crop.'
    )


def _channels(settings: Mapping[str, object], key: str, default: Channels, where: str) -> Channels:
    value = settings.get(key, default)
    if not isinstance(value, list | tuple) or len(value) != len(default):
        raise ExportError(f"{where}: {key} = {value!r} is not a list of three numbers.")
    red, green, blue = (_number(item, key, where) for item in value)
    return red, green, blue


def _number(value: object, key: str, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ExportError(f"{where}: {key} holds {value!r}, which is no number.")
