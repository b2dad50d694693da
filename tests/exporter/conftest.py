"""Small randomly initialised checkpoints, saved as `transformers` saves them."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

with contextlib.suppress(ModuleNotFoundError):  # then the tests that need them are skipped
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTokenizerFast,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

SMALL_VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "projection_dim": 24,
    "hidden_act": "gelu",
}
SMALL_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 20,
    "projection_dim": 24,
}
CARD = "---\nlanguage: en\nlicense: apache-2.0\ntags:\n- clip\n---\n# A model\n"


def preprocessor(size: int, *, crop: bool = False) -> dict[str, Any]:
    square = {"height": size, "width": size}
    return {
        "do_resize": True,
        "size": {"shortest_edge": size} if crop else square,
        "resample": 3,
        "do_center_crop": crop,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        "do_convert_rgb": True,
        "image_processor_type": "CLIPImageProcessor",
    }


def add_preprocessor(folder: Path, size: int, *, crop: bool = False) -> None:
    config = json.dumps(preprocessor(size, crop=crop))
    (folder / "preprocessor_config.json").write_text(config)


def add_tokeniser(folder: Path) -> int:
    """Writes a byte-level CLIP tokeniser; returns the size of its vocabulary."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "m a", "ma p</w>"]
    tokens[-2:] = ["ma", "map</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]  # the end is the highest, as in every CLIP
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nm a\nma p</w>\n")
    CLIPTokenizerFast(folder / "vocab.json", folder / "merges.txt").save_pretrained(folder)
    return len(vocabulary)


def save_vision(folder: Path, *, safe: bool = True, **changes: Any) -> None:
    """Saves a `CLIPVisionModelWithProjection` with its image processor."""
    torch.manual_seed(1)
    config = CLIPVisionConfig(**{**SMALL_VISION, **changes})
    model = CLIPVisionModelWithProjection(config)
    model.save_pretrained(folder, safe_serialization=safe)
    add_preprocessor(folder, config.image_size)


def save_clip(
    folder: Path,
    *,
    eos_token_id: int | None = None,
    text: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    """Saves a two-tower `CLIPModel` with image processor and tokeniser.

    Args:
        folder: Where to.
        eos_token_id: As the configuration says it; by default the tokeniser's.
        text: Changes of the text tower.
        changes: Of the vision tower.
    """
    torch.manual_seed(2)
    folder.mkdir(exist_ok=True)
    size = add_tokeniser(folder)
    vision = {**SMALL_VISION, **changes}
    reader = {
        **SMALL_TEXT,
        "projection_dim": vision["projection_dim"],
        "vocab_size": size,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1 if eos_token_id is None else eos_token_id,
        **(text or {}),
    }
    config = CLIPConfig(
        text_config=reader, vision_config=vision, projection_dim=vision["projection_dim"]
    )
    CLIPModel(config).save_pretrained(folder)
    add_preprocessor(folder, vision["image_size"], crop=True)


@pytest.fixture(scope="session")
def make_vision() -> Callable[..., None]:
    return save_vision


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., None]:
    return save_clip


@pytest.fixture(scope="session")
def vision_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision tower with a model card; not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoints") / "vision"
    save_vision(folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="session")
def clip_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both towers; not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoints") / "clip"
    save_clip(folder)
    return folder


@pytest.fixture
def preprocessor_config() -> Callable[..., dict[str, Any]]:
    return preprocessor


@pytest.fixture
def own_folder(vision_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the vision checkpoint that a test may spoil."""
    return Path(shutil.copytree(vision_checkpoint, tmp_path / "own"))
