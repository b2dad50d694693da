"""Good queries with one thing more that training never draws, to see what the model makes of it.

Each map of the set has its family, in turns. `exporter.training.views` holds nothing of the kind,
and must not: a family that the model learns from says nothing here any more.
"""

import io
import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.retrieval.builds import Build, draw
from benchmarks.retrieval.pictures import run_chunks
from exporter.training import scenes

UNSEEN = "unseen"

# Apart from the seeds of the set's own pictures, which are small numbers in this place.
_STREAM = 1000
_CELL = 24  # pixels between the points where a bent picture is measured
_WORDS = (
    "first",
    "who made this?",
    "LOL",
    "spawn shop",
    "for sale",
    "do not copy",
    "day 412",
    "wow",
)


class Family(StrEnum):
    """What is done to a picture."""

    WEATHER = "rain and fog"
    STICKERS = "stickers, a watermark"
    ONE_COLOUR = "one colour"
    FEW_COLOURS = "colours of a GIF"
    BENT = "a lens, water"
    CAPTION = "bars with text"


def family_of(number: int) -> Family:
    """The family of a map of the set."""
    return list(Family)[number % len(Family)]


def draw_unseen(
    folder: Path,
    builds: Sequence[Build],
    out: Path,
    *,
    seed: int,
    workers: int,
    progress: Callable[[str, float], None],
) -> list[Path]:
    """Draw the pictures that are not in the set's folder yet, and list them all.

    Args:
        folder: Where the artwork lies.
        builds: The maps of the set.
        out: The set's folder.
        seed: Decides everything random.
        workers: Drawing processes.
        progress: Told what is going on.
    """
    (out / UNSEEN).mkdir(exist_ok=True)
    files = [out / UNSEEN / f"{build.number:05}.jpg" for build in builds]
    missing = [build for build, file in zip(builds, files, strict=True) if not file.exists()]
    for done in run_chunks(partial(_draw_one, folder, out, seed), missing, workers):
        progress(
            "drawing what training never draws", (len(files) - len(missing) + done) / len(files)
        )
    return files


def _draw_one(folder: Path, out: Path, seed: int, build: Build) -> None:
    rng = np.random.default_rng([seed, build.number, _STREAM])
    picture = scenes.render_view(draw(folder, build), rng, scenes.Kind.GOOD)
    picture = _DEGRADE[family_of(build.number)](rng, picture)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=int(rng.integers(70, 93)))
    unfinished = out / UNSEEN / f"{build.number:05}.partial"
    unfinished.write_bytes(encoded.getvalue())
    unfinished.replace(out / UNSEEN / f"{build.number:05}.jpg")


def _weather(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Slanting streaks in several depths, and a fog that takes the contrast."""
    fog = Image.new("RGB", picture.size, tuple(int(tone) for tone in rng.integers(120, 210, 3)))
    wet = Image.blend(picture, fog, float(rng.uniform(0.1, 0.4)))
    streaks = Image.new("L", picture.size)
    pen = ImageDraw.Draw(streaks)
    slant = float(rng.uniform(-0.35, 0.35))
    for _ in range(int(rng.integers(150, 600))):
        x, y = float(rng.uniform(0, picture.width)), float(rng.uniform(-60, picture.height))
        length = float(rng.uniform(15, 70))
        line = (x, y, x + slant * length, y + length)
        pen.line(line, fill=int(rng.integers(50, 150)), width=int(rng.integers(1, 4)))
    return Image.composite(Image.new("RGB", picture.size, (205, 215, 235)), wet, streaks)


def _stickers(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Faces and badges anywhere, and a large, faint word across all."""
    over = Image.new("RGBA", picture.size)
    pen = ImageDraw.Draw(over)
    shorter = min(picture.size)
    for _ in range(int(rng.integers(2, 6))):
        radius = float(rng.uniform(0.05, 0.14)) * shorter
        x, y = (float(rng.uniform(0.1, 0.9)) * side for side in picture.size)
        colour = tuple(int(tone) for tone in rng.integers(60, 256, 3))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*colour, 255))
        for eye in (-0.35, 0.35):
            spot = (x + eye * radius, y - 0.2 * radius)
            pen.circle(spot, 0.12 * radius, fill=(20, 20, 20, 255))
        mouth = (x - 0.5 * radius, y - 0.3 * radius, x + 0.5 * radius, y + 0.55 * radius)
        pen.arc(mouth, 20, 160, fill=(20, 20, 20, 255), width=max(2, round(0.1 * radius)))
    word = _WORDS[int(rng.integers(len(_WORDS)))]
    font = ImageFont.load_default(float(rng.uniform(0.15, 0.3)) * shorter)
    middle = (picture.width / 2, float(rng.uniform(0.3, 0.7)) * picture.height)
    pen.text(middle, word, fill=(255, 255, 255, int(rng.integers(60, 140))), font=font, anchor="mm")
    return Image.alpha_composite(picture.convert("RGBA"), over).convert("RGB")


def _one_colour(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Grey, sepia, or the green of night vision."""
    tint = ((255, 255, 255), (255, 230, 185), (90, 255, 110))[int(rng.integers(3))]
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    return Image.fromarray((grey * np.array(tint, np.float32) / 255).astype(np.uint8))


def _few_colours(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """A palette of its own, dithered."""
    colours = int(rng.integers(12, 64))
    return picture.quantize(colours, dither=Image.Dither.FLOYDSTEINBERG).convert("RGB")


def _bent(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """A wide lens, or the surface of water."""
    width, height = picture.size
    if rng.integers(2):
        strength = float(rng.uniform(0.12, 0.35))

        def source(x: float, y: float) -> tuple[float, float]:
            u, v = 2 * x / width - 1, 2 * y / height - 1
            scale = (1 + strength * (u * u + v * v)) / (1 + strength)
            return (u * scale + 1) * width / 2, (v * scale + 1) * height / 2

    else:
        depth, period = float(rng.uniform(2, 7)), float(rng.uniform(40, 160))
        phase = float(rng.uniform(0, 2 * math.pi))
        picture = Image.blend(picture, Image.new("RGB", picture.size, (40, 90, 170)), 0.25)

        def source(x: float, y: float) -> tuple[float, float]:
            shift = depth * math.sin(2 * math.pi * y / period + phase)
            return x + shift, y + depth * math.sin(2 * math.pi * x / period)

    mesh = []
    for left in range(0, width, _CELL):
        for top in range(0, height, _CELL):
            right, bottom = min(left + _CELL, width), min(top + _CELL, height)
            corners = ((left, top), (left, bottom), (right, bottom), (right, top))
            quad = [one for corner in corners for one in source(*corner)]
            mesh.append(((left, top, right, bottom), quad))
    return picture.transform(picture.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _caption(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """A bar with words above, below or both, as pictures are passed on."""
    above, below = ((1, 0), (0, 1), (1, 1))[int(rng.integers(3))]
    bar = round(float(rng.uniform(0.12, 0.35)) * picture.height)
    ground, ink = (((255,) * 3, (0,) * 3), ((24, 25, 28), (240,) * 3))[int(rng.integers(2))]
    whole = Image.new("RGB", (picture.width, picture.height + bar * (above + below)), ground)
    whole.paste(picture, (0, bar * above))
    pen = ImageDraw.Draw(whole)
    font = ImageFont.load_default(bar * 0.4)
    for there, middle in ((above, bar / 2), (below, whole.height - bar / 2)):
        if there:
            word = _WORDS[int(rng.integers(len(_WORDS)))]
            pen.text((whole.width / 2, middle), word, fill=ink, font=font, anchor="mm")
    return whole


_DEGRADE: dict[Family, Callable[[np.random.Generator, Image.Image], Image.Image]] = {
    Family.WEATHER: _weather,
    Family.STICKERS: _stickers,
    Family.ONE_COLOUR: _one_colour,
    Family.FEW_COLOURS: _few_colours,
    Family.BENT: _bent,
    Family.CAPTION: _caption,
}
