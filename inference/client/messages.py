"""Messages of the wire to the caller's terms."""

import grpc
import grpc.aio
import numpy as np
from mapseek.v1 import embedding_pb2 as pb

from inference.client.results import Embedded, Limits, ModelInfo, Thresholds, Timings
from inference.errors import EmbeddingError, InferenceError, ModelChangedError
from inference.status import RETRY_AFTER_KEY, error_of

# What gRPC itself, and no server, says of a call whose connection broke under it.
LOST_CALL = ("Internal error from Core", "Received RST_STREAM")


def embedded(embedding: pb.Embedding, timings: pb.Timings) -> Embedded:
    """An embedding and its timings.

    Raises:
        InferenceError: The embedding is empty, so that is no mapseek server.
    """
    if not embedding.values:
        raise InferenceError("The server answered with an empty embedding.")
    return Embedded(
        embedding=np.array(embedding.values, dtype=np.float32),
        model_id=embedding.model_id,
        timings=Timings(
            decode_ms=timings.decode_ms,
            queue_ms=timings.queue_ms,
            inference_ms=timings.inference_ms,
            batch_size=timings.batch_size,
        ),
    )


def model_info(response: pb.GetModelResponse) -> ModelInfo:
    """What a server serves."""
    model, limits = response.model, response.limits
    thresholds = None
    if model.HasField("thresholds"):
        thresholds = Thresholds(same=model.thresholds.same, similar=model.thresholds.similar)
    return ModelInfo(
        id=model.id,
        name=model.name,
        revision=model.revision,
        dimensions=model.dimensions,
        image_size=model.image_size,
        precision=model.precision,
        provider=model.provider,
        has_text=model.has_text,
        thresholds=thresholds,
        limits=Limits(
            max_image_bytes=limits.max_image_bytes,
            max_image_pixels=limits.max_image_pixels,
            max_message_bytes=limits.max_message_bytes,
            max_text_chars=limits.max_text_chars,
        ),
    )


def failure(error: grpc.aio.AioRpcError, server: str) -> EmbeddingError:
    """What a call's status stands for.

    Args:
        error: The status.
        server: Which server was called, for the messages that are not the server's own.
    """
    details = error.details() or ""
    code = error.code()
    if code is grpc.StatusCode.INTERNAL and details.startswith(LOST_CALL):
        code = grpc.StatusCode.UNAVAILABLE
    if code is grpc.StatusCode.UNAVAILABLE:
        details = f"No answer from {server}: {details or 'it cannot be reached'}"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"No answer from {server} in time."
    elif not details:
        details = f"{server} answered {code.name}."
    return error_of(code, details, retry_after_ms=_retry_after_ms(error))


def _retry_after_ms(error: grpc.aio.AioRpcError) -> int | None:
    for key, value in error.trailing_metadata() or ():
        if key == RETRY_AFTER_KEY and str(value).isdecimal():
            return int(value)
    return None


def model_changed(server: str, *, before: str, now: str) -> ModelChangedError:
    """The error of a bulk call in the middle of which another model began to answer."""
    return ModelChangedError(
        f"{server} now serves {now}, and began with {before}: their embeddings cannot be compared, "
        "so start over."
    )
