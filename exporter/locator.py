"""The locator: where in a picture the map is, so that the tower sees the map alone, and upright.

A small convolutional network looks at the whole picture and says where the four corners of the map
are; a second one looks at what lies there and corrects that. The map is then drawn upright
from the corners (M. Jaderberg et al., "Spatial Transformer Networks", 2015), by the homography that
P. Heckbert gives in closed form ("Fundamentals of Texture Mapping and Image Warping", 1989). The
corners are learnt from views whose geometry is known, not through the sampling.

It travels with a checkpoint as `locator.safetensors`, whose metadata hold its sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final, NamedTuple, ParamSpec

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from exporter.errors import ExportError, first_line

P = ParamSpec("P")

FILE: Final = "locator.safetensors"
"""Name of the weights in a checkpoint folder. A folder without it is a plain CLIP."""

_MARGIN: Final = 1.3
"""The correction sees this much of what the first guess enclosed."""

MIDDLE_LEVEL: Final = 127.5
"""Middle grey among the levels of a byte."""

_MIDDLE: Final = 0.5

_LEAST: Final = 1e-4
_SHRINK: Final = 0.25
"""Both keep denominators away from zero, for the wildest of guesses."""


@dataclass(frozen=True, slots=True)
class LocatorSettings:
    """Sizes of the two networks.

    Attributes:
        image_size: Side in pixels of the square pictures that the first network reads.
        second_size: Side of the enclosed part that the second network looks at.
        first_widths: The first network's channels at a quarter, an eighth, a sixteenth and a
            thirty-second of the side.
        second_widths: The second's at a half, a quarter, an eighth and a sixteenth.
        depths: Residual blocks at each of these scales, in both.
        context: Channels that the coarsest cells tell the finer ones.
    """

    image_size: int = 192
    second_size: int = 64
    first_widths: tuple[int, int, int, int] = (48, 48, 96, 160)
    second_widths: tuple[int, int, int, int] = (24, 48, 96, 160)
    depths: tuple[int, int, int, int] = (0, 1, 2, 3)
    context: int = 64


class Guess(NamedTuple):
    """Where the corners may be."""

    corners: Tensor
    """float32 [N, 4, 2]."""

    opinions: Tensor
    """float32 [N, cells, 4, 2]: what each cell said, of which the corners are the mean."""


class _Stem(NamedTuple):
    """A network's first convolution."""

    kernel: int
    stride: int


class Locator(nn.Module):
    """Pictures, float32 [N, 3, S, S] in 0..1, to corners, float32 [N, 4, 2].

    Corners are x and y from the map's upper left clockwise; the picture spans -1..1 both ways.
    """

    def __init__(self, settings: LocatorSettings) -> None:
        super().__init__()
        self.settings = settings
        self.first = _Regressor(_Stem(8, 4), settings.image_size, settings.first_widths, settings)
        self.second = _Regressor(
            _Stem(3, 2), settings.second_size, settings.second_widths, settings
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Finds the corners."""
        return self.steps(pixels)[-1].corners

    def upright(self, pixels: Tensor, side: int) -> Tensor:
        """Draws the map of each picture upright: float32 [N, 3, side, side] in 0..1."""
        return draw(pixels, self(pixels), side)

    def upright_centred(self, centred: Tensor, side: int) -> Tensor:
        """The same for pixels whose middle grey is 0: in their unit, and around it."""
        return sample(centred, homography(self._steps(centred)[-1].corners), side)

    def steps(self, pixels: Tensor) -> list[Guess]:
        """Finds the corners: a guess, and its correction.

        One is what pays: of poor pictures 0.738 were found without, 0.772 with one, 0.766 with two.
        """
        return self._steps(pixels - _MIDDLE)

    def _steps(self, centred: Tensor) -> list[Guess]:
        first = self.first(centred)
        # No gradient through the sampling: each guess learns from its own corners alone.
        around = homography(first.corners.detach()) * centred.new_tensor([_MARGIN, _MARGIN, 1.0])
        found = self.second(sample(centred, around, self.settings.second_size))
        cells = found.opinions.shape[1]
        opinions = apply(around, found.opinions.flatten(1, 2)).unflatten(1, (cells, 4))
        return [first, Guess(apply(around, found.corners), opinions)]

    def for_levels(self) -> Locator:
        """A copy whose centred pixels are levels, -127.5..127.5: what no graph has to scale."""
        copied = deepcopy(self)
        with torch.no_grad():
            for network in (copied.first, copied.second):
                network.stem.weight.mul_(_MIDDLE / MIDDLE_LEVEL)
        return copied


class _Regressor(nn.Module):
    """A square picture to four points, by votes.

    Each cell of a grid says where it believes the four corners to be, seen from itself, and how
    sure it is of each. So what is learnt in one place holds in every other.
    """

    cells: Tensor

    def __init__(
        self, stem: _Stem, side: int, widths: tuple[int, int, int, int], settings: LocatorSettings
    ) -> None:
        super().__init__()
        *early, deepest = widths
        *depths, last = settings.depths
        layers: list[nn.Module] = []
        channels, kernel, stride = 3, *stem
        for width, depth in zip(early, depths, strict=True):
            layers.append(_convolution(channels, width, kernel=kernel, stride=stride))
            layers.extend(_Residual(width) for _ in range(depth))
            channels, kernel, stride = width, 3, 2
        self.near = nn.Sequential(*layers)
        self.far = nn.Sequential(
            _convolution(channels, deepest, stride=2),
            *(_Residual(deepest) for _ in range(last)),
            _convolution(deepest, settings.context, kernel=1),
        )
        self.votes = nn.Sequential(
            _convolution(channels + settings.context, settings.context),
            nn.Conv2d(settings.context, 12, 1),
        )
        count = side // stem.stride // 4
        at = (torch.arange(count) + 0.5) * (2 / count) - 1
        y, x = torch.meshgrid(at, at, indexing="ij")
        self.register_buffer("cells", torch.stack([x, y], -1).view(1, -1, 1, 2), persistent=False)

    @property
    def stem(self) -> nn.Conv2d:
        """The first convolution."""
        stem = self.near.get_submodule("0.0")
        assert isinstance(stem, nn.Conv2d)  # noqa: S101 (as it was made)
        return stem

    def forward(self, centred: Tensor) -> Guess:
        """Says where the corners are."""
        near = self.near(centred)
        far = functional.interpolate(self.far(near), scale_factor=2.0, mode="nearest")
        said = self.votes(torch.cat([near, far], 1)).float().flatten(2).transpose(1, 2)
        opinions = said[..., :8].unflatten(-1, (4, 2)) + self.cells
        sure = said[..., 8:].softmax(1)
        return Guess((opinions * sure[..., None]).sum(1), opinions)


class _Residual(nn.Module):
    """Two convolutions beside the way around them (K. He et al., 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = _convolution(width, width)
        self.two = nn.Sequential(*list(_convolution(width, width))[:-1])

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.relu(pixels + self.two(self.one(pixels)))


def _convolution(channels: int, width: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride, padding=(kernel - stride + 1) // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def unit_corners(like: Tensor) -> Tensor:
    """The picture's own corners, [4, 2], from the upper left clockwise."""
    return like.new_tensor([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]).float()


def _exactly(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """In float32 even where training computes in bfloat16, which moves a corner by half a pixel."""

    @wraps(function)
    def exact(*values: P.args, **named: P.kwargs) -> Tensor:
        device = next(value.device.type for value in values if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*values, **named)

    return exact


@_exactly
def homography(corners: Tensor) -> Tensor:
    """From the square -1..1 to quadrilaterals: [N, 4, 2] to [N, 3, 3]."""
    upper_left, upper_right, lower_right, lower_left = corners.unbind(1)
    # Heckbert's form, for the square 0..1.
    one, two = upper_right - lower_right, lower_left - lower_right
    three = upper_left - upper_right + lower_right - lower_left
    area = _cross(one, two)
    area = torch.where(area.abs() < _LEAST, torch.full_like(area, _LEAST), area)
    g = (_cross(three, two) / area).clamp(-1 + _SHRINK, 4.0)
    h = (_cross(one, three) / area).clamp(-1 + _SHRINK, 4.0)
    x = upper_right - upper_left + g[:, None] * upper_right
    y = lower_left - upper_left + h[:, None] * lower_left
    last = torch.stack([g, h, torch.ones_like(g)], 1)
    columns = torch.cat([torch.stack([x, y, upper_left], 2), last[:, None]], 1)
    # From -1..1 to 0..1 first.
    to_unit = corners.new_tensor([(0.5, 0.0, 0.5), (0.0, 0.5, 0.5), (0.0, 0.0, 1.0)])
    return columns @ to_unit


def _cross(first: Tensor, second: Tensor) -> Tensor:
    return first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]


@_exactly
def apply(matrices: Tensor, points: Tensor) -> Tensor:
    """Move points, [N, P, 2] or [P, 2], by homographies [N, 3, 3]."""
    moved = points @ matrices[:, :, :2].transpose(1, 2) + matrices[:, None, :, 2]
    return moved[..., :2] / moved[..., 2:].clamp(min=0.05)


@_exactly
def sample(centred: Tensor, matrices: Tensor, side: int) -> Tensor:
    """Draw what a homography's square encloses: [N, 3, side, side]; 0, grey, where nothing is."""
    at = (torch.arange(side, device=centred.device, dtype=torch.float32) + 0.5) * (2 / side) - 1
    x = at[None, :].expand(side, side)
    y = at[:, None].expand(side, side)
    points = torch.stack([x, y], -1).reshape(-1, 2)
    grid = apply(matrices, points).reshape(-1, side, side, 2)
    grid = grid.clamp(-10.0, 10.0)
    return functional.grid_sample(centred, grid, align_corners=False)


def draw(pixels: Tensor, corners: Tensor, side: int) -> Tensor:
    """Draws upright what corners [N, 4, 2] enclose: [N, 3, side, side] in 0..1, like the pixels."""
    return sample(pixels - _MIDDLE, homography(corners), side) + _MIDDLE


def save(locator: Locator, folder: Path) -> None:
    """Writes the locator into a checkpoint folder."""
    weights = {name: value.contiguous().cpu() for name, value in locator.state_dict().items()}
    save_file(weights, folder / FILE, {"settings": json.dumps(asdict(locator.settings))})


def load(folder: Path) -> Locator | None:
    """Reads a checkpoint folder's locator, in evaluation mode; None where it has none.

    Raises:
        ExportError: The file cannot be read, or is no locator.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {})["settings"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        sizes: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        locator = Locator(LocatorSettings(**sizes))
        locator.load_state_dict(weights)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise ExportError(f"{path} is no locator: {first_line(error)}") from error
    located: Locator = locator.eval()
    return located
