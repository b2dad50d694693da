"""The checkpoint of the run for a GPU: of ViT-B/32's geometry, and one that can be exported."""

from pathlib import Path

import pytest

from benchmarks.gpu.checkpoint import VIT_B32, save
from tests.exporter.conftest import SMALL_VISION

transformers = pytest.importorskip("transformers")


def test_it_is_clips_own_geometry() -> None:
    own = transformers.CLIPVisionConfig()
    assert {name: getattr(own, name) for name in VIT_B32} == VIT_B32


def test_it_can_be_loaded(tmp_path: Path) -> None:
    save(tmp_path, **SMALL_VISION)
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path)
    assert model.config.image_size == SMALL_VISION["image_size"]
    assert model.visual_projection.out_features == SMALL_VISION["projection_dim"]
    assert (tmp_path / "preprocessor_config.json").exists()
