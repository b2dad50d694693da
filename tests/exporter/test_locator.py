import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("optimum")

import torch
from torch import Tensor

from exporter import locator
from exporter.errors import ExportError
from exporter.export import export_model
from exporter.locator import Locator, LocatorSettings
from inference import renders
from inference.artifact import Artifact

pytestmark = pytest.mark.exporter

SMALL = LocatorSettings(
    image_size=64,
    second_size=32,
    first_widths=(4, 4, 4, 4),
    second_widths=(4, 4, 4, 4),
    depths=(0, 1, 0, 1),
    context=4,
)


def quadrilaterals(count: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    square = locator.unit_corners(torch.zeros(1))
    return square * (0.3 + 0.7 * torch.rand(count, 1, 2)) + 0.25 * torch.rand(count, 4, 2)


def lively(settings: LocatorSettings = SMALL) -> Locator:
    """One whose corners depend on the picture, though nobody trained it."""
    torch.manual_seed(3)
    made: Locator = Locator(settings).eval()
    return made


def test_a_homography_takes_the_square_to_the_corners() -> None:
    corners = quadrilaterals(50)
    square = locator.unit_corners(corners)

    found = locator.apply(locator.homography(corners), square)

    assert torch.allclose(found, corners, atol=1e-5)


def test_a_homography_keeps_lines_straight() -> None:
    matrices = locator.homography(quadrilaterals(20))
    line = torch.stack([torch.linspace(-1, 1, 9), torch.linspace(-0.5, 0.8, 9)], -1)

    points = locator.apply(matrices, line)

    along = points[:, 1:] - points[:, :1]
    area = along[:, :, 0] * along[:, -1:, 1] - along[:, :, 1] * along[:, -1:, 0]
    assert area.abs().max() < 1e-5


def test_degenerate_corners_give_finite_numbers() -> None:
    point = torch.zeros(1, 4, 2)
    crossed = torch.tensor([[(-1.0, -1.0), (1.0, 1.0), (1.0, -1.0), (-1.0, 1.0)]])
    for corners in (point, crossed):
        drawn = locator.sample(torch.rand(1, 3, 16, 16), locator.homography(corners), 8)
        assert torch.isfinite(drawn).all()


def test_sampling_the_whole_picture_gives_it_back() -> None:
    pixels = torch.rand(2, 3, 24, 24)
    square = locator.unit_corners(pixels).expand(2, 4, 2)

    assert torch.allclose(locator.sample(pixels, locator.homography(square), 24), pixels, atol=1e-5)


def test_sampling_beyond_the_picture_gives_grey() -> None:
    away = locator.unit_corners(torch.zeros(1))[None] + 4

    drawn = locator.sample(torch.ones(1, 3, 8, 8), locator.homography(away), 4)

    assert torch.equal(drawn, torch.zeros_like(drawn))


def test_levels_are_read_as_their_fractions_are() -> None:
    made, levels = lively(), torch.randint(0, 256, (3, 3, 64, 64)).float()

    drawn = made.for_levels().upright_centred(levels - 127.5, 24)

    assert torch.allclose((drawn + 127.5) / 255, made.upright(levels / 255, 24), atol=1e-4)


def test_half_precision_moves_no_corner() -> None:
    pixels, matrices = torch.rand(4, 3, 64, 64), locator.homography(quadrilaterals(4))

    with torch.autocast("cpu", torch.bfloat16):
        drawn = locator.sample(pixels, matrices, 32)

    assert torch.equal(drawn, locator.sample(pixels, matrices, 32))


def test_the_second_guess_looks_where_the_first_pointed() -> None:
    made, pixels = lively(), torch.rand(2, 3, 64, 64)

    before, after = made.steps(pixels)

    assert torch.equal(after.corners, made(pixels))
    around = locator.homography(before.corners) * torch.tensor([1.3, 1.3, 1.0])
    seen = made.second(locator.sample(pixels, around, 32)).corners
    assert torch.allclose(locator.apply(around, seen), after.corners, atol=1e-3)


def test_it_survives_a_folder(tmp_path: Path) -> None:
    made = lively()
    locator.save(made, tmp_path)

    loaded = locator.load(tmp_path)

    pixels = torch.rand(2, 3, 64, 64)
    assert loaded is not None
    assert loaded.settings == SMALL
    assert torch.equal(loaded(pixels), made(pixels))


def test_a_folder_without_it_is_a_plain_clip(tmp_path: Path) -> None:
    assert locator.load(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / locator.FILE).write_bytes(content)

    with pytest.raises(ExportError, match="is no locator"):
        locator.load(tmp_path)


def test_the_graph_holds_the_locator(
    own_folder: Path, preprocessor_config: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    locator.save(lively(), own_folder)
    config = json.dumps(preprocessor_config(64))
    (own_folder / "preprocessor_config.json").write_text(config)

    export_model(str(own_folder), out=tmp_path / "artifact")

    # The export verified it against PyTorch already: here, that there is something to verify.
    manifest = Artifact.load(tmp_path / "artifact").manifest
    assert manifest.preprocessing.image_size == 64
    assert manifest.preprocessing.render_margin == renders.MARGIN
    assert manifest.fidelity is not None
    assert manifest.fidelity["image"].min_cosine > 0.9999
