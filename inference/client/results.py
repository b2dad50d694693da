"""What a client gets back, in the caller's terms."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.errors import EmbeddingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the server spent the time of one embedding.

    Attributes:
        decode_ms: Decoding and resizing the image, or tokenising the text.
        queue_ms: Waiting for decoding and for the model.
        inference_ms: The model's run over the whole batch.
        batch_size: How many items shared that run.
    """

    decode_ms: float
    queue_ms: float
    inference_ms: float
    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """One embedding.

    Attributes:
        embedding: float32 [D] of unit length.
        model_id: The model that made it; only vectors with equal ids may be compared.
        timings: Where the server's time went.
    """

    embedding: NDArray[np.float32]
    model_id: str
    timings: Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamItem:
    """What became of one image of `EmbeddingClient.embed_many`.

    Attributes:
        id: The number that the caller gave the image.
        outcome: The embedding, or why there is none; an error here is about this image only.
    """

    id: int
    outcome: Embedded | EmbeddingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Calibrated decision points on the cosine similarity of two pictures.

    Attributes:
        same: At or above, the pictures show the same map.
        similar: At or above, they are similar; below, nothing is close.
    """

    same: float
    similar: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What requests to a server must keep to.

    Attributes:
        max_image_bytes: Longest encoded image.
        max_image_pixels: Most pixels of an image, width times height.
        max_message_bytes: Longest gRPC message.
        max_text_chars: Longest text, in characters.
    """

    max_image_bytes: int
    max_image_pixels: int
    max_message_bytes: int
    max_text_chars: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a server serves.

    Attributes:
        id: Names the vector space: "NAME@FINGERPRINT".
        name: The checkpoint that it was exported from.
        revision: The checkpoint's revision, or "".
        dimensions: Length D of every embedding.
        image_size: Side of the model's square input, in pixels.
        precision: "fp32", "fp16" or "int8".
        provider: The onnxruntime provider in use.
        has_text: Whether texts can be embedded.
        thresholds: Decision points, where the model's makers measured them.
        limits: What requests must keep to.
    """

    id: str
    name: str
    revision: str
    dimensions: int
    image_size: int
    precision: str
    provider: str
    has_text: bool
    thresholds: Thresholds | None
    limits: Limits
