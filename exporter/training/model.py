"""The vision tower, its training head, and the folder that the exporter reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from exporter import locator
from exporter.locator import Locator
from exporter.training.config import ModelSettings
from exporter.training.stream import SMALL_SIDE

MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
"""CLIP's mean of RGB in 0..1 (A. Radford et al., 2021)."""

STD: Final = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's standard deviation of RGB in 0..1."""


FAR: Final = -10.0
"""A cosine that no softmax notices. Infinity would make the temperature's gradient 0 times it."""


class Encoded(NamedTuple):
    """What the network says about a batch of upright maps."""

    embeddings: Tensor
    """``float32`` (n, dimensions), not normalised: what the exporter's model also yields."""

    pictures: Tensor
    """``float32`` (n, 3, 16, 16): the map as the embedding remembers it, in CLIP's units."""


def build_tower(settings: ModelSettings) -> CLIPVisionModelWithProjection:
    """Build the tower with fresh weights (of torch's global generator)."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig.from_dict(
            {
                "image_size": settings.image_size,
                "patch_size": settings.patch_size,
                "hidden_size": settings.hidden_size,
                "num_hidden_layers": settings.layers,
                "num_attention_heads": settings.heads,
                "intermediate_size": settings.mlp_size,
                "projection_dim": settings.dimensions,
                "hidden_act": "gelu",
            }
        )
    )


class Memory(nn.Module):
    """The archive embeddings of the last steps, which a query must not take for its own.

    Negatives by the thousand, for the price of one multiplication (X. Wang et al., "Cross-Batch
    Memory for Embedding Learning", CVPR 2020). It is part of a run's state.

    Args:
        size: How many; 0 remembers nothing.
        dimensions: Of an embedding.
    """

    embeddings: Tensor
    numbers: Tensor

    def __init__(self, size: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(size, dimensions))
        self.register_buffer("numbers", torch.full((size,), -1))

    def similarities(self, queries: Tensor, numbers: Tensor) -> Tensor:
        """Cosines of unit vectors (n, d) to what is remembered of other items: (n, size).

        Those to views of the same item, and to places still empty, are `FAR`.
        """
        own = (self.numbers[None] == numbers[:, None]) | (self.numbers[None] < 0)
        return (queries @ self.embeddings.T).masked_fill(own, FAR)

    def add(self, embeddings: Tensor, numbers: Tensor) -> None:
        """Remember unit vectors (n, d) in place of the oldest."""
        size = len(self.numbers)
        self.embeddings = torch.cat([embeddings.detach().float(), self.embeddings])[:size]
        self.numbers = torch.cat([numbers, self.numbers])[:size]


class Network(nn.Module):
    """The tower, and what only training needs: a head and a memory.

    A contrastive loss alone says little at first, from random weights. That the embedding must hold
    the map itself, small, says a lot at once. The head is linear, so that the tower has to do the
    work, and it is thrown away afterwards.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, tower: CLIPVisionModelWithProjection, temperature: float, memory: int = 0
    ) -> None:
        super().__init__()
        self.tower = tower
        self.picture_head = nn.Linear(tower.config.projection_dim, 3 * SMALL_SIDE**2)
        self.memory = Memory(memory, tower.config.projection_dim)
        self.log_scale = nn.Parameter(torch.tensor(1.0 / temperature).log())
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Bring RGB in 0..1 to CLIP's units."""
        return (pixels - self.mean) / self.std

    def forward(self, pixels: Tensor) -> Encoded:
        """Encode upright maps, ``float32`` (n, 3, side, side) in 0..1."""
        embeddings = self.tower(pixel_values=self.normalise(pixels)).image_embeds.float()
        pictures = self.picture_head(embeddings).float()
        return Encoded(embeddings, pictures.view(-1, 3, SMALL_SIDE, SMALL_SIDE))


def save_folder(tower: CLIPVisionModelWithProjection, finder: Locator | None, folder: Path) -> None:
    """Write a Hugging Face folder: config, safetensors, how to prepare a picture, the locator.

    The folder is replaced as a whole, so that a reader never sees half of one.
    """
    partial, former = (
        folder.with_name(folder.name + ".partial"),
        folder.with_name(folder.name + ".old"),
    )
    for leftover in (partial, former):
        shutil.rmtree(leftover, ignore_errors=True)
    tower.save_pretrained(partial)
    side = tower.config.image_size
    if finder is not None:
        locator.save(finder, partial)
        side = finder.settings.image_size
    CLIPImageProcessor(
        do_resize=True,
        size={"height": side, "width": side},
        resample=Image.Resampling.BICUBIC,
        do_center_crop=False,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(MEAN),
        image_std=list(STD),
        do_convert_rgb=True,
    ).save_pretrained(partial)
    if folder.exists():
        folder.rename(former)
    partial.rename(folder)
    shutil.rmtree(former, ignore_errors=True)
