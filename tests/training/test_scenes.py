import io

import numpy as np
import pytest
from PIL import Image

from exporter.training import mapart, scenes
from exporter.training.scenes.camera import Stance, place
from exporter.training.scenes.world import World


def view(seed: int, kind: scenes.Kind) -> Image.Image:
    return scenes.render_view(mapart.draw_map(seed), np.random.default_rng([seed, 9]), kind)


@pytest.mark.parametrize("kind", scenes.Kind)
def test_a_view_is_a_function_of_its_generator(kind: scenes.Kind) -> None:
    first, again = view(2, kind), view(2, kind)

    assert first.mode == "RGB"
    assert first.tobytes() == again.tobytes()


def test_views_are_no_larger_than_the_window() -> None:
    for kind in scenes.Kind:
        for seed in range(4):
            assert view(seed, kind).height <= scenes.SIZE[1]
            assert min(view(seed, kind).size) > 60


def test_a_picture_says_what_makes_it_hard() -> None:
    pixels = mapart.draw_map(3, (2, 1))
    for seed in range(8):
        taken = scenes.take(pixels, np.random.default_rng(seed), scenes.Kind.POOR)
        tilted = abs(taken.yaw) >= 25 or abs(taken.pitch) >= 15
        assert (scenes.Family.TILT in taken.families) is tilted
        assert (scenes.Family.OUT_OF_FRAME in taken.families) is (taken.seen <= 0.9)
        assert abs(taken.yaw) <= 48.1
        assert abs(taken.pitch) <= 28.1
        assert taken.seen >= 0.6
        assert taken.suffix == ".jpg"
        post = scenes.take(pixels, np.random.default_rng(seed), scenes.Kind.POST)
        assert not {scenes.Family.TILT, scenes.Family.PHOTO, scenes.Family.BLUR} & post.families


def test_the_map_is_drawn_where_the_camera_sees_it() -> None:
    # Quarters of four colours: each has to be at the point that the projection says.
    pixels = np.zeros((128, 256, 3), np.uint8)
    pixels[:64, :128], pixels[:64, 128:] = (255, 0, 0), (0, 255, 0)
    pixels[64:, :128], pixels[64:, 128:] = (0, 0, 255), (255, 255, 0)
    stance = Stance(yaw=48, pitch=28, fill=(0.4, 0.9), seen=0.9, aside=0.2)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        camera = place(rng, (2, 1), scenes.SIZE, stance)
        world = World(rng, pixels, camera)
        picture = world.render(camera, scenes.SIZE)
        for x, y in ((-0.5, -0.25), (0.5, -0.25), (-0.5, 0.25), (0.5, 0.25)):
            column, row = camera.project(np.array([[x, y, 1 / 16]]), scenes.SIZE)[0]
            if not (0 <= column < scenes.SIZE[0] and 0 <= row < scenes.SIZE[1]):
                continue
            seen = picture[int(row), int(column)]
            wanted = pixels[int((y + 0.5) * 128), int((x + 1) * 128)] > 0
            assert ((seen > 0.6 * seen.max()) == wanted).all()


@pytest.mark.parametrize("kind", scenes.Kind)
def test_the_file_is_what_its_suffix_says(kind: scenes.Kind) -> None:
    for seed in range(3):
        data, suffix = scenes.render_file(mapart.draw_map(seed), np.random.default_rng(seed), kind)
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == {".jpg": "JPEG", ".png": "PNG"}[suffix]


def test_kinds_get_harder() -> None:
    # A map of pure magenta tells itself from any wall: how much of it is left to see?
    pixels = np.full((128, 128, 3), (255, 0, 255), np.uint8)

    def seen(seed: int, kind: scenes.Kind) -> float:
        picture = scenes.render_view(pixels, np.random.default_rng(seed), kind)
        red, green, blue = np.moveaxis(np.asarray(picture, np.float32), -1, 0)
        return float(((red > 2 * green + 20) & (blue > 2 * green + 20)).mean())

    post, good, poor = (np.mean([seen(seed, kind) for seed in range(6)]) for kind in scenes.Kind)

    assert poor < 0.7 * post
    assert poor < 0.7 * good


def test_text_is_not_mirrored() -> None:
    # Left half black, right half white: the brighter half has to stay on the right.
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:, 64:] = 255
    for seed in range(2):
        seen = np.asarray(
            scenes.render_view(pixels, np.random.default_rng(seed), scenes.Kind.POST).convert("L")
        )
        middle = seen[200:280, 327:527].astype(float)
        assert middle[:, 150:].mean() > middle[:, :50].mean()


def test_enough_of_the_map_stays_in_the_picture() -> None:
    stance = Stance(yaw=48, pitch=28, fill=(0.3, 1.0), seen=0.65, aside=0.32)
    xs, ys = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-0.5, 0.5, 9))
    points = np.stack([xs.ravel(), ys.ravel(), np.zeros(81)], axis=1)
    for seed in range(20):
        camera = place(np.random.default_rng(seed), (2, 1), scenes.SIZE, stance)
        pixels = camera.project(points, scenes.SIZE)
        inside = ((pixels >= 0) & (pixels < np.array(scenes.SIZE))).all(axis=1)
        assert inside.mean() >= 0.65


def test_rays_and_projection_agree() -> None:
    stance = Stance(yaw=30, pitch=20, fill=(0.5, 0.9), seen=0.9, aside=0.1)
    camera = place(np.random.default_rng(1), (1, 1), scenes.SIZE, stance)
    rays = camera.rays(scenes.SIZE)
    ray = rays[100, 300].astype(float)
    hit = camera.position + ray * (-camera.position[2] / ray[2])

    column, row = camera.project(hit[None], scenes.SIZE)[0]

    assert (column, row) == pytest.approx((300.5, 100.5), abs=0.01)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="excellent"):
        scenes.render_view(mapart.draw_map(0), np.random.default_rng(0), "excellent")
