from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cv2")

import cv2

from exporter.training import mapart, views
from exporter.training.views import View, archive, degrade
from exporter.training.views.camera import Camera, project
from exporter.training.views.wall import Canvas
from inference.renders import MARGIN

pytestmark = pytest.mark.exporter

SIDE = 96
TEXTURES = views.Textures(seed=1, count=20)


def coordinates(columns: int = 1, rows: int = 1) -> views.Pixels:
    """A map whose red grows to the right, whose green grows downwards, and whose blue is none."""
    x = np.linspace(20, 235, 128 * columns)[None, :].repeat(128 * rows, 0)
    y = np.linspace(20, 235, 128 * rows)[:, None].repeat(128 * columns, 1)
    return np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)


def seen(hardness: float, seed: int, shape: tuple[int, int] = (1, 1)) -> View:
    rng = np.random.default_rng(seed)
    return degrade(rng, [coordinates(*shape)], TEXTURES, SIDE, hardness, reach=hardness)


@pytest.mark.parametrize("hardness", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (1, 2)])
def test_views_are_pictures(hardness: float, shape: tuple[int, int]) -> None:
    for seed in range(12):
        view = seen(hardness, seed, shape)
        assert view.pixels.shape == (SIDE, SIDE, 3)
        assert view.pixels.dtype == np.uint8
        assert view.corners.shape == (4, 2)
        assert np.isfinite(view.corners).all()


def test_a_generator_decides_a_view() -> None:
    one, same, other = seen(0.8, 4), seen(0.8, 4), seen(0.8, 5)
    assert np.array_equal(one.pixels, same.pixels)
    assert not np.array_equal(one.pixels, other.pixels)


def opponents(colours: views.Pixels) -> tuple[np.ndarray, np.ndarray]:
    red, green = colours[:, 0].astype(float), colours[:, 1].astype(float)
    return red - green, red + green


@pytest.mark.parametrize(("hardness", "reach"), [(0.15, 0.0), (0.0, 0.7)])
def test_the_corners_are_where_the_map_is(hardness: float, reach: float) -> None:
    # Undo the view by its own corners: what comes back must be the map, nearly.
    unit = np.array([(0, 0), (SIDE, 0), (SIDE, SIDE), (0, SIDE)], np.float32)
    truth = cv2.resize(coordinates(2, 1), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        view = degrade(rng, [coordinates(2, 1)], TEXTURES, SIDE, hardness, reach=reach)
        corners = (view.corners + 1) * (SIDE / 2)
        back = cv2.warpPerspective(
            view.pixels, cv2.getPerspectiveTransform(corners, unit), (SIDE, SIDE)
        )
        visible = back.any(-1)
        # Pale colours lie nearer together, but in the same order.
        for seen, meant in zip(opponents(back[visible]), opponents(truth[visible]), strict=True):
            assert np.corrcoef(seen, meant)[0, 1] > 0.8, seed


def test_the_map_is_smaller_in_hard_views() -> None:
    def area(hardness: float) -> float:
        corners = [seen(hardness, seed).corners for seed in range(60)]
        return float(np.median([cv2.contourArea(each) for each in corners]))

    assert area(0.0) > 1.3 * area(1.0) > 0.1


def test_half_of_the_archive_is_clean() -> None:
    rng = np.random.default_rng(0)
    whole = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    views_seen = [archive(rng, [coordinates()], TEXTURES, SIDE) for _ in range(60)]
    clean = [np.array_equal(view.corners, whole) for view in views_seen]
    assert 12 <= sum(clean) <= 36  # a quarter of the clean ones stand on a ground of their own


def test_a_render_in_its_own_colours_has_the_margin_that_the_model_sees() -> None:
    rng = np.random.default_rng(0)
    drawn = mapart.draw_map(3)
    views_seen = [archive(rng, [drawn], TEXTURES, SIDE) for _ in range(60)]
    share = 1 / (1 + 2 * MARGIN)
    within = [view for view in views_seen if np.allclose(abs(view.corners), share, atol=0.01)]
    alone = [view for view in views_seen if np.allclose(abs(view.corners), 1)]
    assert 5 <= len(within) <= 22
    assert 5 <= len(alone) <= 22  # as JPEG
    for view in within:
        assert view.corners.dtype == np.float32
        assert view.pixels[:8].std((0, 1)).max() < 1 < view.pixels[24:-24, 24:-24].std()


def test_a_camera_that_may_stand_anywhere_cuts_maps_off() -> None:
    def cut_off(reach: float) -> float:
        corners = [
            degrade(
                np.random.default_rng(seed), [coordinates()], TEXTURES, SIDE, 0.0, reach=reach
            ).corners
            for seed in range(80)
        ]
        return float(np.mean([(abs(each) > 1.1).any() for each in corners]))

    assert cut_off(0.0) < 0.4
    assert cut_off(1.0) > 0.55


def test_no_side_of_a_room_hides_the_map() -> None:
    others = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        canvas = Canvas.hang(rng, [coordinates(2, 1)], TEXTURES)
        camera = Camera.place(rng, aspect=2.0, reach=1.0, aside=1.0)
        room, plain = canvas.look(camera), replace(canvas, sides=()).look(camera)
        outline = project(
            camera.to_frame, np.array([(-2, -1), (2, -1), (2, 1), (-2, 1)], np.float32)
        )
        size = (room.shape[1], room.shape[0])
        inside = np.zeros(room.shape[:2], np.uint8)
        cv2.fillConvexPoly(inside, ((outline + 1) / 2 * size).round().astype(np.int32), 1)
        # Where a side begins at the very edge of the map, they share a row of pixels.
        inside = cv2.erode(inside, np.ones((5, 5), np.uint8), borderValue=0).astype(bool)
        assert np.array_equal(room[inside], plain[inside]), seed
        others += not np.array_equal(room, plain)
    assert others >= 10
