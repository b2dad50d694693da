from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from torch import nn
from transformers import CLIPVisionModelWithProjection

from exporter import locator
from exporter.locator import Locator, LocatorSettings
from exporter.training import soup
from exporter.training.config import ModelSettings
from exporter.training.model import build_tower, save_folder

pytestmark = pytest.mark.exporter

TINY = ModelSettings(
    image_size=32, patch_size=8, hidden_size=32, layers=1, heads=2, mlp_size=64, dimensions=48
)
FINDER = LocatorSettings(image_size=64, second_size=32)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """What three runs ended with, each with weights and batch norms' means of its own."""
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        finder = Locator(FINDER).train()
        finder(torch.rand(4, 3, 64, 64))
        made.append(tmp_path / f"run{seed}")
        save_folder(build_tower(TINY), finder.eval(), made[-1])
    return made


def _tower(folder: Path) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection.from_pretrained(folder)


def _finder(folder: Path) -> Locator:
    found = locator.load(folder)
    assert found is not None
    return found


def _is_mean(written: nn.Module, of: list[nn.Module]) -> bool:
    return all(
        torch.allclose(value, sum(each.state_dict()[name] for each in of) / len(of), atol=1e-6)
        for name, value in written.state_dict().items()
        if value.is_floating_point()
    )


def test_the_locators_are_averaged_and_the_last_tower_stays(
    folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "soup"

    assert soup.main([*map(str, folders), "--part", "locator", "--out", str(out)]) == 0

    assert _is_mean(_finder(out), [_finder(folder) for folder in folders])
    assert _is_mean(_tower(out), [_tower(folders[-1])])
    assert not torch.equal(_finder(out).first.stem.weight, _finder(folders[-1]).first.stem.weight)


def test_the_towers_are_averaged_and_the_last_locator_stays(
    folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "soup"

    assert soup.main([*map(str, folders), "--part", "tower", "--out", str(out)]) == 0

    assert _is_mean(_tower(out), [_tower(folder) for folder in folders])
    assert _is_mean(_finder(out), [_finder(folders[-1])])


def test_models_of_other_sizes_are_refused(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_folder(build_tower(TINY), Locator(LocatorSettings(image_size=64, context=32)), folders[0])
    command = [*map(str, folders), "--part", "locator", "--out", str(tmp_path / "soup")]

    with pytest.raises(SystemExit):
        soup.main(command)

    assert "same sizes" in capsys.readouterr().err
    assert not (tmp_path / "soup").exists()


def test_a_folder_without_a_locator_is_named(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders[1] / locator.FILE).unlink()
    command = [*map(str, folders), "--part", "locator", "--out", str(tmp_path / "soup")]

    with pytest.raises(SystemExit):
        soup.main(command)

    assert f"{folders[1]} has no {locator.FILE}" in capsys.readouterr().err
