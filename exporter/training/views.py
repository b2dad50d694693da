"""Degraded views of maps for training, batched in torch on any device.

What happens to a map between the game and a search, in tensors without gradients: a camera
looks at a wall in perspective; the screenshot has any shape and is squashed to a square, as the
model's preprocessing does; the game's interface, the light, the lens, a phone's photo of a screen
and compression each take their toll. A *hardness* from 0 to 1 scales everything, so that training
can begin with mild views: from random weights, contrastive learning stalls on hard ones.

This is deliberately not the renderer of `scenes`: that one measures, so it must not be what was
trained on. The augmentation of copies for retrieval follows E. Pizzi et al., "A Self-Supervised
Descriptor for Image Copy Detection" (CVPR 2022); rendering at twice the size and averaging is
ordinary supersampling.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_OVERSAMPLE = 2
_MARGIN = 1.02
"""Edge of the wall's frame, in half widths of the map."""


class Views(NamedTuple):
    """A batch of views."""

    pixels: Tensor
    """``float32`` (n, 3, side, side), RGB in 0..1."""

    geometry: Tensor
    """``float32`` (n, 3, cells, cells): per patch, the map's u and v in -1..1 at its centre and
    whether the map is there (1) or not (0)."""


class _Shot(NamedTuple):
    """Maps, and how a camera looks at them; see `Viewer.degrade` and `_camera`."""

    maps: Tensor
    aspects: Tensor
    frame: Tensor
    to_wall: Tensor
    hardness: Tensor


class Dice:
    """Random numbers of one batch, one value a sample, from one generator.

    The generator lives on the device of the batch; its seed decides the whole batch.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator
        self.device = generator.device

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
        """Uniform numbers of shape (n, *shape)."""
        size = (self.count, *shape)
        drawn = torch.rand(size, generator=self.generator, device=self.device)
        return drawn * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers of shape (n, *shape)."""
        return torch.randn((self.count, *shape), generator=self.generator, device=self.device)

    def chance(self, probability: Tensor | float) -> Tensor:
        """1.0 with this probability, else 0.0; shape (n,)."""
        return (self.uniform() < probability).float()


class Viewer:
    """Makes views.

    Args:
        side: Pixels along a view: the model's image size.
        cells: Patches along a view, for the geometry.
        device: Where the views are made.
        seed: Seeds the bank of wall textures.
    """

    def __init__(self, side: int, cells: int, device: torch.device, seed: int = 0) -> None:
        self.side = side
        self.cells = cells
        self.device = device
        generator = torch.Generator(device).manual_seed(seed)
        self.textures = _texture_bank(256, generator)

    def archive(self, maps: Tensor, aspects: Tensor, generator: torch.Generator) -> Views:
        """Views as they are posted: half clean renders, half straight, lightly worn screenshots.

        Args:
            maps: ``float32`` (n, 3, h, w) in 0..1, squashed to a square.
            aspects: Width over height of each wall, ``float32`` (n,).
            generator: On this device; decides everything random.
        """
        pixels = functional.interpolate(
            maps, size=(self.side, self.side), mode="bilinear", antialias=True
        )
        geometry = _identity_geometry(self.cells, self.device).repeat(len(maps), 1, 1, 1)
        order = torch.randperm(len(maps), generator=generator, device=self.device)
        worn = order[: len(maps) // 2]
        hardness = Dice(len(worn), generator).uniform(0.0, 0.3)
        posted = self.degrade(maps[worn], aspects[worn], hardness, generator)
        pixels[worn], geometry[worn] = posted.pixels, posted.geometry
        return Views(pixels, geometry)

    def degrade(
        self, maps: Tensor, aspects: Tensor, hardness: Tensor, generator: torch.Generator
    ) -> Views:
        """Views as a camera and an internet would make them.

        Args:
            maps: ``float32`` (n, 3, h, w) in 0..1, squashed to a square.
            aspects: Width over height of each wall, ``float32`` (n,).
            hardness: 0 (straight, clean) to 1 (as bad as it gets), ``float32`` (n,).
            generator: On this device; decides everything random.
        """
        dice = Dice(len(maps), generator)
        frame = _frame_aspects(dice)
        to_wall = _camera(dice, aspects, frame, hardness)
        shot = _Shot(maps, aspects, frame, to_wall, hardness)
        picture, geometry = self._render(dice, shot)
        picture = _light(dice, picture, hardness)
        picture = _interface(dice, picture, frame, hardness)
        picture = _lens(dice, picture, hardness)
        picture = _screen_photo(dice, picture, hardness)
        picture = _compress(dice, picture, hardness)
        return Views(picture.clamp(0, 1), geometry)

    def _render(self, dice: Dice, shot: _Shot) -> tuple[Tensor, Tensor]:
        """Look at the walls: pixels (n, 3, side, side) and the patches' geometry."""
        maps, aspects, frame, to_wall, hardness = shot
        x, y, ahead = _wall_points(to_wall, frame, self.side)
        u = x / aspects[:, None, None]
        picture = self._background(dice, x, y, ahead)
        # A second map beside the first, as on any gallery wall.
        gap = dice.uniform(2.1, 2.6) * torch.sign(dice.uniform(-1, 1))
        present = dice.chance(0.3 * hardness)
        some = present.nonzero().squeeze(1)
        if len(some):
            beside = _sample(maps.roll(1, 0)[some], u[some] - gap[some, None, None], y[some])
            picture[some] = picture[some] * (1 - beside[:, 3:]) + beside[:, :3]
        framed = (dice.uniform() < 0.5)[:, None, None]
        edge = (u.abs() < _MARGIN) & (y.abs() < _MARGIN) & ahead & framed
        picture *= 1 - 0.55 * edge[:, None].float()
        # Only the map itself is worth supersampling.
        fine_x, fine_y, _ = _wall_points(to_wall, frame, self.side * _OVERSAMPLE)
        shown = _sample(maps, fine_x / aspects[:, None, None], fine_y)
        shown = functional.avg_pool2d(shown, _OVERSAMPLE)
        picture = picture * (1 - shown[:, 3:]) + shown[:, :3]
        cell_x, cell_v, cell_ahead = _wall_points(to_wall, frame, self.cells)
        cell_u = cell_x / aspects[:, None, None]
        inside = (cell_u.abs() < 1) & (cell_v.abs() < 1) & cell_ahead
        geometry = torch.stack([cell_u.clamp(-1, 1), cell_v.clamp(-1, 1), inside.float()], 1)
        return picture, geometry

    def _background(self, dice: Dice, x: Tensor, y: Tensor, ahead: Tensor) -> Tensor:
        """The wall's blocks, floor and sky behind the map."""
        texture = _pick(self.textures, dice)
        scale = dice.uniform(0.25, 1.2)[:, None, None, None]
        tiled = torch.stack([x, y], -1) * scale + dice.uniform(0, 1, 1, 1, 1)
        tiled = tiled.remainder_(1.0).mul_(2).sub_(1)
        picture = functional.grid_sample(texture, tiled, "nearest", align_corners=False)
        plain = dice.uniform(0, 1, 3, 1, 1)
        # A third of the frames have flat surroundings: the sky, an editor's canvas, a dark mode.
        picture = torch.lerp(picture, plain, _wide(dice.chance(0.33)))
        floor = dice.uniform(1.1, 4.0)[:, None, None]
        ground = _pick(self.textures, dice).mean((2, 3), keepdim=True)
        ground = ground * _wide(dice.uniform(0.3, 1.1))
        picture = torch.lerp(picture, ground, (y > floor).float()[:, None])
        top = -dice.uniform(1.1, 5.0)[:, None, None]
        sky = dice.uniform(0.2, 1.0, 3, 1, 1)
        return torch.lerp(picture, sky, ((y < top) | ~ahead).float()[:, None])


def _identity_geometry(cells: int, device: torch.device) -> Tensor:
    """Geometry of a picture that is the whole map, (1, 3, cells, cells)."""
    at = (torch.arange(cells, device=device) + 0.5) * (2 / cells) - 1
    v, u = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)])[None]


def _texture_bank(count: int, generator: torch.Generator) -> Tensor:
    """Tileable 32 x 32 walls, two blocks each way: (count, 3, 32, 32).

    Noise in blocks of colour, with the joints of bricks and planks.
    """
    dice = Dice(count, generator)
    base = dice.uniform(0.08, 0.85, 1, 1, 1) + dice.normal(3, 1, 1) * 0.09
    grain = dice.normal(1, 32, 32) * dice.uniform(0.0, 0.12, 1, 1, 1)
    coarse = dice.normal(1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    texture = base + grain + coarse * dice.uniform(0.0, 0.12, 1, 1, 1)
    row = torch.arange(32, device=dice.device)[None, :, None]
    column = torch.arange(32, device=dice.device)[None, None, :]
    course = torch.tensor([4, 8, 16, 32], device=dice.device)[
        torch.randint(4, (count,), generator=generator, device=dice.device)
    ][:, None, None]
    shifted = column + (row // course) * 8
    brick = course * 2
    joints = ((row % course == 0) | (shifted % brick == 0)).float()[:, None]
    jointed = dice.chance(0.6)[:, None, None, None]
    texture = texture * (1 - joints * jointed * dice.uniform(0.1, 0.5, 1, 1, 1))
    return texture.clamp(0, 1)


def _pick(bank: Tensor, dice: Dice) -> Tensor:
    """One entry of a bank for each sample."""
    index = torch.randint(len(bank), (dice.count,), generator=dice.generator, device=dice.device)
    return bank[index]


def _frame_aspects(dice: Dice) -> Tensor:
    """Width over height of each picture: 16:9 mostly, and what else people post; (n,)."""
    shapes = torch.tensor([16 / 9, 16 / 9, 16 / 9, 4 / 3, 1.0, 9 / 16, 2.1], device=dice.device)
    index = torch.randint(len(shapes), (dice.count,), generator=dice.generator, device=dice.device)
    return shapes[index] * dice.uniform(0.93, 1.07)


def _camera(dice: Dice, aspects: Tensor, frame: Tensor, hardness: Tensor) -> Tensor:
    """Place a camera before each wall.

    The wall is the plane z = 0, its map spans -aspect..aspect by -1..1. The frame spans
    -frame..frame by -1..1.

    Returns:
        Homographies from the frame to the wall, ``float32`` (n, 3, 3).
    """
    # Most views, even hard ones, are not at the limit of the angles.
    yaw = dice.uniform(-1, 1) * hardness * math.radians(50)
    pitch = dice.uniform(-1, 1) * hardness * math.radians(32)
    roll = dice.normal() * hardness * math.radians(4)
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)

    def matrix(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    cos, sin = torch.cos, torch.sin
    about_y = matrix((cos(yaw), zero, sin(yaw)), (zero, one, zero), (-sin(yaw), zero, cos(yaw)))
    about_x = matrix(
        (one, zero, zero), (zero, cos(pitch), -sin(pitch)), (zero, sin(pitch), cos(pitch))
    )
    about_z = matrix((cos(roll), -sin(roll), zero), (sin(roll), cos(roll), zero), (zero, zero, one))
    turn = about_z @ about_x @ about_y
    # At this distance the map would just fit; it then fills 100 % (or a bit more) down to 25 %.
    focal = dice.uniform(1.0, 2.2)
    fit = focal * torch.maximum(aspects / frame, one)
    least, most = 0.75 - 0.45 * hardness, 1.15 - 0.3 * hardness
    fill = torch.lerp(least, most, dice.uniform())
    distance = fit / fill
    slack_x = (frame - aspects * fill * torch.minimum(frame / aspects, one)).clamp(min=0.0)
    reach = dice.uniform(-1, 1, 2) * (0.15 + 0.85 * hardness)[:, None]
    slack_y = (1 - fill * torch.minimum(frame / aspects, one)).clamp(min=0.0)
    out = 0.18 * hardness
    shift_x = reach[:, 0] * (slack_x + out) * distance / focal
    shift_y = reach[:, 1] * (slack_y + out) * distance / focal
    place = torch.stack([shift_x, shift_y, distance], -1)
    # Points of the wall have z = 0, so the third column of the rotation drops out.
    forward = torch.stack([turn[..., 0], turn[..., 1], place], -1)
    lens = torch.stack([focal, focal, one], -1)
    to_wall: Tensor = torch.linalg.inv(lens[..., None] * forward)
    return to_wall


def _wall_points(to_wall: Tensor, frame: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each pixel's ray meets the wall.

    Returns:
        x and y on the wall and whether the wall is before the camera, each (n, side, side). Rays
        that miss the wall get a point far away.
    """
    at = (torch.arange(side, device=frame.device) + 0.5) * (2 / side) - 1
    across = at[None, None, :] * frame[:, None, None]
    down = at[None, :, None]

    def along(row: int) -> Tensor:
        a, b, c = to_wall[:, row, :, None, None].unbind(1)
        return a * across + (b * down + c)

    depth = along(2)
    ahead = depth > 1e-6
    inverse = torch.where(ahead, depth, 1e-6).reciprocal_()
    far = 1e4
    return along(0).mul_(inverse).clamp_(-far, far), along(1).mul_(inverse).clamp_(-far, far), ahead


def _sample(maps: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Look maps up at u and v in -1..1: RGB times coverage, and coverage, (n, 4, side, side)."""
    opaque = torch.cat([maps, torch.ones_like(maps[:, :1])], 1)
    return functional.grid_sample(opaque, torch.stack([u, v], -1), align_corners=False)


def _wide(values: Tensor) -> Tensor:
    """One value a sample, ready to multiply pixels: (n,) to (n, 1, 1, 1)."""
    return values[:, None, None, None]


def _axes(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """X and y of each pixel in -1..1, (1, 1, side, side)."""
    at = (torch.arange(side, device=device) + 0.5) * (2 / side) - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    return x[None, None], y[None, None]


def _light(dice: Dice, picture: Tensor, hardness: Tensor) -> Tensor:
    """Night, shaders, torches: brightness, colour casts, gradients, contrast, saturation."""
    x, y = _axes(picture.shape[-1], dice.device)
    hard = _wide(hardness)
    dark = _wide(dice.chance(0.35 * hardness + 0.05))
    bright = torch.exp(
        dice.normal(1, 1, 1) * 0.22 * hard - dark * dice.uniform(0.2, 1.3, 1, 1, 1) * hard
    )
    cast = torch.exp(dice.normal(3, 1, 1) * 0.17 * hard)
    turn = dice.uniform(0, 2 * math.pi, 1, 1, 1)
    slope = dice.uniform(0, 0.5, 1, 1, 1) * hard
    gradient = 1 + slope * (x * torch.cos(turn) + y * torch.sin(turn))
    lamp_x, lamp_y = dice.uniform(-1, 1, 1, 1, 1), dice.uniform(-1, 1, 1, 1, 1)
    lamp = torch.exp(-((x - lamp_x) ** 2 + (y - lamp_y) ** 2) / dice.uniform(0.3, 2, 1, 1, 1))
    lit = _wide(dice.chance(0.3 * hardness))
    falloff = 1 - lit * 0.7 * (1 - lamp)
    picture = (picture * (bright * cast * gradient * falloff)).clamp(0, 1)
    gamma = torch.exp(dice.normal(1, 1, 1) * 0.22 * hard)
    picture = (picture + 1e-4) ** gamma
    grey = picture.mean(1, keepdim=True)
    saturation = 1 + dice.uniform(-0.5, 0.5, 1, 1, 1) * hard
    contrast = 1 + dice.uniform(-0.45, 0.3, 1, 1, 1) * hard
    level = picture.mean((1, 2, 3), keepdim=True)
    picture = grey + (picture - grey) * saturation
    return (level + (picture - level) * contrast).clamp(0, 1)


def _interface(dice: Dice, picture: Tensor, frame: Tensor, hardness: Tensor) -> Tensor:
    """What is on top: hotbar, hearts, chat, crosshair, the player's hand, other players."""
    x, y = _axes(picture.shape[-1], dice.device)
    shown = _wide(dice.chance(0.25 + 0.6 * hardness))
    # The interface keeps its proportions, so it covers more of a narrow picture.
    wide = _wide((dice.uniform(0.28, 0.5) * (16 / 9) / frame).clamp(max=0.98))
    tall = wide * _wide(frame) * 0.12
    bar = shown * ((x.abs() < wide) & (y > 1 - 2 * tall) & (y < 1)).float()
    slots = torch.sin(x / wide * 9 * math.pi).abs()
    item = dice.uniform(0, 1, 3, 1, 9)
    slot = ((x / wide + 1) * 4.5).long().clamp(0, 8).expand(dice.count, 3, *x.shape[2:])
    items = torch.gather(item.expand(-1, -1, slot.shape[2], -1), 3, slot)
    body = torch.where(slots > 0.6, items, items.new_tensor(0.45))
    picture = torch.lerp(picture, body, bar * 0.75)
    hearts = (
        shown
        * ((x > -wide) & (x < -wide * 0.1) & (y > 1 - 3 * tall) & (y < 1 - 2.4 * tall)).float()
    )
    red = picture.new_tensor([0.85, 0.1, 0.1])[:, None, None]
    picture = torch.lerp(
        picture, red.expand_as(picture), hearts * (torch.sin(x / wide * 60) > -0.2)
    )
    chat = _wide(dice.chance(0.35 * hardness + 0.05))
    right = dice.uniform(-0.6, 0.3, 1, 1, 1)
    upper, lower = dice.uniform(-0.2, 0.5, 1, 1, 1), dice.uniform(0.55, 0.85, 1, 1, 1)
    panel = chat * ((x < right) & (y > upper) & (y < lower)).float()
    picture = picture * (1 - panel * 0.45)
    noise = dice.uniform(0, 1, 1, 32, 32)
    ink = functional.interpolate(noise, size=picture.shape[-2:], mode="nearest")
    rows = torch.sin(y * 60) > 0.1
    picture = torch.lerp(picture, torch.ones_like(picture), panel * (ink > 0.35) * rows * 0.85)
    cross = (
        shown
        * (((x.abs() < 0.03) & (y.abs() < 0.008)) | ((x.abs() < 0.008) & (y.abs() < 0.03))).float()
    )
    picture = torch.lerp(picture, 1 - picture, cross)
    for _ in range(2):
        present = _wide(dice.chance(0.25 * hardness))
        at_x, at_y = dice.uniform(-1, 1, 1, 1, 1), dice.uniform(-0.6, 1.2, 1, 1, 1)
        turn = dice.uniform(-0.6, 0.6, 1, 1, 1)
        along = (x - at_x) * torch.cos(turn) + (y - at_y) * torch.sin(turn)
        across = (y - at_y) * torch.cos(turn) - (x - at_x) * torch.sin(turn)
        size = dice.uniform(0.08, 0.3, 2, 1, 1)
        body_mask = present * ((along.abs() < size[:, :1]) & (across.abs() < size[:, 1:])).float()
        colour = dice.uniform(0, 0.9, 3, 1, 1).expand_as(picture)
        picture = torch.lerp(picture, colour, body_mask)
    return picture


def _lens(dice: Dice, picture: Tensor, hardness: Tensor) -> Tensor:
    """Blur, out of focus or from motion along an axis, by separable Gaussians per sample."""
    blurred = dice.chance(0.15 + 0.65 * hardness) * hardness
    sigma = dice.uniform(0.2, 1.9, 2) * blurred[:, None]
    motion = 1 + dice.chance(0.2)[:, None] * torch.stack(
        [dice.uniform(0, 1), dice.uniform(-1, 0)], 1
    )
    sigma = sigma * motion + 0.05
    taps = torch.arange(-5, 6, device=dice.device)
    kernel = torch.exp(-0.5 * (taps[None, None] / sigma[..., None]) ** 2)
    kernel = (kernel / kernel.sum(-1, keepdim=True)).repeat_interleave(3, 0)
    count, channels, side, _ = picture.shape
    flat = picture.reshape(1, count * channels, side, side)
    flat = functional.pad(flat, (5, 5, 5, 5), mode="replicate")
    flat = functional.conv2d(flat, kernel[:, 0][:, None, None, :], groups=count * channels)
    flat = functional.conv2d(flat, kernel[:, 1][:, None, :, None], groups=count * channels)
    return flat.view_as(picture)


def _screen_photo(dice: Dice, picture: Tensor, hardness: Tensor) -> Tensor:
    """A phone before a monitor: moire, glare, raised black, and a sensor's noise."""
    x, y = _axes(picture.shape[-1], dice.device)
    photo = _wide(dice.chance(0.35 * hardness))
    wave_x, wave_y = dice.uniform(-70, 70, 1, 1, 1), dice.uniform(-70, 70, 1, 1, 1)
    phase = dice.uniform(0, 2 * math.pi, 3, 1, 1)
    moire = torch.sin(x * wave_x + y * wave_y + phase) * dice.uniform(0, 0.12, 1, 1, 1)
    picture = picture * (1 + photo * moire)
    at_x, at_y = dice.uniform(-1, 1, 1, 1, 1), dice.uniform(-1, 1, 1, 1, 1)
    spread = dice.uniform(0.02, 0.4, 1, 1, 1)
    spot = torch.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / spread)
    picture = torch.lerp(
        picture, torch.ones_like(picture), photo * spot * dice.uniform(0, 0.7, 1, 1, 1)
    )
    picture = torch.lerp(
        picture, torch.full_like(picture, 0.5), photo * dice.uniform(0, 0.3, 1, 1, 1)
    )
    grain = _wide(dice.chance(0.5) * hardness) * dice.uniform(0, 0.1, 1, 1, 1)
    return picture + grain * dice.normal(*picture.shape[1:])


def _compress(dice: Dice, picture: Tensor, hardness: Tensor) -> Tensor:
    """Rescaling and JPEG: a block transform's coefficients rounded, colour at half resolution.

    Squashing a screenshot to a small square shrinks JPEG's blocks of 8 pixels to one or two, or
    to about four for small pictures; hence blocks of 4.
    """
    small = functional.interpolate(picture, scale_factor=0.5, mode="bilinear", antialias=True)
    soft = functional.interpolate(small, size=picture.shape[-2:], mode="bilinear")
    rescaled = _wide(dice.chance(0.3 * hardness))
    picture = torch.lerp(picture, soft, rescaled)
    grey, soft_grey = picture.mean(1, keepdim=True), soft.mean(1, keepdim=True)
    halved = grey + (soft - soft_grey)
    jpeg = _wide(dice.chance(0.2 + 0.7 * hardness))
    picture = torch.lerp(picture, halved, jpeg)
    to_frequency = _block_transform(dice.device)
    count, channels, side, _ = picture.shape
    blocks = picture.view(count, channels, side // 4, 4, side // 4, 4).transpose(3, 4)
    coefficients = blocks.reshape(count, -1, 16) @ to_frequency.T
    at = torch.arange(16, device=dice.device)
    frequency = (at // 4 + at % 4).float()
    step = (dice.uniform(0.01, 0.16) * hardness)[:, None, None] * (0.25 + frequency) + 1e-4
    rounded = (coefficients / step).round_().mul_(step)
    restored = (rounded @ to_frequency).view(count, channels, side // 4, side // 4, 4, 4)
    return torch.lerp(picture, restored.transpose(3, 4).reshape_as(picture), jpeg)


def _block_transform(device: torch.device) -> Tensor:
    """The orthonormal cosine transform of blocks of 4 x 4, rows by coefficient: (16, 16)."""
    at = torch.arange(4, device=device)
    cosines = torch.cos(math.pi / 4 * (at[None] + 0.5) * at[:, None]) * math.sqrt(0.5)
    cosines[0] *= math.sqrt(0.5)
    return torch.kron(cosines, cosines)
