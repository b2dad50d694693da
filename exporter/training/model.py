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


ATTENTION: Final = "eager"
"""torch's fused attention takes half of a step on a CPU: its gradient is slow for few tokens."""


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
            },
            attn_implementation=ATTENTION,
        )
    )


class Network(nn.Module):
    """The tower and the head that only training needs.

    A contrastive loss alone says little at first, from random weights. That the embedding must hold
    the map itself, small, says a lot at once. The head is linear, so that the tower has to do the
    work, and it is thrown away afterwards.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tower: CLIPVisionModelWithProjection, temperature: float) -> None:
        super().__init__()
        self.tower = tower
        self.picture_head = nn.Linear(tower.config.projection_dim, 3 * SMALL_SIDE**2)
        self.log_scale = nn.Parameter(torch.tensor(1.0 / temperature).log())
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Bring RGB in 0..1 to CLIP's units."""
        return (pixels - self.mean) / self.std

    def forward(self, pixels: Tensor, drop: float = 0.0) -> Encoded:
        """Encode upright maps, ``float32`` (n, 3, side, side) in 0..1.

        Args:
            pixels: The maps.
            drop: The share of patches that the tower is not shown, others for each map.
        """
        vision = self.tower.vision_model
        hidden = vision.pre_layrnorm(vision.embeddings(self.normalise(pixels)))
        if drop:
            hidden = _some(hidden, 1 - drop)
        hidden = vision.encoder(inputs_embeds=hidden).last_hidden_state
        pooled = vision.post_layernorm(hidden[:, 0])
        embeddings = self.tower.visual_projection(pooled).float()
        pictures = self.picture_head(embeddings).float()
        return Encoded(embeddings, pictures.view(-1, 3, SMALL_SIDE, SMALL_SIDE))


def _some(tokens: Tensor, share: float) -> Tensor:
    """Keep the first token, and a share of the others at random: (n, t, c) to (n, k, c)."""
    count, patches = tokens.shape[0], tokens.shape[1] - 1
    ranks = torch.rand(count, patches, device=tokens.device)
    chosen = ranks.topk(max(1, round(share * patches)), dim=1).indices + 1
    kept = torch.cat([torch.zeros_like(chosen[:, :1]), chosen], 1)
    return tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))


def picture_side(tower: CLIPVisionModelWithProjection, finder: Locator | None) -> int:
    """Pixels along the pictures that a model reads: the locator's, where there is one."""
    side: int = tower.config.image_size if finder is None else finder.settings.image_size
    return side


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
    if finder is not None:
        locator.save(finder, partial)
    side = picture_side(tower, finder)
    CLIPImageProcessor(
        do_resize=True,
        size={"height": side, "width": side},
        resample=Image.Resampling.BILINEAR,
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
