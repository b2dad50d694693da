"""Degraded views of maps for training: what happens to a map between the game and a search.

A camera looks at a wall in perspective; then come the light, the game's interface, a phone's photo
of the screen, blur, noise and compression. A *hardness* from 0 to 1 scales what happens to the
picture, a *reach* where the camera stands. Every view says where the corners of its map are, which
the locator learns from. One view costs a few milliseconds on one core, most of it inside OpenCV.

This is deliberately not the renderer of `scenes`: that one measures, so it must not be what was
trained on. The augmentation of copies for retrieval follows E. Pizzi et al., "A Self-Supervised
Descriptor for Image Copy Detection" (CVPR 2022).
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from exporter.training.views import screen, wear
from exporter.training.views.camera import Camera, project
from exporter.training.views.wall import Canvas, Pixels, Textures
from inference.renders import MARGIN, framed

__all__ = ["Pixels", "Textures", "View", "archive", "degrade"]

_UNIT_CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float32)


class View(NamedTuple):
    """One picture of a map."""

    pixels: Pixels
    """``uint8`` (side, side, 3), RGB: the whole picture squashed to a square."""

    corners: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    """``float32`` (4, 2): x and y of the map's corners, from its upper left clockwise, where the
    picture spans -1..1 both ways. A corner out of the picture lies beyond."""


def archive(rng: np.random.Generator, maps: list[Pixels], textures: Textures, side: int) -> View:
    """A view as it is posted: clean renders, and fewer lightly worn screenshots.

    Args:
        rng: Decides everything random.
        maps: The map, ``uint8`` (h, w, 3) in its true proportions, and others to hang beside it.
        textures: What walls are made of.
        side: Pixels along the view.
    """
    if rng.random() < 0.6:
        return _render(rng, maps[0], side)
    mild = rng.uniform(0.0, 0.3)
    return degrade(rng, maps, textures, side, hardness=mild, reach=mild)


def degrade(
    rng: np.random.Generator, maps: list[Pixels], textures: Textures, side: int, hardness: float,
    *, reach: float,
) -> View:  # fmt: skip
    """A view as a camera and an internet would make it.

    Args:
        rng: Decides everything random.
        maps: The map, ``uint8`` (h, w, 3) in its true proportions, and others to hang beside it.
        textures: What walls are made of.
        side: Pixels along the view.
        hardness: 0 (clean) to 1 (as bad as it gets).
        reach: 0 (from straight before the map) to 1 (from anywhere, and partly out of the picture).
    """
    aspect = maps[0].shape[1] / maps[0].shape[0]
    if rng.random() >= 0.1 + 0.35 * hardness:
        maps = maps[:1]
    # Of several maps the one that is meant is the one that is looked at.
    aside = reach if len(maps) == 1 else reach / 3
    camera = Camera.place(rng, aspect, reach, aside)
    canvas = Canvas.hang(rng, maps, textures)
    picture = canvas.look(camera)
    picture = wear.light(rng, picture, hardness)
    picture = screen.draw(rng, picture, hardness)
    to_picture = camera.to_frame
    if rng.random() < 0.32 * hardness:
        picture, onto = wear.photograph(rng, picture, hardness)
        to_picture = onto @ to_picture
    picture = wear.transmit(rng, picture, side, hardness)
    corners = project(to_picture, _UNIT_CORNERS * (aspect, 1))
    return View(picture, corners.astype(np.float32))


def _render(rng: np.random.Generator, pixels: Pixels, side: int) -> View:
    """A clean render: the map alone, or on a plain ground, enlarged or not, sometimes as JPEG.

    Alone, and in its own colours, it has the margin in which it is shown to the model.
    """
    height, width = pixels.shape[:2]
    corners = _UNIT_CORNERS
    as_jpeg = rng.random() < 0.5
    if rng.random() < 0.25:
        pads = (rng.uniform(0, 0.4, 4) * rng.uniform(0, 1) * min(height, width)).astype(int)
        if rng.random() < 0.4:
            pads[:] = pads[0]
        top, bottom, left, right = (int(pad) for pad in pads)
        ground = [int(level) for level in wear.plain_ground(rng)]
        pixels = cv2.copyMakeBorder(
            pixels, top, bottom, left, right, cv2.BORDER_CONSTANT, value=ground
        )
        size = np.array([pixels.shape[1], pixels.shape[0]])
        first = np.array([left, top]) / size * 2 - 1
        last = np.array([left + width, top + height]) / size * 2 - 1
        corners = np.where(_UNIT_CORNERS < 0, first, last).astype(np.float32)
    elif not as_jpeg:
        pixels = np.asarray(framed(Image.fromarray(pixels), MARGIN))
        shares = width / pixels.shape[1], height / pixels.shape[0]
        corners = (_UNIT_CORNERS * shares).astype(np.float32)
    if as_jpeg:
        pixels = wear.jpeg(pixels, int(rng.integers(60, 96)))
    pixels = wear.squash(rng, pixels, side)
    return View(pixels, corners)
