import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.errors import ExportError
from exporter.preprocessing import parse, read

Make = Callable[..., dict[str, Any]]


def test_height_and_width_without_a_crop_squash(preprocessor_config: Make) -> None:
    recipe = parse(preprocessor_config(128), image_size=128)
    assert recipe.preprocessing.resize == "squash"
    assert recipe.preprocessing.image_size == 128
    assert recipe.preprocessing.interpolation == "bicubic"
    assert recipe.mean == (0.5, 0.4, 0.3)
    assert recipe.std == (0.2, 0.25, 0.3)
    assert recipe.rescale == 1 / 255


def test_shortest_edge_with_a_crop_crops(preprocessor_config: Make) -> None:
    recipe = parse(preprocessor_config(224, crop=True), image_size=224)
    assert recipe.preprocessing.resize == "crop"


def test_the_first_dialect_of_the_file() -> None:
    """As openai/clip-vit-base-patch32 has it."""
    config = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    recipe = parse(config, image_size=224)
    assert recipe.preprocessing.resize == "crop"
    assert recipe.rescale == 1 / 255


def test_an_empty_file_means_the_defaults_of_clip() -> None:
    recipe = parse({}, image_size=224)
    assert recipe.preprocessing.resize == "crop"
    assert recipe.mean == (0.48145466, 0.4578275, 0.40821073)


def test_null_settings_of_the_fast_processor_are_no_settings(preprocessor_config: Make) -> None:
    config = preprocessor_config(64) | {"device": None, "do_pad": None, "pad_size": None}
    assert parse(config, image_size=64).preprocessing.resize == "squash"


def test_without_normalisation_only_the_rescaling_is_left(preprocessor_config: Make) -> None:
    recipe = parse(preprocessor_config(64) | {"do_normalize": False}, image_size=64)
    assert recipe.mean == (0, 0, 0)
    assert recipe.std == (1, 1, 1)


def test_bilinear(preprocessor_config: Make) -> None:
    recipe = parse(preprocessor_config(64) | {"resample": 2}, image_size=64)
    assert recipe.preprocessing.interpolation == "bilinear"


def test_a_crop_that_cuts_nothing_off_is_no_crop(preprocessor_config: Make) -> None:
    recipe = parse(preprocessor_config(64) | {"do_center_crop": True}, image_size=64)
    assert recipe.preprocessing.resize == "squash"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"resample": 0}, "resample"),
        ({"resample": [3]}, "resample"),
        ({"do_pad": True}, "do_pad"),
        ({"size": {"longest_edge": 64}}, "longest_edge"),
        ({"size": {"height": 64, "width": 32}}, "size"),
        ({"size": {"shortest_edge": 64}}, "do_center_crop = false"),
        ({"size": {"shortest_edge": 72}, "do_center_crop": True}, "shortest_edge"),
        ({"crop_size": {"height": 48, "width": 48}, "do_center_crop": True}, "crop_size"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_mean": "clip"}, "image_mean"),
        ({"image_std": [1, 0, 1]}, "image_std"),
        ({"image_std": [1, float("nan"), 1]}, "image_std"),
        ({"rescale_factor": True}, "rescale_factor"),
    ],
)
def test_what_the_server_cannot_do_is_refused_by_name(
    preprocessor_config: Make, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(ExportError, match=named):
        parse(preprocessor_config(64) | change, image_size=64)


def test_a_size_that_the_tower_does_not_read_is_refused(preprocessor_config: Make) -> None:
    with pytest.raises(ExportError, match="size"):
        parse(preprocessor_config(128), image_size=224)


def test_the_file_is_read_from_the_checkpoint(preprocessor_config: Make, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(96)))
    assert read(tmp_path, image_size=96).preprocessing.image_size == 96


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(content, errors="surrogateescape")
    with pytest.raises(ExportError, match=r"preprocessor_config\.json"):
        read(tmp_path, image_size=96)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no preprocessor_config\.json"):
        read(tmp_path, image_size=96)
