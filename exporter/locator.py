"""The locator: where in a picture the map is, so that the tower sees the map alone, and upright.

A small convolutional network looks at the whole picture and says where the four corners of the map
are; a second one looks at what lies there and corrects the first. The map is then drawn upright
from the corners (M. Jaderberg et al., "Spatial Transformer Networks", 2015), by the homography that
P. Heckbert gives in closed form ("Fundamentals of Texture Mapping and Image Warping", 1989). The
corners are learnt from views whose geometry is known, not through the sampling.

It travels with a checkpoint as `locator.safetensors`, whose metadata hold its sizes.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from exporter.errors import ExportError, first_line

FILE: Final = "locator.safetensors"
"""Name of the weights in a checkpoint folder. A folder without it is a plain CLIP."""

_MARGIN: Final = 1.3
"""The correction sees this much of what the first guess enclosed."""

_LEAST: Final = 1e-4
_SHRINK: Final = 0.25
"""Both keep denominators away from zero, for the wildest of guesses."""


@dataclass(frozen=True, slots=True)
class LocatorSettings:
    """Sizes of the two networks.

    Attributes:
        image_size: Side in pixels of the square pictures that it reads.
        first_size: Side to which the first network shrinks them.
        second_size: Side of the enclosed part that the second network looks at.
        widths: Channels at a half, a quarter, an eighth and a sixteenth of the side.
        context: Channels that the coarsest cells tell the finer ones.
    """

    image_size: int = 192
    first_size: int = 96
    second_size: int = 64
    widths: tuple[int, int, int, int] = (24, 48, 96, 160)
    context: int = 64


class Locator(nn.Module):
    """Pictures, float32 [N, 3, S, S] in 0..1, to corners, float32 [N, 4, 2].

    Corners are x and y from the map's upper left clockwise; the picture spans -1..1 both ways.
    """

    def __init__(self, settings: LocatorSettings) -> None:
        super().__init__()
        self.settings = settings
        self.first = _Regressor(settings.first_size, settings)
        self.second = _Regressor(settings.second_size, settings)

    def forward(self, pixels: Tensor) -> Tensor:
        """Finds the corners."""
        return self.steps(pixels)[1][0]

    def upright(self, pixels: Tensor, side: int) -> Tensor:
        """Draws the map of each picture upright: float32 [N, 3, side, side] in 0..1."""
        return sample(pixels, homography(self(pixels)), side)

    def steps(self, pixels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Finds the corners twice, each time with the opinions [N, cells, 4, 2] behind them."""
        small = functional.avg_pool2d(pixels, self.settings.image_size // self.settings.first_size)
        guess, opinions = self.first(small)
        # No gradient through the sampling: each network learns from its own corners alone.
        around = homography(guess.detach()) @ pixels.new_tensor([_MARGIN, _MARGIN, 1.0]).diag()
        moved, second_opinions = self.second(sample(pixels, around, self.settings.second_size))
        cells = second_opinions.shape[1]
        seen = apply(around, second_opinions.flatten(1, 2)).unflatten(1, (cells, 4))
        return (guess, opinions), (apply(around, moved), seen)


class _Regressor(nn.Module):
    """A square picture to four points, by votes.

    Each cell of a grid says where it believes the four corners to be, seen from itself, and how
    sure it is of each. So what is learnt in one place holds in every other.
    """

    cells: Tensor

    def __init__(self, side: int, settings: LocatorSettings) -> None:
        super().__init__()
        *early, deep, deepest = settings.widths
        layers: list[nn.Module] = []
        channels = 3
        for depth, width in enumerate([*early, deep]):
            layers.append(_convolution(channels, width, stride=2))
            if depth:
                layers.append(_Residual(width))
            channels = width
        self.near = nn.Sequential(*layers)
        self.far = nn.Sequential(
            _convolution(deep, deepest, stride=2),
            _Residual(deepest),
            _Residual(deepest),
            _convolution(deepest, settings.context, kernel=1),
        )
        self.votes = nn.Sequential(
            _convolution(deep + settings.context, settings.context),
            nn.Conv2d(settings.context, 12, 1),
        )
        count = side // 2 ** len(early) // 2
        at = (torch.arange(count) + 0.5) * (2 / count) - 1
        y, x = torch.meshgrid(at, at, indexing="ij")
        self.register_buffer("cells", torch.stack([x, y], -1).view(1, -1, 1, 2), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the corners [N, 4, 2], and every cell's opinion of them [N, cells, 4, 2]."""
        near = self.near(pixels * 2 - 1)
        far = functional.interpolate(self.far(near), scale_factor=2.0, mode="nearest")
        said = self.votes(torch.cat([near, far], 1)).float().flatten(2).transpose(1, 2)
        opinions = said[..., :8].unflatten(-1, (4, 2)) + self.cells
        sure = said[..., 8:].softmax(1)
        return (opinions * sure[..., None]).sum(1), opinions


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
        nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def unit_corners(like: Tensor) -> Tensor:
    """The picture's own corners, [4, 2], from the upper left clockwise."""
    return like.new_tensor([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]).float()


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


def apply(matrices: Tensor, points: Tensor) -> Tensor:
    """Move points, [N, P, 2] or [P, 2], by homographies [N, 3, 3]."""
    moved = points @ matrices[:, :, :2].transpose(1, 2) + matrices[:, None, :, 2]
    return moved[..., :2] / moved[..., 2:].clamp(min=0.05)


def sample(pixels: Tensor, matrices: Tensor, side: int) -> Tensor:
    """Draw what a homography's square encloses: [N, 3, side, side]; grey where nothing is."""
    at = (torch.arange(side, device=pixels.device, dtype=torch.float32) + 0.5) * (2 / side) - 1
    x = at[None, :].expand(side, side)
    y = at[:, None].expand(side, side)
    points = torch.stack([x, y], -1).reshape(-1, 2)
    grid = apply(matrices, points).reshape(-1, side, side, 2)
    grid = grid.clamp(-10.0, 10.0)
    return functional.grid_sample(pixels - 0.5, grid, align_corners=False) + 0.5


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
        values["widths"] = tuple(values["widths"])
        locator = Locator(LocatorSettings(**values))
        locator.load_state_dict(weights)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise ExportError(f"{path} is no locator: {first_line(error)}") from error
    located: Locator = locator.eval()
    return located
