"""The judge itself: a graph that is wrong in each of the known ways must not pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("optimum")

import torch

from exporter import checkpoint, pictures, verify
from exporter.towers import OPSET, ImageTower, trace
from exporter.verify import FidelityError
from inference.artifact import Artifact, Manifest, Precision
from inference.errors import StartupError

pytestmark = pytest.mark.exporter

Forward = Callable[[Any, Any], dict[str, Any]]


@pytest.fixture
def judged(vision_checkpoint: Path, tmp_path: Path) -> Callable[..., Any]:
    """Exports a checkpoint with another forward pass, and verifies that."""

    def judge(
        forward: Forward,
        *,
        folder: Path = vision_checkpoint,
        precision: Precision = Precision.FP32,
    ) -> Any:
        loaded = checkpoint.load(folder)
        drawn = list(pictures.drawn("verify", 10))
        expected = verify.image_reference(loaded, folder, drawn)

        class Wrong(ImageTower):
            def forward(self, pixels: Any) -> dict[str, Any]:
                return forward(self, pixels)

        trace(Wrong(loaded.image_tower, loaded.recipe).eval(), tmp_path / "model.onnx")
        manifest = Manifest(
            name="wrong",
            dimensions=loaded.dimensions,
            precision=precision,
            opset=OPSET,
            preprocessing=loaded.recipe.preprocessing,
            sha256={},
        )
        artifact = Artifact(folder=tmp_path, manifest=manifest)
        return verify.check_image_tower(artifact, expected, drawn)

    return judge


def right(tower: Any, pixels: Any) -> Any:
    return ImageTower.forward(tower, pixels)["image_embeds"]


def test_the_right_graph_passes(judged: Callable[..., Any]) -> None:
    fidelity = judged(lambda tower, pixels: {"image_embeds": right(tower, pixels)})
    assert fidelity.min_cosine > 0.99999
    assert fidelity.pictures == 10


def without_projection(tower: Any, pixels: Any) -> dict[str, Any]:
    """What Optimum's stock configuration gives: the pooled state."""
    scaled = pixels.permute(0, 3, 1, 2) * tower.scale + tower.shift
    pooled = tower.tower.vision_model(pixel_values=scaled).pooler_output
    return {"image_embeds": pooled / pooled.norm(dim=-1, keepdim=True)}


def test_a_dropped_projection_is_found(judged: Callable[..., Any]) -> None:
    with pytest.raises(StartupError, match="24"):
        judged(without_projection)


def test_a_dropped_projection_is_found_where_it_changes_no_width(
    judged: Callable[..., Any], make_vision: Callable[..., None], tmp_path: Path
) -> None:
    make_vision(tmp_path / "square", hidden_size=48, projection_dim=48)
    with pytest.raises(FidelityError, match="below the bar"):
        judged(without_projection, folder=tmp_path / "square")


def test_a_missing_norm_is_found(judged: Callable[..., Any]) -> None:
    with pytest.raises(StartupError, match=r"length|norm"):
        judged(lambda tower, pixels: {"image_embeds": 2 * right(tower, pixels)})


def test_numbers_that_are_none_are_found(judged: Callable[..., Any]) -> None:
    with pytest.raises(StartupError):
        judged(lambda tower, pixels: {"image_embeds": right(tower, pixels) * torch.inf * 0})


def test_exchanged_colours_are_found_and_measured(judged: Callable[..., Any]) -> None:
    with pytest.raises(FidelityError, match=r"worst cosine similarity is 0\.\d+, 0\.\d+ below"):
        judged(lambda tower, pixels: {"image_embeds": right(tower, pixels.flip(-1))})


def test_a_wrong_scale_is_found(judged: Callable[..., Any]) -> None:
    def forward(tower: Any, pixels: Any) -> dict[str, Any]:
        return {"image_embeds": right(tower, (pixels.to(torch.float32) * 0.8).to(torch.uint8))}

    with pytest.raises(FidelityError):
        judged(forward)


def test_an_answer_that_depends_on_the_company_is_found(judged: Callable[..., Any]) -> None:
    """As quantisation ranges do that are found at run time, over the whole batch."""

    def forward(tower: Any, pixels: Any) -> dict[str, Any]:
        mixed = right(tower, pixels)
        mixed = mixed + 0.02 * mixed.sum(dim=0, keepdim=True)
        return {"image_embeds": mixed / mixed.norm(dim=-1, keepdim=True)}

    with pytest.raises(FidelityError, match=r"batch|bar"):
        judged(forward, precision=Precision.INT8)


def test_the_bars_rise_with_the_precision() -> None:
    assert verify.BARS[Precision.FP32] == 0.9999
    assert verify.BARS[Precision.FP16] == 0.999
    assert verify.BARS[Precision.INT8] == 0.99


def test_the_reference_is_pytorch_itself(vision_checkpoint: Path) -> None:
    loaded = checkpoint.load(vision_checkpoint)
    drawn = list(pictures.drawn("verify", 9))
    embeddings = verify.image_reference(loaded, vision_checkpoint, drawn)
    assert embeddings.shape == (9, 24)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
