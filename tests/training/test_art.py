from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exporter.training import art


@pytest.mark.parametrize("family", art.FAMILIES)
def test_every_family_draws_the_same_picture_for_the_same_seed(family: str) -> None:
    first = art.draw(7, (96, 64), family=family)
    again = art.draw(7, (96, 64), family=family)
    other = art.draw(8, (96, 64), family=family)

    assert first.shape == (64, 96, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_pictures_differ_and_few_are_blank() -> None:
    pictures = [art.draw(seed, (64, 64)) for seed in range(60)]

    assert len({picture.tobytes() for picture in pictures}) == 60
    assert sum(picture.std() > 10 for picture in pictures) >= 55


@pytest.mark.parametrize("size", [(16, 16), (128, 48), (48, 128)])
def test_any_shape_can_be_drawn(size: tuple[int, int]) -> None:
    for family in art.FAMILIES:
        assert art.draw(3, size, family=family).shape == (size[1], size[0], 3)


def test_a_folder_is_listed_in_one_order_and_only_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "deep/a.jpg", "A.PNG"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")

    names = [path.relative_to(tmp_path).as_posix() for path in art.picture_paths(tmp_path)]

    assert names == ["A.PNG", "b.png", "deep/a.jpg"]


def test_a_transparent_picture_is_laid_on_the_ground_and_fills_the_size(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (50, 10), (255, 0, 0, 0)).save(path)

    picture = art.load_picture(path, (32, 24), ground=(10, 20, 30))

    assert picture.shape == (24, 32, 3)
    assert (picture == (10, 20, 30)).all()
