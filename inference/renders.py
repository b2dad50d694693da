"""Clean renders of maps: nothing but the map, in nothing but the colours of Minecraft's maps.

Tools that plan map art write them, and so do bots that read the game's map files. A model that
looks for a map's edges finds none around such a picture, and so takes some within it: of one render
in eight, the corners were off by a twentieth of its side or more, of one in thirty with a margin
around it. `Preprocessing.render_margin` asks for one.
"""

from typing import Final

import numpy as np
from PIL import Image, ImageOps

from inference.plain import blendable, plain

MARGIN: Final = 0.3
"""What models with a locator ask for."""

# Facts of the game, by map colour id from 1; id 0 is transparent.
BASE_COLOURS: Final = np.array(
    [
        (127, 178, 56), (247, 233, 163), (199, 199, 199), (255, 0, 0), (160, 160, 255),
        (167, 167, 167), (0, 124, 0), (255, 255, 255), (164, 168, 184), (151, 109, 77),
        (112, 112, 112), (64, 64, 255), (143, 119, 72), (255, 252, 245), (216, 127, 51),
        (178, 76, 216), (102, 153, 216), (229, 229, 51), (127, 204, 25), (242, 127, 165),
        (76, 76, 76), (153, 153, 153), (76, 127, 153), (127, 63, 178), (51, 76, 178),
        (102, 76, 51), (102, 127, 51), (153, 51, 51), (25, 25, 25), (250, 238, 77),
        (92, 219, 213), (74, 128, 255), (0, 217, 58), (129, 86, 49), (112, 2, 0),
        (209, 177, 161), (159, 82, 36), (149, 87, 108), (112, 108, 138), (186, 133, 36),
        (103, 117, 53), (160, 77, 78), (57, 41, 35), (135, 107, 98), (87, 92, 92),
        (122, 73, 88), (76, 62, 92), (76, 50, 35), (76, 82, 42), (142, 60, 46),
        (37, 22, 16), (189, 48, 49), (148, 63, 97), (92, 25, 29), (22, 126, 134),
        (58, 142, 140), (86, 44, 62), (20, 180, 133), (100, 100, 100), (216, 175, 147),
        (127, 167, 150),
    ],
    np.uint8,
)  # fmt: skip
"""The 61 base colours, ``uint8`` of shape (61, 3)."""

# Of 255. The darkest is no block's that can be built, but files may hold it.
_SHADES: Final = (135, 180, 220, 255)
_MAP_COLOURS: Final = np.concatenate(
    [(BASE_COLOURS.astype(np.int32) * shade // 255).astype(np.int16) for shade in _SHADES]
)

# The game rounds shades down; tools may round them up.
_TOLERANCE: Final = 1
_MOST_COLOURS: Final = 256
_OPAQUE: Final = 255

_LARGE_PIXELS: Final = 2_000_000

# Dark, like most walls that maps hang on, and none of the map colours.
_GROUND: Final = (60, 50, 40)


def framed(image: Image.Image, margin: float) -> Image.Image:
    """Lays a clean render on a ground that is larger; leaves any other picture as it is.

    A large render is halved first, so that it takes no more memory than it did.

    Args:
        image: Of mode L, RGB or RGBA.
        margin: Width of the ground on each side, as a share of the picture's own; 0 for none.
    """
    if not margin or not is_render(image):
        return image
    if image.mode == "L":
        image = image.convert("RGB")
    if image.width * image.height > _LARGE_PIXELS:
        image = plain(blendable(image).reduce(2))
    border = round(image.width * margin), round(image.height * margin)
    return ImageOps.expand(image, border, _GROUND)


def is_render(image: Image.Image) -> bool:
    """Whether all that is to be seen of a picture, of mode L, RGB or RGBA, are map colours."""
    # Gives up, and soon, at a picture of more colours.
    counted = image.getcolors(_MOST_COLOURS)
    if counted is None:
        return False
    colours = np.array([colour for _, colour in counted], np.int16).reshape(len(counted), -1)
    if image.mode == "RGBA":
        colours = colours[colours[:, 3] > 0]
        if not len(colours) or colours[:, 3].min() < _OPAQUE:
            return False
    distance = np.abs(colours[:, None, :3] - _MAP_COLOURS).max(2).min(1)
    return bool(distance.max() <= _TOLERANCE)
