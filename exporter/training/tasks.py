"""The two things that are trained, one after the other: the locator, then the tower.

The tower learns from maps as the trained locator finds them, with all its errors.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from exporter import locator
from exporter.locator import Locator, LocatorSettings
from exporter.training import validate
from exporter.training.config import Settings
from exporter.training.losses import LocatorLosses, TowerLosses, corner_loss, tower_loss
from exporter.training.model import ATTENTION, Network, build_tower, save_folder
from exporter.training.stream import Corners, Pixels

_LOG: Final = logging.getLogger(__name__)

_BATCH: Final = 64
"""Views that the locator reads at once, where the tower learns behind it."""

_DROPS_UNTIL: Final = 0.75
"""From here on in a run the tower sees all patches, as it will when it is used."""


class Batch(NamedTuple):
    """Examples as tensors on the device."""

    pixels: Tensor
    """``float32`` (n, 2, 3, side, side) in 0..1: as posted, and to search with."""

    corners: Tensor
    """``float32`` (n, 2, 4, 2), as `Task.corners` has it."""

    small: Tensor
    """``float32`` (n, 3, 16, 16) in 0..1."""


class Task(Protocol):
    """Something that is trained.

    Attributes:
        module: What the optimiser changes.
        average: The part of it that is shipped, averaged over the steps.
    """

    module: nn.Module
    average: nn.Module

    @property
    def trained(self) -> nn.Module:
        """The part of the module that `average` follows."""
        ...

    def corners(self, pixels: Pixels, drawn: Corners) -> Corners:
        """Decide which corners of new views to learn with.

        Args:
            pixels: ``uint8`` (n, views, side, side, 3).
            drawn: Where they are, ``float32`` (n, views, 4, 2).
        """
        ...

    def losses(self, batch: Batch, fraction: float) -> LocatorLosses | TowerLosses:
        """Scalars of one batch, ``total`` first; ``fraction`` of the run is over."""
        ...

    def validate(self, pictures: validate.ValidationSet) -> dict[str, float]:
        """Measure the averaged weights."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder."""
        ...


class LocatorTask:
    """Trains the locator; the tower of the start goes into the folder as it is."""

    def __init__(self, settings: Settings, start: Path | None, device: torch.device) -> None:
        found = None if start is None else locator.load(start)
        self.module = (found or Locator(LocatorSettings())).to(device).train()
        self.average = deepcopy(self.module).requires_grad_(requires_grad=False).eval()
        self._tower = _tower(settings, start).to(device).eval()

    @property
    def trained(self) -> nn.Module:
        """All of it."""
        return self.module

    def corners(self, pixels: Pixels, drawn: Corners) -> Corners:  # noqa: ARG002
        """Where they are."""
        return drawn

    def losses(self, batch: Batch, fraction: float) -> LocatorLosses:  # noqa: ARG002
        """How far off the corners are."""
        truth = batch.corners.flatten(0, 1)
        # Convolutions on a CPU are a tenth faster this way round.
        pixels = batch.pixels.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        guesses = self.module.steps(pixels)
        distances = [corner_loss(guess.corners, truth) for guess in guesses]
        cells = sum(
            (corner_loss(guess.opinions, truth[:, None]) for guess in guesses), truth.new_zeros(())
        )
        total = torch.stack(distances).sum() + 0.25 * cells
        return LocatorLosses(total, distances[0], distances[-1], cells)

    def validate(self, pictures: validate.ValidationSet) -> dict[str, float]:
        """Recall with the tower as it is."""
        return validate.recall(self._tower, self.average, pictures)

    def save(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder."""
        save_folder(self._tower, self.average, folder)


class TowerTask:
    """Trains the tower behind the locator of the start, which stays as it is."""

    def __init__(self, settings: Settings, start: Path | None, device: torch.device) -> None:
        if start is None or (finder := locator.load(start)) is None:
            raise ValueError(
                "The tower learns behind a locator: train that first, and give its checkpoint "
                "folder with --start."
            )
        self._finder = finder.to(device).requires_grad_(requires_grad=False)
        self._weights = settings.loss
        self._bf16 = settings.optimiser.bf16
        tower = _tower_to_train(settings, start)
        self.module = Network(tower, settings.loss.temperature).to(device).train()
        self.average = deepcopy(self.module.tower).requires_grad_(requires_grad=False).eval()

    @property
    def trained(self) -> nn.Module:
        """The tower without the training head."""
        return self.module.tower

    def corners(self, pixels: Pixels, drawn: Corners) -> Corners:  # noqa: ARG002
        """Where the locator finds them, which is as often as not elsewhere."""
        device = next(self._finder.parameters()).device
        views = torch.from_numpy(pixels).to(device).flatten(0, 1).permute(0, 3, 1, 2)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, self._bf16):
            found = [self._finder(part.float() / 255) for part in views.split(_BATCH)]
        corners: Corners = torch.cat(found).unflatten(0, pixels.shape[:2]).cpu().numpy()
        return corners

    def losses(self, batch: Batch, fraction: float) -> TowerLosses:
        """Whether views of the same map lie together and others do not."""
        count, side = len(batch.pixels), self.module.tower.config.image_size
        moved = move(batch.corners.flatten(0, 1), self._weights.jitter)
        maps = locator.draw(batch.pixels.flatten(0, 1), moved, side)
        said = self.module(maps, self._weights.drop if fraction < _DROPS_UNTIL else 0.0)
        archive, query = (
            type(said)(*(part.unflatten(0, (count, 2))[:, which] for part in said))
            for which in (0, 1)
        )
        return tower_loss(self.module, batch.small, archive, query, self._weights)

    def validate(self, pictures: validate.ValidationSet) -> dict[str, float]:
        """Recall of the whole."""
        return validate.recall(self.average, self._finder, pictures)

    def save(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder."""
        save_folder(self.average, self._finder, folder)


def move(corners: Tensor, jitter: float) -> Tensor:
    """Move corners (n, 4, 2) at random, mostly a little, at times by more than this share."""
    middle = corners.mean(1, keepdim=True)
    reach = (corners - middle).norm(dim=-1).mean(1)[:, None, None]
    strength = jitter * torch.randn_like(reach).abs()
    return corners + torch.randn_like(corners) * strength * reach


TASKS: dict[str, type[LocatorTask | TowerTask]] = {"locator": LocatorTask, "tower": TowerTask}


def _tower(settings: Settings, start: Path | None) -> CLIPVisionModelWithProjection:
    """The tower of a checkpoint folder, or a fresh one where there is no folder."""
    if start is None:
        return build_tower(settings.model)
    return CLIPVisionModelWithProjection.from_pretrained(start, attn_implementation=ATTENTION)


def _tower_to_train(settings: Settings, start: Path) -> CLIPVisionModelWithProjection:
    """The tower of a checkpoint folder if it is of the wanted shape, else a fresh one."""
    fresh, found = build_tower(settings.model), _tower(settings, start)
    same = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "projection_dim")
    differ = [name for name in same if getattr(found.config, name) != getattr(fresh.config, name)]
    if differ:
        _LOG.info("a tower from random weights: that of %s has another %s", start, differ[0])
        return fresh
    return found
