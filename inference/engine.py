"""The model behind onnxruntime: pixels (or a text's tokens) in, unit-length embeddings out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from inference.artifact import IMAGE_TOWER, TEXT_TOWER, TOKENIZER, Artifact, Precision
from inference.errors import InvalidInputError, StartupError
from inference.providers import EngineOptions, Graph, open_tower
from inference.tower import Cores, Embeddings, Tower

__all__ = [
    "Cores",
    "Embeddings",
    "Engine",
    "EngineOptions",
    "OnnxTextEngine",
    "Pixels",
    "TextEngine",
    "TokenIds",
    "load_image_engine",
    "load_text_engine",
]

Pixels = NDArray[np.uint8]
TokenIds = NDArray[np.int64]

_INPUTS = {IMAGE_TOWER: "pixels", TEXT_TOWER: "input_ids"}


class Engine(Protocol):
    """A model that embeds pictures, one batch at a time, on whichever thread calls it.

    Or by its `cores`, where it has them, a batch on each core at a time.
    """

    @property
    def provider(self) -> str:
        """Name of what it runs on, for example "CPUExecutionProvider"."""

    @property
    def max_batch(self) -> int:
        """Most pictures that `embed` takes at once."""

    @property
    def cores(self) -> Cores | None:
        """The same model for single cores; None where a run takes the whole device."""

    def embed(self, items: Sequence[Pixels] | Pixels, /) -> Embeddings:
        """Embeds pictures.

        Args:
            items: Pictures uint8 [H, W, 3], at most `max_batch`: a sequence, or stacked.

        Returns:
            float32 [N, D], rows of unit length in the order of the pictures.

        Raises:
            EngineMemoryError: The batch did not fit; a smaller one may.
            InferenceError: The model failed.
        """

    def warm_up(self) -> None:
        """Runs every batch size once, largest first, and checks what comes out.

        Raises:
            StartupError: The output is not what the manifest promises.
        """


class TextEngine(Protocol):
    """A model that embeds texts into the space of the pictures."""

    @property
    def provider(self) -> str:
        """Name of what it runs on."""

    @property
    def max_batch(self) -> int:
        """Most texts that `embed` takes at once."""

    @property
    def cores(self) -> Cores | None:
        """The same model for single cores; None where a run takes the whole device."""

    def tokenise(self, text: str) -> TokenIds:
        """Turns a text into token ids int64 [T], padded or cut to the model's context.

        Safe to call from many threads.

        Raises:
            InvalidInputError: The text is empty, or no text.
        """

    def embed(self, items: Sequence[TokenIds] | TokenIds, /) -> Embeddings:
        """Embeds texts: ids int64 [T] each in, float32 [N, D] of unit length out.

        Raises:
            EngineMemoryError: The batch did not fit; a smaller one may.
            InferenceError: The model failed.
        """

    def warm_up(self) -> None:
        """Runs every batch size once, largest first, and checks what comes out.

        Raises:
            StartupError: The output is not what the manifest promises.
        """


def load_image_engine(artifact: Artifact, options: EngineOptions) -> Tower[np.uint8]:
    """Loads the image tower; blocking, takes a second or so.

    Raises:
        StartupError: The provider is missing, or the graph is not what the manifest says.
    """
    manifest = artifact.manifest
    side = manifest.preprocessing.image_size
    return _load_tower(artifact, IMAGE_TOWER, (side, side, 3), np.uint8, options)


def load_text_engine(artifact: Artifact, options: EngineOptions) -> "OnnxTextEngine | None":
    """Loads the text tower, or None where the model has none.

    Raises:
        StartupError: The provider is missing, or the graph or the tokenizer is not what the
            manifest says.
    """
    text = artifact.manifest.text
    if text is None:
        return None
    tower = _load_tower(artifact, TEXT_TOWER, (text.context_length,), np.int64, options)
    tokenizer = _load_tokenizer(
        artifact, context_length=text.context_length, pad_token_id=text.pad_token_id
    )
    return OnnxTextEngine(tower, tokenizer)


class OnnxTextEngine:
    """A tokenizer and the text tower behind it.

    Args:
        tower: The tower.
        tokenizer: A `tokenizers.Tokenizer` that pads and cuts to the tower's context.
    """

    def __init__(self, tower: Tower[np.int64], tokenizer: Any) -> None:
        self._tower = tower
        self._tokenizer = tokenizer

    @property
    def provider(self) -> str:
        """Name of what it runs on."""
        return self._tower.provider

    @property
    def max_batch(self) -> int:
        """Most texts that `embed` takes at once."""
        return self._tower.max_batch

    @property
    def cores(self) -> Cores | None:
        """The tower for single cores."""
        return self._tower.cores

    def tokenise(self, text: str) -> TokenIds:
        """Turns a text into token ids int64 [T]; see `TextEngine`."""
        if not text.strip():
            raise InvalidInputError("The text is empty: send at least a word.")
        try:
            return np.array(self._tokenizer.encode(text).ids, np.int64)
        except Exception as error:  # the tokenizer's errors are plain exceptions
            raise InvalidInputError(f"The text cannot be tokenised: {error}") from error

    def embed(self, items: Sequence[TokenIds] | TokenIds, /) -> Embeddings:
        """Embeds texts; see `TextEngine`."""
        return self._tower.embed(items)

    def warm_up(self) -> None:
        """Runs every batch size once; see `TextEngine`."""
        self._tower.warm_up()


def _load_tower(
    artifact: Artifact,
    file: str,
    item_shape: tuple[int, ...],
    dtype: Any,
    options: EngineOptions,
) -> Tower[Any]:
    graph = Graph(
        path=artifact.file(file),
        item_shape=item_shape,
        input_name=_INPUTS[file],
        dtype=dtype,
        fp16=artifact.manifest.precision is Precision.FP16,
    )
    return Tower(
        open_tower(graph, options),
        input_name=graph.input_name,
        item_shape=item_shape,
        dtype=dtype,
        dimensions=artifact.manifest.dimensions,
        cuda_graph=options.cuda_graph,
    )


def _load_tokenizer(artifact: Artifact, *, context_length: int, pad_token_id: int) -> Any:
    # Loaded only where there is a text tower: it costs memory and start-up time.
    from tokenizers import Tokenizer  # noqa: PLC0415

    path = artifact.file(TOKENIZER)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizer's errors are plain exceptions
        raise StartupError(f"{path} cannot be read: {error}. Export the model again.") from error
    pad_token = tokenizer.id_to_token(pad_token_id)
    if pad_token is None:
        raise StartupError(
            f"{path} has no token {pad_token_id}, with which the manifest wants texts to be padded."
            " Export the model again."
        )
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(length=context_length, pad_id=pad_token_id, pad_token=pad_token)
    _check_end_of_text(tokenizer, path, context_length)
    return tokenizer


def _check_end_of_text(tokenizer: Any, path: Path, context_length: int) -> None:
    # CLIP reads the embedding off the end-of-text token, so cutting must not cut that off.
    short = tokenizer.encode("a")
    end = [token for token, real in zip(short.ids, short.attention_mask, strict=True) if real][-1]
    long = tokenizer.encode("b " * context_length)
    if long.ids[-1] != end:
        raise StartupError(
            f"{path} loses the end-of-text token when it cuts a text of more than "
            f"{context_length} tokens. Export the model again."
        )
