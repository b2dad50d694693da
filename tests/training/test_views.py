import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from exporter.training import stream
from exporter.training.views import Viewer, Views

pytestmark = pytest.mark.exporter


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    maps = stream.draw_items(stream.Source(seed=8), range(8))
    pixels = torch.from_numpy(maps.pixels).permute(0, 3, 1, 2).float() / 255
    return pixels, torch.from_numpy(maps.aspects)


def degrade(batch: tuple[Tensor, Tensor], hardness: float, seed: int = 0) -> Views:
    viewer = Viewer(64, 4, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    return viewer.degrade(*batch, torch.full((8,), hardness), generator)


@pytest.mark.parametrize("hardness", [0.0, 0.5, 1.0])
def test_views_are_pictures(batch: tuple[Tensor, Tensor], hardness: float) -> None:
    views = degrade(batch, hardness)

    assert views.pixels.shape == (8, 3, 64, 64)
    assert views.geometry.shape == (8, 3, 4, 4)
    assert torch.isfinite(views.pixels).all()
    assert views.pixels.min() >= 0
    assert views.pixels.max() <= 1
    assert views.geometry.abs().max() <= 1


def test_a_generator_decides_a_batch(batch: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(degrade(batch, 0.7, 1).pixels, degrade(batch, 0.7, 1).pixels)
    assert not torch.equal(degrade(batch, 0.7, 1).pixels, degrade(batch, 0.7, 2).pixels)


def test_the_map_is_smaller_and_rarer_in_hard_views(
    batch: tuple[Tensor, Tensor],
) -> None:
    def covered(hardness: float) -> float:
        views = [degrade(batch, hardness, seed) for seed in range(6)]
        return float(torch.cat([view.geometry[:, 2] for view in views]).mean())

    assert covered(0.0) > 1.3 * covered(1.0) > 0.1


def test_the_geometry_says_what_each_patch_shows() -> None:
    # A map whose red is u and whose green is v, seen without any wear, shows its own coordinates.
    at = (torch.arange(128) + 0.5) / 128
    green, red = torch.meshgrid(at, at, indexing="ij")
    maps = torch.stack([red, green, torch.full_like(red, 0.5)])[None].repeat(16, 1, 1, 1)
    viewer = Viewer(128, 8, torch.device("cpu"))
    archive = viewer.archive(maps, torch.ones(16), torch.Generator().manual_seed(3))
    patches = torch.nn.functional.avg_pool2d(archive.pixels, 16)
    whole = archive.geometry[:, 2].flatten(1).all(1)

    assert whole.sum() >= 8
    seen, told = patches[whole, :2] * 2 - 1, archive.geometry[whole, :2]
    correlation = torch.corrcoef(torch.stack([seen.flatten(), told.flatten()]))[0, 1]
    assert correlation > 0.95


def test_half_of_the_archive_is_clean(batch: tuple[Tensor, Tensor]) -> None:
    viewer = Viewer(128, 8, torch.device("cpu"))
    views = viewer.archive(*batch, torch.Generator().manual_seed(0))
    untouched = (views.pixels - batch[0]).abs().flatten(1).max(1).values < 1e-5

    assert int(untouched.sum()) == 4
