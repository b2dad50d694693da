"""The towers as the artifact's graphs compute them, and Optimum's view of these graphs.

Optimum's stock export of a `CLIPVisionModelWithProjection` as feature extraction gives the
`pooler_output` from before the projection. Here everything from the bytes of the pixels to the unit
vector is one module, so that the graph cannot be cut at the wrong place.
"""

import warnings
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from optimum.exporters.onnx import export
from optimum.exporters.onnx.base import OnnxConfig
from optimum.utils import DummyInputGenerator, NormalizedConfig
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from exporter.errors import ExportError
from exporter.locator import MIDDLE_LEVEL, Locator
from exporter.preprocessing import Recipe

OPSET: Final = 18
"""Has LayerNormalization as one operator, and onnxruntime's three providers all take it."""

PIXELS: Final = "pixels"
INPUT_IDS: Final = "input_ids"
IMAGE_EMBEDS: Final = "image_embeds"
TEXT_EMBEDS: Final = "text_embeds"

# Old configurations give this as the end-of-text token; the true one is the highest in any text.
_WRONG_END: Final = 2


class ImageTower(nn.Module):
    """uint8 pixels [N, H, W, 3] to float32 unit vectors [N, D].

    The embedding is read from the class token alone. So in the last layer only that token's query,
    attention and feed-forward part are computed, which is exact and saves most of one layer.

    Args:
        tower: Computes in its own dtype; the scaling before and the norm after are float32.
        recipe: The scaling.
        finder: Draws the map upright for the tower, in float32; None: the tower sees all.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, tower: CLIPVisionModelWithProjection, recipe: Recipe, finder: Locator | None = None
    ) -> None:
        super().__init__()
        self.config = copy(tower.config)
        self.config.image_size = recipe.preprocessing.image_size
        self.tower = tower
        self.finder = None if finder is None else finder.for_levels()
        self.side = tower.config.image_size
        mean, std = (
            torch.tensor(value, dtype=torch.float64) for value in (recipe.mean, recipe.std)
        )
        # What the finder gives has its zero at middle grey.
        middle = 0.0 if finder is None else MIDDLE_LEVEL
        self.register_buffer("scale", (recipe.rescale / std).float()[:, None, None])
        shift = (middle * recipe.rescale - mean) / std
        self.register_buffer("shift", shift.float()[:, None, None])

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Embeds pictures."""
        channels = pixels.permute(0, 3, 1, 2).to(torch.float32)
        if self.finder is not None:
            channels = self.finder.upright_centred(channels - MIDDLE_LEVEL, self.side)
        scaled = channels * self.scale + self.shift
        vision = self.tower.vision_model
        hidden = vision.pre_layrnorm(vision.embeddings(scaled.to(self.tower.dtype)))
        *layers, last = vision.encoder.layers
        for layer in layers:
            hidden = layer(hidden, None, None)[0]
        pooled = vision.post_layernorm(_first_token(last, hidden)[:, 0])
        return {IMAGE_EMBEDS: _unit(self.tower.visual_projection(pooled))}


def _first_token(layer: Any, hidden: Tensor) -> Tensor:
    """What an encoder layer makes of the first token: [N, T, C] to [N, 1, C]."""
    attention = layer.self_attn
    heads, width = attention.num_heads, attention.head_dim
    tokens = hidden.shape[1]
    normed = layer.layer_norm1(hidden)
    query = attention.q_proj(normed[:, :1]).view(-1, heads, 1, width) * attention.scale
    key = attention.k_proj(normed).view(-1, tokens, heads, width).permute(0, 2, 3, 1)
    value = attention.v_proj(normed).view(-1, tokens, heads, width).transpose(1, 2)
    weights = torch.softmax(query @ key, dim=-1, dtype=torch.float32).to(query.dtype)
    attended = attention.out_proj((weights @ value).reshape(-1, 1, heads * width))
    first = hidden[:, :1] + attended
    mixed: Tensor = layer.mlp(layer.layer_norm2(first))
    return first + mixed


class TextTower(nn.Module):
    """int64 token ids [N, T] to float32 unit vectors [N, D]; T may be anything up to the context.

    The tower is causal and is read at the end-of-text token, so padding after it changes nothing.

    Args:
        tower: Computes in its own dtype; the norm is float32.
    """

    def __init__(self, tower: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.config = tower.config
        self.tower = tower

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Embeds texts."""
        hidden = self.tower.text_model(input_ids=input_ids).last_hidden_state
        end = self._end(input_ids)[:, None, None].expand(-1, -1, hidden.shape[-1])
        pooled = hidden.gather(1, end)[:, 0]
        return {TEXT_EMBEDS: _unit(self.tower.text_projection(pooled))}

    def _end(self, input_ids: Tensor) -> Tensor:
        """Where each text ends: int64 [N]. Only int32 can be searched on every provider."""
        narrow = input_ids.to(torch.int32)
        if self.config.eos_token_id == _WRONG_END:
            return narrow.argmax(dim=-1)
        return (narrow == self.config.eos_token_id).to(torch.int32).argmax(dim=-1)


def _unit(embeddings: Tensor) -> Tensor:
    """Rows of length one, computed in float32: squares of halves overflow."""
    wide = embeddings.to(torch.float32)
    return wide / wide.norm(dim=-1, keepdim=True)


class _Pixels(DummyInputGenerator):
    """Random pictures to trace with."""

    SUPPORTED_INPUT_NAMES = (PIXELS,)

    def __init__(self, _task: str, config: NormalizedConfig, batch_size: int = 2, **_: Any) -> None:
        self._shape = (batch_size, config.image_size, config.image_size, 3)

    def generate(self, _name: str, **_: Any) -> Tensor:
        return torch.randint(0, 256, self._shape, dtype=torch.uint8)


class _TokenIds(DummyInputGenerator):
    """Random texts to trace with, shorter than the context so that no length gets fixed."""

    SUPPORTED_INPUT_NAMES = (INPUT_IDS,)

    def __init__(self, _task: str, config: NormalizedConfig, batch_size: int = 2, **_: Any) -> None:
        self._shape = (batch_size, max(2, config.max_position_embeddings // 2))
        self._vocabulary = config.vocab_size

    def generate(self, _name: str, **_: Any) -> Tensor:
        return torch.randint(0, self._vocabulary, self._shape, dtype=torch.int64)


class _ImageGraph(OnnxConfig):
    """The image graph's signature."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (_Pixels,)

    inputs: ClassVar[Mapping[str, Mapping[int, str]]] = {PIXELS: {0: "batch"}}
    outputs: ClassVar[Mapping[str, Mapping[int, str]]] = {IMAGE_EMBEDS: {0: "batch"}}


class _TextGraph(OnnxConfig):
    """The text graph's signature."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (_TokenIds,)

    inputs: ClassVar[Mapping[str, Mapping[int, str]]] = {INPUT_IDS: {0: "batch", 1: "tokens"}}
    outputs: ClassVar[Mapping[str, Mapping[int, str]]] = {TEXT_EMBEDS: {0: "batch"}}


def trace(tower: ImageTower | TextTower, path: Path) -> None:
    """Writes a tower as an ONNX graph, through Optimum.

    Args:
        tower: In evaluation mode.
        path: The file to write.

    Raises:
        ExportError: The tower is too large for one file.
    """
    reads_pictures = isinstance(tower, ImageTower)
    config = (_ImageGraph if reads_pictures else _TextGraph)(
        tower.config, task="feature-extraction"
    )
    with warnings.catch_warnings():
        # Branches on the fixed size of the picture or the context become constants, as they should.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        # Optimum still exports through TorchScript, whose successor PyTorch recommends.
        warnings.simplefilter("ignore", DeprecationWarning)
        export(tower, config, path, opset=OPSET)
    # Optimum then puts the weights into a second file. But the digest of the first is the name of
    # the vector space, so all weights have to be in there.
    if path.with_name(f"{path.name}_data").exists():
        raise ExportError(
            f"The {'image' if reads_pictures else 'text'} tower is larger than the 2 GB that one "
            "ONNX file holds: export it as fp16, which is half as large."
        )
