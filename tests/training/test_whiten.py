from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection

from exporter import locator
from exporter.locator import Locator, LocatorSettings
from exporter.training import whiten
from exporter.training.config import ModelSettings
from exporter.training.model import build_tower, save_folder

pytestmark = pytest.mark.exporter

# More dimensions than the tower is wide, as in the bundled model.
TINY = ModelSettings(
    image_size=32, patch_size=8, hidden_size=32, layers=1, heads=2, mlp_size=64, dimensions=48
)


@pytest.fixture
def tower() -> CLIPVisionModelWithProjection:
    torch.manual_seed(0)
    return build_tower(TINY).eval()


def _views(tower: CLIPVisionModelWithProjection) -> Tensor:
    """Maps that differ a little, and of each three views that differ in brightness, by far."""
    draw = torch.Generator().manual_seed(1)
    maps = torch.rand(200, 1, 3, 32, 32, generator=draw)
    light = 3 * torch.rand(200, 3, 1, 1, 1, generator=draw)
    noise = 0.3 * torch.randn(200, 3, 3, 32, 32, generator=draw)
    with torch.inference_mode():
        views = (maps + light + noise).flatten(0, 1)
        embeds = tower(pixel_values=views).image_embeds
    return embeds.unflatten(0, (200, 3))


def _recall(views: Tensor) -> float:
    unit = functional.normalize(views, dim=-1)
    return float(((unit[:, 1] @ unit[:, 0].T).argmax(1) == torch.arange(200)).float().mean())


def test_what_views_of_one_map_differ_in_counts_less(tower: CLIPVisionModelWithProjection) -> None:
    before = _views(tower)

    whiten.whiten(tower, before)

    after = _views(tower)
    assert _recall(after) > _recall(before) + 0.05
    middle = functional.normalize(after, dim=-1).flatten(0, 1).mean(0).norm()
    assert middle < 0.3 * functional.normalize(before, dim=-1).flatten(0, 1).mean(0).norm()
    assert torch.allclose(after.norm(dim=-1).mean(), before.norm(dim=-1).mean(), rtol=0.01)


def test_a_folder_is_whitened_with_its_locator(
    tower: CLIPVisionModelWithProjection, tmp_path: Path
) -> None:
    finder = Locator(LocatorSettings(image_size=64, second_size=32)).eval()
    save_folder(tower, finder, tmp_path / "trained")
    command = ["--model", str(tmp_path / "trained"), "--out", str(tmp_path / "whitened")]

    assert whiten.main([*command, "--maps", "20", "--workers", "1"]) == 0

    written = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "whitened")
    changed = {
        name
        for name, value in written.state_dict().items()
        if not torch.equal(value, tower.state_dict()[name])
    }
    assert changed == {"visual_projection.weight", "vision_model.post_layernorm.bias"}
    found = locator.load(tmp_path / "whitened")
    assert found is not None
    assert found.settings == finder.settings
