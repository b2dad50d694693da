"""The pictures of the workload: in-game screenshots, drawn, so that nothing is downloaded.

They only need to cost what a player's screenshot costs: 854 by 480 pixels, sharp blocks beside
smooth sky, 60 to 120 KB as JPEG. The same seed draws the same pictures everywhere.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 854, 480

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_MAP_SIDE = 128
_JPEG_QUALITY = 87


def screenshots(count: int, *, seed: int = 0) -> list[bytes]:
    """Draws JPEG screenshots of 854 by 480 pixels."""
    return [encode(screenshot(seed * 100_003 + number), "JPEG") for number in range(count)]


def screenshot(seed: int, *, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Draws one screenshot: a blocky wall with a map on it, ground, sky and a hotbar."""
    random = np.random.default_rng(seed)
    horizon = int(height * random.uniform(0.15, 0.35))
    canvas = np.empty((height, width, 3), dtype=np.float32)
    canvas[:horizon] = _sky(horizon, width, random)
    canvas[horizon:] = _wall(height - horizon, width, random)

    side = int(height * random.uniform(0.45, 0.75))
    top = int(random.integers(0, height - side))
    left = int(random.integers(0, width - side))
    art = Image.fromarray(map_art(random)).resize((side, side), Image.Resampling.NEAREST)
    canvas[top : top + side, left : left + side] = np.asarray(art, dtype=np.float32) * 0.92

    bar_height, bar_width = height // 12, width // 2
    bar_left = (width - bar_width) // 2
    bar = canvas[height - bar_height :, bar_left : bar_left + bar_width]
    bar *= 0.45
    bar[:, :: bar_width // 9] = 160
    canvas += random.normal(0, 2.0, (height, width, 1)).astype(np.float32)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def map_art(random: np.random.Generator) -> Pixels:
    """Draws a map of 128 by 128 pixels in a few flat colours."""
    colours = random.integers(20, 236, (random.integers(6, 24), 3))
    layers = [_noise(_MAP_SIDE, _MAP_SIDE, cells, random) / cells for cells in (4, 9, 21)]
    field = np.sum(layers, axis=0)
    levels = np.digitize(field, np.quantile(field, np.linspace(0, 1, len(colours) + 1)[1:-1]))
    art: Pixels = colours[levels].astype(np.uint8)
    for _ in range(int(random.integers(3, 9))):
        y, x = random.integers(0, _MAP_SIDE, 2)
        h, w = random.integers(6, 50, 2)
        art[y : y + h, x : x + w] = colours[random.integers(len(colours))]
    return art


def plain(colour: tuple[int, int, int]) -> bytes:
    """A PNG file of one colour."""
    return encode(Image.new("RGB", (32, 32), colour), "PNG")


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    """Encodes a picture; JPEG at a quality like a chat client's."""
    buffer = io.BytesIO()
    if form == "JPEG":
        options.setdefault("quality", _JPEG_QUALITY)
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _sky(height: int, width: int, random: np.random.Generator) -> Floats:
    top, bottom = random.uniform((60, 110, 180), (120, 170, 255), (2, 3))
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    clouds = 40 * _noise(height, width, 7, random)[..., None]
    sky: Floats = (top * (1 - ramp) + bottom * ramp + clouds.clip(0)).astype(np.float32)
    return sky


def _wall(height: int, width: int, random: np.random.Generator) -> Floats:
    """Textured blocks: each pixel of a 16 by 16 texture is a small square on the screen."""
    block = 16
    scale = int(random.integers(3, 6))
    kinds = random.uniform(40, 200, (5, 1, 1, 3)) + random.normal(0, 16, (5, block, block, 1))
    rows, columns = -(-height // (block * scale)), -(-width // (block * scale))
    layout = random.integers(0, len(kinds), (rows, columns))
    # [rows, columns, block, block, 3] -> one picture of the whole wall
    wall = kinds[layout].swapaxes(1, 2).reshape(rows * block, columns * block, 3)
    wall = wall.repeat(scale, axis=0).repeat(scale, axis=1)[:height, :width]
    light = 0.8 + 0.3 * _noise(height, width, 3, random)[..., None]
    return (wall * light).astype(np.float32)


def _noise(height: int, width: int, cells: int, random: np.random.Generator) -> Floats:
    """Smooth noise in -1..1 with about `cells` hills along the width."""
    grid = random.uniform(-1, 1, (cells, cells)).astype(np.float32)
    picture = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.float32)
