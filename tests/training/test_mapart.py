import numpy as np
import numpy.typing as npt
import pytest

from exporter.training import art, mapart
from exporter.training.mapart import Blocks, Dither


def colours_of(picture: npt.NDArray[np.uint8]) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.unique(picture.reshape(-1, 3), axis=0).tolist()}


@pytest.fixture(scope="module")
def gradient() -> npt.NDArray[np.uint8]:
    across = np.linspace(40, 215, 128)
    channels = np.meshgrid(across, across)
    picture = np.stack([channels[0], channels[1], channels[0][::-1]], axis=-1)
    return picture.astype(np.uint8)


@pytest.mark.parametrize(("blocks", "count"), [("staircase", 183), ("flat", 61), ("carpet", 16)])
def test_each_kind_of_map_has_its_palette(blocks: str, count: int) -> None:
    # 61 colours in three shades; some of them may coincide, but none do.
    assert len(mapart.palette(Blocks(blocks))) == count


@pytest.mark.parametrize("blocks", Blocks)
@pytest.mark.parametrize("dither", Dither)
def test_only_colours_of_the_palette_remain(blocks: Blocks, dither: Dither) -> None:
    mapped = mapart.quantise(art.draw(5), blocks, dither)

    assert mapped.shape == (128, 128, 3)
    assert colours_of(mapped) <= colours_of(mapart.palette(blocks))


def test_the_palette_itself_is_all_but_left_alone() -> None:
    palette = mapart.palette(Blocks.STAIRCASE)[None]
    apart = mapart.quantise(palette, Blocks.STAIRCASE, Dither.NONE).astype(int) - palette

    assert np.abs(apart).max() <= 8


@pytest.mark.parametrize("dither", [Dither.ORDERED, Dither.FLOYD_STEINBERG])
def test_dithering_keeps_the_mean_that_plain_rounding_loses(
    gradient: npt.NDArray[np.uint8], dither: Dither
) -> None:
    def local_error(mapped: npt.NDArray[np.uint8]) -> float:
        apart = mapped.astype(float) - gradient
        means = apart.reshape(8, 16, 8, 16, 3).mean(axis=(1, 3))
        return float(np.abs(means).mean())

    plain = mapart.quantise(gradient, Blocks.FLAT, Dither.NONE)
    dithered = mapart.quantise(gradient, Blocks.FLAT, dither)

    assert not np.array_equal(plain, dithered)
    assert local_error(dithered) < 0.9 * local_error(plain)


@pytest.mark.parametrize("shape", mapart.WALL_SHAPES)
def test_a_wall_has_the_pixels_of_its_maps(shape: tuple[int, int]) -> None:
    columns, rows = shape

    assert mapart.draw_map(11, shape).shape == (128 * rows, 128 * columns, 3)


def test_a_map_is_a_function_of_its_seed() -> None:
    assert np.array_equal(mapart.draw_map(4), mapart.draw_map(4))
    assert mapart.draw_map(4, (1, 1)).tobytes() != mapart.draw_map(5, (1, 1)).tobytes()
