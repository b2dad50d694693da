"""Families of artwork that are computed per pixel: noise, fractals, tilings, symmetry, skies."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from exporter.training.art.fields import Field, grid, line_noise, palette, ramp, unit, value_noise


def gradients(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Soft colour fields: linear, radial, conical, or a sum of coloured lights."""
    x, y = grid(width, height)
    turn = rng.uniform(0, 2 * math.pi)
    centre_x, centre_y = rng.uniform(-0.7, 0.7, 2)
    kind = int(rng.integers(4))
    if kind == 0:
        field = x * math.cos(turn) + y * math.sin(turn)
    elif kind == 1:
        field = np.hypot(x - centre_x, y - centre_y)
    elif kind == 2:
        field = np.abs((np.arctan2(y - centre_y, x - centre_x) + turn) % (2 * math.pi) - math.pi)
    else:
        field = np.zeros_like(x)
        for _ in range(int(rng.integers(3, 8))):
            at_x, at_y = rng.uniform(-1.2, 1.2, 2)
            spread = rng.uniform(0.05, 0.6)
            near = np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / spread)
            field = field + near * rng.uniform(-1, 1)
    colours = palette(rng, int(rng.integers(2, 7)))
    return Image.fromarray(ramp(unit(field), colours, bands=bool(rng.random() < 0.3)))


def plasma(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Clouds, marble and wood: fractal noise, bent through itself and coloured."""
    noise = value_noise(rng, width, height, cells=rng.uniform(1.5, 6), decay=rng.uniform(0.35, 0.7))
    x, y = grid(width, height)
    kind = int(rng.integers(4))
    if kind == 1:
        turn = rng.uniform(0, math.pi)
        along = x * math.cos(turn) + y * math.sin(turn)
        noise = unit(np.sin(along * rng.uniform(2, 9) + noise * rng.uniform(4, 14)))
    elif kind == 2:
        noise = (noise * rng.uniform(3, 9)) % 1
    elif kind == 3:
        noise = np.abs(noise * 2 - 1)
    colours = palette(rng, int(rng.integers(2, 8)))
    return Image.fromarray(ramp(noise, colours, bands=bool(rng.random() < 0.3)))


def continents(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A map of invented land: sea, beaches, plains and peaks by height, with a climate."""
    land = value_noise(rng, width, height, cells=rng.uniform(1.5, 4), octaves=7, decay=0.55)
    level = rng.uniform(0.3, 0.6)
    hue_shift = rng.integers(-25, 26, 3)
    stops = [
        ((20, 40, 110), 0.0), ((50, 90, 190), level - 0.02), ((225, 210, 150), level),
        ((80, 150, 60), level + 0.06), ((50, 100, 45), level + 0.2),
        ((120, 110, 100), level + 0.3), ((245, 245, 250), 1.0),
    ]  # fmt: skip
    places = [place for _, place in stops]
    channels = []
    for channel in range(3):
        values = [colour[channel] + int(hue_shift[channel]) for colour, _ in stops]
        channels.append(np.interp(land, places, values))
    return Image.fromarray(np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8))


def fractals(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Julia sets by escape time, at random constants near the Mandelbrot set's edge."""
    x, y = grid(width, height)
    # Constants on the main cardioid's edge give connected, detailed sets rather than dust.
    turn = rng.uniform(0, 2 * math.pi)
    edge = complex(0.5 * math.cos(turn) - 0.25 * math.cos(2 * turn),
                   0.5 * math.sin(turn) - 0.25 * math.sin(2 * turn))  # fmt: skip
    constant = np.complex64(edge * rng.uniform(1.0, 1.12))
    zoom = rng.uniform(0.5, 1.5)
    angle = rng.uniform(0, 2 * math.pi)
    z = ((x + 1j * y) * zoom * complex(math.cos(angle), math.sin(angle))).astype(np.complex64)
    escape = np.zeros(x.shape, np.float32)
    rounds = 32
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(rounds):
            z = z * z + constant
            inside = z.real**2 + z.imag**2 < 16
            escape += inside
            # Escaped points stay put, which keeps them finite.
            z = np.where(inside, z, np.complex64(8))
    field = (escape / rounds) ** rng.uniform(0.4, 1.2)
    return Image.fromarray(ramp(field.astype(np.float32), palette(rng, int(rng.integers(3, 8)))))


def tilings(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Checks, hexagons, triangles, bricks, Truchet arcs and Voronoi glass."""
    x, y = grid(width, height)
    count = rng.uniform(3, 12)
    turn = rng.choice([0.0, math.pi / 4, rng.uniform(0, math.pi)])
    u = (x * math.cos(turn) - y * math.sin(turn)) * count / 2 + 50
    v = (x * math.sin(turn) + y * math.cos(turn)) * count / 2 + 50
    colours = palette(rng, int(rng.integers(2, 7)))
    table = rng.integers(len(colours), size=(128, 128))
    kind = int(rng.integers(5))
    if kind == 0:
        cell = (u.astype(int) + v.astype(int)) % len(colours)
    elif kind == 1:
        shifted = u + 0.5 * (v.astype(int) % 2)
        cell = table[v.astype(int) % 128, shifted.astype(int) % 128]
    elif kind == 2:
        flip = rng.integers(2, size=(128, 128))[v.astype(int) % 128, u.astype(int) % 128] > 0
        fu, fv = u % 1, v % 1
        fu = np.where(flip, 1 - fu, fu)
        near = np.minimum(np.hypot(fu, fv), np.hypot(1 - fu, 1 - fv))
        cell = (np.abs(near - 0.5) < rng.uniform(0.08, 0.25)).astype(int)
    elif kind == 3:
        a, b = u, 0.5 * u + v * math.sqrt(3) / 2
        half = ((a % 1) + (b % 1) > 1).astype(int)
        cell = table[(a.astype(int) * 2 + half) % 128, b.astype(int) % 128]
    else:
        cell = _voronoi(rng, x, y) % len(colours)
    return Image.fromarray(colours[cell % len(colours)].astype(np.uint8))


def _voronoi(rng: np.random.Generator, x: Field, y: Field) -> npt.NDArray[np.intp]:
    """Index of the nearest of some random points, per pixel."""
    count = int(rng.integers(8, 50))
    sites = rng.uniform(-1.6, 1.6, (count, 2)).astype(np.float32)
    nearest: npt.NDArray[np.intp] = np.zeros(x.shape, np.intp)
    best = np.full(x.shape, np.inf, np.float32)
    for index, (site_x, site_y) in enumerate(sites):
        distance = (x - site_x) ** 2 + (y - site_y) ** 2
        closer = distance < best
        best[closer] = distance[closer]
        nearest[closer] = index
    return nearest


def mandalas(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Rotational symmetry: sums of angular and radial waves, kaleidoscopes of noise."""
    x, y = grid(width, height)
    radius, angle = np.hypot(x, y), np.arctan2(y, x) + rng.uniform(0, 6)
    folds = int(rng.integers(3, 17))
    if rng.random() < 0.4:
        source = value_noise(rng, 256, 256, cells=rng.uniform(3, 8))
        wedge = np.abs((angle * folds / math.pi) % 2 - 1)
        at_x = np.clip(wedge * 200 + 20, 0, 255).astype(int)
        at_y = np.clip(radius * 170, 0, 255).astype(int)
        field = source[at_y, at_x]
    else:
        field = np.zeros_like(x)
        for _ in range(int(rng.integers(2, 5))):
            petals = np.cos(angle * folds * int(rng.integers(1, 3)))
            rings = np.cos(radius * rng.uniform(4, 18) + petals * rng.uniform(0, 3))
            field = field + rings * rng.uniform(0.3, 1)
        field = unit(field)
    colours = palette(rng, int(rng.integers(3, 8)))
    picture = ramp(field, colours, bands=bool(rng.random() < 0.5))
    if rng.random() < 0.5:
        picture[radius > rng.uniform(0.8, 1.1)] = palette(rng, 1)[0].astype(np.uint8)
    return Image.fromarray(picture)


def waves(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Interference, spirals and op art stripes."""
    x, y = grid(width, height)
    kind = int(rng.integers(3))
    if kind == 0:
        field = np.zeros_like(x)
        for _ in range(int(rng.integers(2, 5))):
            at_x, at_y = rng.uniform(-1.5, 1.5, 2)
            field = field + np.sin(np.hypot(x - at_x, y - at_y) * rng.uniform(6, 22))
    elif kind == 1:
        at_x, at_y = rng.uniform(-0.4, 0.4, 2)
        arms = int(rng.integers(1, 7))
        radius = np.hypot(x - at_x, y - at_y)
        field = np.sin(np.arctan2(y - at_y, x - at_x) * arms + radius * rng.uniform(3, 20))
    else:
        bend = value_noise(rng, width, height, cells=rng.uniform(1, 3), octaves=2)
        field = np.sin(
            (x * rng.uniform(-1, 1) + y) * rng.uniform(5, 16) + bend * rng.uniform(0, 18)
        )
    colours = palette(rng, int(rng.integers(2, 6)))
    return Image.fromarray(ramp(unit(field), colours, bands=bool(rng.random() < 0.6)))


def starfields(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Night skies: nebulae, stars, and a planet or two, some with rings."""
    x, y = grid(width, height)
    night = palette(rng, 4) * np.linspace(0.05, 0.9, 4, dtype=np.float32)[:, None]
    clouds = value_noise(rng, width, height, cells=rng.uniform(1, 3)) ** rng.uniform(1, 3)
    sky = ramp(clouds, night).astype(np.float32)
    count = int(rng.integers(20, 250))
    rows, columns = rng.integers(height, size=count), rng.integers(width, size=count)
    sky[rows, columns] = rng.uniform(140, 255, (count, 1))
    for _ in range(int(rng.integers(0, 4))):
        at_x, at_y = rng.uniform(-0.9, 0.9, 2)
        size = rng.uniform(0.1, 0.7)
        ball = np.hypot(x - at_x, y - at_y) / size
        inside = ball < 1
        bands = value_noise(rng, width, height, cells=rng.uniform(1, 4), octaves=4)
        skin = ramp(bands, palette(rng, 4), bands=bool(rng.random() < 0.3)).astype(np.float32)
        light = np.clip(
            1.1 - np.hypot(x - at_x + size * 0.5, y - at_y + size * 0.5) / (2 * size), 0, 1
        )
        sky[inside] = (skin * light[..., None])[inside]
        if rng.random() < 0.4:
            ring = np.hypot((x - at_x) * 0.6, (y - at_y) * 2.5) / size
            visible = (ring > 0.8) & (ring < 1.1) & ~(inside & (y < at_y))
            sky[visible] = palette(rng, 1)[0]
    return Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))


def landscapes(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A sky with a sun, ranges of hills that fade with distance, sometimes water."""
    x, y = grid(width, height)
    sky = palette(rng, int(rng.integers(2, 4)))
    picture = ramp(unit(y + 0.1 * x * rng.uniform(-1, 1)), sky).astype(np.float32)
    sun_x, sun_y = rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.1)
    disk = np.hypot(x - sun_x, y - sun_y) < rng.uniform(0.08, 0.35)
    picture[disk] = palette(rng, 1)[0] * 0.3 + 178
    if rng.random() < 0.5:
        clouds = value_noise(rng, width, height, cells=rng.uniform(2, 5))
        cover = np.clip((clouds - rng.uniform(0.45, 0.65)) * 4, 0, 0.9)[..., None]
        picture = picture * (1 - cover) + 240 * cover
    near, far = palette(rng, 2)
    ranges = int(rng.integers(2, 6))
    rows = np.arange(height)[:, None]
    for index in range(ranges):
        at = (index + 1) / ranges
        ridge = line_noise(rng, width, cells=rng.uniform(1, 6))
        top = height * (0.25 + 0.6 * at - ridge * rng.uniform(0.1, 0.35))
        ground = rows > top[None, :]
        colour = far * (1 - at) + near * at
        depth = np.clip((rows - top[None, :]) / height, 0, 1)[..., None]
        picture = np.where(ground[..., None], colour * (1.1 - 0.8 * depth), picture)
    if rng.random() < 0.3:
        shore = int(height * rng.uniform(0.6, 0.85))
        mirror = picture[shore - 1 :: -1][: height - shore]
        sea = palette(rng, 1)[0]
        picture[shore : shore + len(mirror)] = mirror * 0.5 + sea * 0.4
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def soft_photos(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Out-of-focus photographs: a few lit, textured bodies before a blurred ground."""
    x, y = grid(width, height)
    picture = ramp(value_noise(rng, width, height, cells=2, octaves=3), palette(rng, 4))
    scene = picture.astype(np.float32)
    for _ in range(int(rng.integers(2, 9))):
        at_x, at_y = rng.uniform(-0.9, 0.9, 2)
        wide, tall = rng.uniform(0.12, 0.8, 2)
        turn = rng.uniform(0, math.pi)
        u = ((x - at_x) * math.cos(turn) + (y - at_y) * math.sin(turn)) / wide
        v = ((y - at_y) * math.cos(turn) - (x - at_x) * math.sin(turn)) / tall
        power = rng.uniform(1.2, 5)
        distance = np.abs(u) ** power + np.abs(v) ** power
        cover = np.clip((1 - distance) * rng.uniform(3, 20), 0, 1)[..., None]
        texture = value_noise(rng, width, height, cells=rng.uniform(2, 10), octaves=4)[..., None]
        light = np.clip(0.9 - 0.4 * u - 0.4 * v, 0.15, 1.5)[..., None]
        body = palette(rng, 1)[0] * light * (0.75 + 0.5 * texture)
        scene = scene * (1 - cover) + body * cover
    return Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
