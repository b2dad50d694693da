import numpy as np
import pytest
from PIL import Image

from inference.preprocess import reference
from inference.renders import BASE_COLOURS, framed, is_render
from tests.inference.core.pictures import encoded, preprocessing, preprocessor, scene

MARGIN = 0.25


def render(side: int = 16, shade: int = 220) -> Image.Image:
    """Every colour of a map at one shade, in columns."""
    colours = BASE_COLOURS.astype(int) * shade // 255
    return Image.fromarray(np.tile(colours.astype(np.uint8), (side, 1, 1)))


def changed(picture: Image.Image, by: int) -> Image.Image:
    """The picture, each of its levels moved towards the middle."""
    levels = np.asarray(picture).astype(int)
    return Image.fromarray((levels + np.where(levels < 128, by, -by)).astype(np.uint8))


def with_alpha(picture: Image.Image, alpha: int) -> Image.Image:
    """The picture, and beside it as much of a foreign colour under this alpha."""
    wide = Image.new("RGBA", (2 * picture.width, picture.height), (1, 2, 3, alpha))
    wide.paste(picture, (0, 0))
    return wide


@pytest.mark.parametrize("shade", [135, 180, 220, 255])
def test_every_shade_of_the_game_makes_a_render(shade: int) -> None:
    assert is_render(render(shade=shade))


def test_a_shade_may_be_rounded_either_way_but_no_further() -> None:
    assert is_render(changed(render(), 1))
    assert not is_render(changed(render(), 2))


def test_one_foreign_pixel_makes_it_another_picture() -> None:
    picture = render()
    picture.putpixel((3, 3), (1, 2, 3))

    assert not is_render(picture)


def test_a_picture_of_many_colours_is_none() -> None:
    assert not is_render(scene(96, 80))


@pytest.mark.parametrize(("alpha", "expected"), [(0, True), (128, False), (255, False)])
def test_what_is_hidden_does_not_count(alpha: int, *, expected: bool) -> None:
    assert is_render(with_alpha(render(), alpha)) is expected


def test_a_picture_of_nothing_is_none() -> None:
    assert not is_render(Image.new("RGBA", (8, 8), (255, 255, 255, 0)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_render_is_laid_in_the_middle_of_a_ground(mode: str) -> None:
    white = Image.new(mode, (128, 64), "white")

    laid = framed(white, MARGIN)

    assert laid.size == (192, 96)
    assert laid.convert("RGB").crop((32, 16, 160, 80)).getcolors() == [(128 * 64, (255, 255, 255))]
    assert not is_render(laid)


@pytest.mark.parametrize("margin", [0.0, MARGIN])
def test_other_pictures_stay_as_they_are(margin: float) -> None:
    picture = scene(96, 80)

    assert framed(picture, margin) is picture
    assert framed(render(), 0.0).size == render().size


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("enlarged", [1, 4])
def test_the_server_shows_a_render_in_its_margin(kind: str, resize: str, enlarged: int) -> None:
    picture = render(61).resize((61 * enlarged, 61 * enlarged), Image.Resampling.NEAREST)
    data = encoded(picture, kind, lossless=True)
    bare = preprocessing(resize)
    how = bare.model_copy(update={"render_margin": MARGIN})

    pixels = preprocessor(how)(data)

    assert np.abs(pixels.astype(int) - reference(data, how)).max() <= 24
    # A sixth of 32 on each side is ground.
    inner = Image.fromarray(pixels[6:-6, 6:-6]).resize((8, 8), Image.Resampling.BOX)
    whole = Image.fromarray(preprocessor(bare)(data)).resize((8, 8), Image.Resampling.BOX)
    assert np.abs(np.asarray(inner).astype(int) - np.asarray(whole)).mean() < 24
    assert (pixels[:4] == (60, 50, 40)).all()
    assert (pixels[:, :4] == (60, 50, 40)).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_large_render_takes_no_more_room_than_it_did(mode: str) -> None:
    large = Image.new(mode, (3000, 2000), "white")
    if mode == "RGBA":  # what is hidden bleeds into nothing
        large.paste((0, 0, 0, 0), (0, 0, 1501, 2000))

    laid = framed(large, MARGIN)

    assert laid.size == (2250, 1500)
    assert laid.width * laid.height <= large.width * large.height
    seen = laid.convert("RGBA").crop((1126, 250, 1874, 1250))
    assert seen.getcolors() == [(748 * 1000, (255, 255, 255, 255))]


def test_a_turned_palette_with_holes_is_a_render_too() -> None:
    picture = with_alpha(render(61), 0).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    how = preprocessing("squash").model_copy(update={"render_margin": MARGIN})

    pixels = preprocessor(how)(encoded(picture, "PNG", exif=exif))

    assert (pixels[:4] == (60, 50, 40)).all()
    assert np.abs(pixels[16, 20:26].astype(int) - 128).max() <= 2


def test_a_screenshot_is_prepared_as_ever() -> None:
    data = encoded(scene(96, 80), "JPEG")
    how = preprocessing()

    framing = preprocessor(how.model_copy(update={"render_margin": MARGIN}))

    assert np.array_equal(framing(data), preprocessor(how)(data))
