"""A CLIP checkpoint as PyTorch modules, with everything that could be silently wrong refused."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizerFast,
    CLIPVisionModelWithProjection,
)

from exporter import locator
from exporter.errors import ExportError, first_line
from exporter.hub import BOTH_TOWERS, model_type
from exporter.locator import Locator
from exporter.preprocessing import Recipe
from exporter.preprocessing import read as read_recipe
from inference import renders

_TOKENIZER_FILES: Final = ("tokenizer.json", "vocab.json")

# What a missing, cut off or foreign file makes the libraries raise.
_LOADING_ERRORS: Final = (
    OSError, ValueError, RuntimeError, LookupError, EOFError, UnpicklingError, SafetensorError
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSide:
    """The text tower and what reads for it.

    Attributes:
        tower: float32, in evaluation mode.
        tokenizer: As the checkpoint's own tokeniser cuts texts up, without padding or truncation.
        reference: That tokeniser itself, which the verification compares with.
        context_length: Tokens that the tower reads at most.
        pad_token_id: What fills a short text up.
    """

    tower: CLIPTextModelWithProjection
    tokenizer: Tokenizer
    reference: CLIPTokenizerFast
    context_length: int
    pad_token_id: int

    def token_ids(self, texts: Sequence[str]) -> torch.Tensor:
        """Cuts texts up as the checkpoint's own tokeniser does: int64 [N, context_length]."""
        tokens = self.reference(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )
        ids: torch.Tensor = tokens["input_ids"]
        return ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        image_tower: float32, in evaluation mode.
        finder: Draws the map of a picture upright for the tower; None for a plain CLIP.
        recipe: How its pictures are prepared.
        text: Present where the checkpoint has a text tower and a tokeniser.
        has_text_tower: Whether it has the tower, if without a tokeniser.
        dimensions: Length of the embeddings.
    """

    image_tower: CLIPVisionModelWithProjection
    finder: Locator | None
    recipe: Recipe
    text: TextSide | None
    has_text_tower: bool
    dimensions: int


def load(folder: Path) -> Checkpoint:
    """Loads a checkpoint folder.

    Args:
        folder: Holds `config.json`, weights (safetensors or .bin) and `preprocessor_config.json`;
            for the text tower also the tokeniser's files.

    Raises:
        ExportError: It is no CLIP, lacks its projection or another weight, or asks for what is not
            supported.
    """
    has_text_tower = model_type(folder) == BOTH_TOWERS
    image_tower = _load(CLIPVisionModelWithProjection, folder)
    config = image_tower.config
    if config.num_channels != len(("red", "green", "blue")):
        raise ExportError(f"{folder}: its pictures have {config.num_channels} channels, not 3.")
    finder = locator.load(folder)
    image_size = config.image_size if finder is None else finder.settings.image_size
    return Checkpoint(
        image_tower=image_tower,
        finder=finder,
        recipe=read_recipe(
            folder,
            image_size=image_size,
            render_margin=0.0 if finder is None else renders.MARGIN,
        ),
        text=_load_text(folder) if has_text_tower else None,
        has_text_tower=has_text_tower,
        dimensions=config.projection_dim,
    )


def _load_text(folder: Path) -> TextSide | None:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    tower = _load(CLIPTextModelWithProjection, folder)
    try:
        with _quiet():
            reference = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing narrower
        reason = first_line(error)
        raise ExportError(f"The tokeniser of {folder} cannot be loaded: {reason}") from error
    tokenizer = Tokenizer.from_str(reference.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pad_token_id = reference.pad_token_id
    if pad_token_id is None:
        pad_token_id = tower.config.pad_token_id
    context_length = tower.config.max_position_embeddings
    return TextSide(
        tower=tower,
        tokenizer=tokenizer,
        reference=reference,
        context_length=context_length,
        pad_token_id=pad_token_id,
    )


def _load(kind: Any, folder: Path) -> Any:
    """Loads one tower in float32 and sees to it that every weight came from the checkpoint."""
    try:
        with _quiet():
            tower, found = kind.from_pretrained(
                folder,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                attn_implementation="eager",  # the only one that Optimum's exporter traces exactly
            )
    except _LOADING_ERRORS as error:
        raise ExportError(f"{folder} cannot be loaded: {first_line(error)}") from error
    missing = sorted(found["missing_keys"])
    if any("projection" in key for key in missing):
        raise ExportError(
            f"{folder} has no {missing[-1]}: it is a tower without its projection, whose output is "
            f"no CLIP embedding. Save it as {kind.__name__} and export again."
        )
    if missing:
        raise ExportError(f"{folder} lacks {len(missing)} weights, {missing[0]} among them.")
    return tower.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences advice for people who train: the other tower's weights are left out on purpose."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
