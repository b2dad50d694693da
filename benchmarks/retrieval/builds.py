"""Which maps are built of which artwork, and how: a plan, and the maps that it names.

Half of the maps stand alone. The others come in groups that are easily mistaken for one another:
crops of one picture, recolourings of one picture, and series, whose members share a frame and a
ground.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from benchmarks.retrieval import artwork
from benchmarks.retrieval.artwork import Half, Piece, Pixels
from exporter.training import mapart
from inference.errors import StartupError

_SHAPES = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (2, 3), (3, 1))
_ONE_MAP = 0.5
# Of the groups; groups have three members on average, so less than half of the maps are alone.
_ALONE = 0.7
_GROUPS = (2, 4)
_PIXEL_ART = 96
# Two windows whose sides are at most this, in opposite corners, share at most a fifth of either.
_CROP_SIDES = (0.42, 0.62)
# Of a picture and of a crop, in levels of the channel that varies most; below, it shows nothing.
_LEAST_DEVIATION = 18.0
_LEAST_CROP_DEVIATION = 26.0


class Relation(StrEnum):
    """What a map has in common with others of the set."""

    ALONE = "alone"
    CROP = "crops of one picture"
    RECOLOUR = "recolourings"
    SERIES = "series"


@dataclass(frozen=True, slots=True)
class Build:
    """One map to build.

    Attributes:
        number: Its place in the set.
        piece: What it shows.
        relation: What it has in common with the others of its group.
        group: The number of the group's first map.
        seed: Decides everything random about it.
        shared: Decides what the group has in common.
    """

    number: int
    piece: Piece
    relation: Relation
    group: int
    seed: int
    shared: int


def plan(pieces: Sequence[Piece], half: Half, count: int, seed: int) -> list[Build]:
    """Decide what the maps of a half show.

    The first maps of a longer plan are those of a shorter one.

    Raises:
        StartupError: The half has not enough artwork for that many maps.
    """
    own = [piece for piece in pieces if piece.half is half]
    rng = np.random.default_rng([seed, len(own), *half.value.encode()])
    own = _in_turn([own[index] for index in rng.permutation(len(own))])
    builds: list[Build] = []
    relations = (Relation.CROP, Relation.RECOLOUR, Relation.SERIES)
    while len(builds) < count:
        alone = rng.random() < _ALONE
        relation = Relation.ALONE if alone else relations[int(rng.integers(len(relations)))]
        members = 1 if alone else int(rng.integers(*_GROUPS, endpoint=True))
        needed = members if relation is Relation.SERIES else 1
        if len(own) < needed:
            raise StartupError(
                f"The artwork gives {len(builds):,} different maps for the {half} half, not "
                f"{count:,}: ask for fewer with --maps, or add pictures to the folder."
            )
        chosen, own = own[:needed], own[needed:]
        group, shared = len(builds), int(rng.integers(2**32))
        for member in range(members):
            piece = chosen[member % needed]
            number = len(builds)
            builds.append(
                Build(number, piece, relation, group, int(rng.integers(2**32)) * 4 + member, shared)
            )
    return builds[:count]


def _in_turn(pieces: Sequence[Piece]) -> list[Piece]:
    """Order pieces so that every beginning of the list mixes the sources, large ones less."""
    sizes = Counter(piece.source for piece in pieces)
    seen: Counter[str] = Counter()
    places = []
    for piece in pieces:
        seen[piece.source] += 1
        places.append(seen[piece.source] / sizes[piece.source] ** 0.6)
    return [pieces[index] for index in np.argsort(places, kind="stable")]


def draw(folder: Path, build: Build) -> Pixels:
    """Build a map.

    Returns:
        ``uint8`` RGB of shape (128 * rows, 128 * columns, 3), map colours only.
    """
    rng = np.random.default_rng(build.seed)
    shared = np.random.default_rng(build.shared)
    picture = _load(folder, build.piece, _ground(shared))
    member = build.seed % 4
    if build.relation is Relation.CROP:
        picture = _crop(rng, picture, member)
    columns, rows = _shape(shared, picture.size)
    size = (columns * mapart.MAP_SIDE, rows * mapart.MAP_SIDE)
    frame = _frame(shared) if build.relation is Relation.SERIES else None
    fitted = _fit(picture, size)
    if build.relation is Relation.RECOLOUR:
        fitted = _recolour(fitted, member, shared)
    if frame is not None:
        fitted = _put_into(fitted, frame, member)
    style = mapart.random_style(shared if build.relation is Relation.SERIES else rng)
    return mapart.quantise(np.asarray(fitted), *style)


def _load(folder: Path, piece: Piece, ground: tuple[int, ...]) -> Image.Image:
    """Read a piece over a ground that it stands out from."""
    grounds = (ground, (255, 255, 255), (20, 20, 20))
    pictures = [artwork.load(folder, piece.path, ground)]
    while _deviation(pictures[-1]) < _LEAST_DEVIATION and len(pictures) < len(grounds):
        pictures.append(artwork.load(folder, piece.path, grounds[len(pictures)]))
    return max(pictures, key=_deviation)


def _deviation(picture: Image.Image) -> float:
    small = picture.resize((32, 32), Image.Resampling.BOX)
    return float(np.asarray(small, np.float32).std(axis=(0, 1)).max())


def _ground(rng: np.random.Generator) -> tuple[int, ...]:
    """What shows through transparent places: white, black, or any colour."""
    grounds = [
        (255, 255, 255),
        (20, 20, 20),
        tuple(int(value) for value in rng.integers(0, 256, 3)),
    ]
    return grounds[int(rng.choice(3, p=(0.3, 0.15, 0.55)))]


def _shape(rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int]:
    """Columns and rows that suit a picture: half of all walls are one map."""
    if rng.random() < _ONE_MAP:
        return (1, 1)
    wanted = np.log(size[0] / size[1])
    misfit = np.array([abs(np.log(columns / rows) - wanted) for columns, rows in _SHAPES])
    weights = np.exp(-4 * misfit) / np.array([columns * rows for columns, rows in _SHAPES]) ** 0.3
    return _SHAPES[int(rng.choice(len(_SHAPES), p=weights / weights.sum()))]


def _fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Fill a wall with a picture, cutting off what is over; small pixel art stays crisp."""
    crisp = max(picture.size) <= _PIXEL_ART
    method = Image.Resampling.NEAREST if crisp else Image.Resampling.LANCZOS
    return ImageOps.fit(picture, size, method)


def _crop(rng: np.random.Generator, picture: Image.Image, member: int) -> Image.Image:
    """Cut a window out of one corner of a picture, of each member's own."""
    for _ in range(8):
        wide, tall = (side * rng.uniform(*_CROP_SIDES) for side in picture.size)
        room_x, room_y = picture.width - wide, picture.height - tall
        left = rng.uniform(0, 0.25) * room_x if member % 2 == 0 else rng.uniform(0.75, 1) * room_x
        top = rng.uniform(0, 0.25) * room_y if member in {0, 3} else rng.uniform(0.75, 1) * room_y
        window = picture.crop((round(left), round(top), round(left + wide), round(top + tall)))
        if _deviation(window) >= _LEAST_CROP_DEVIATION:
            return window
    # Nothing but sky there. The members' windows differ by their sides at least.
    side = 1 - 0.1 * member
    return ImageOps.fit(picture, (round(picture.width * side), round(picture.height * side)))


def _recolour(picture: Image.Image, member: int, shared: np.random.Generator) -> Image.Image:
    """Give each member other colours; the first keeps its own."""
    if member == 0:
        return picture
    if member == _GROUPS[1] - 1:
        return ImageOps.invert(picture)
    hue, saturation, value = picture.convert("HSV").split()
    turn = int(shared.integers(60, 100)) * member
    turned = hue.point(lambda level: (level + turn) % 256)
    # What has no hue can have none turned: give it one.
    stronger = saturation.point(lambda level: min(255, 60 + level))
    return Image.merge("HSV", (turned, stronger, value)).convert("RGB")


@dataclass(frozen=True, slots=True)
class _Frame:
    colours: tuple[tuple[int, ...], tuple[int, ...]]
    width: float
    caption: str


def _frame(rng: np.random.Generator) -> _Frame:
    """What every map of a series has around it."""
    first, second = (tuple(int(value) for value in rng.integers(0, 256, 3)) for _ in range(2))
    letters = "".join(chr(code) for code in rng.integers(65, 91, 3))
    return _Frame((first, second), float(rng.uniform(0.08, 0.13)), letters)


def _put_into(picture: Image.Image, frame: _Frame, member: int) -> Image.Image:
    """Put a picture into its series' frame, with the series' name and the picture's number."""
    unit = min(picture.size)
    outer, inner = round(unit * frame.width), round(unit * frame.width * 0.4)
    result = ImageOps.expand(
        ImageOps.expand(
            picture.resize(
                (picture.width - 2 * (outer + inner), picture.height - 2 * (outer + inner)),
                Image.Resampling.LANCZOS,
            ),
            inner,
            fill=frame.colours[1],
        ),
        outer,
        fill=frame.colours[0],
    )
    text = f"{frame.caption} {member + 1}"
    draw_on = ImageDraw.Draw(result)
    font = ImageFont.load_default(size=max(9, round(outer * 0.8)))
    at = (result.width / 2, result.height - outer / 2)
    draw_on.text(at, text, frame.colours[1], font, anchor="mm")
    return result
