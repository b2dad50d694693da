"""The kinds of call that are measured: their messages, made beforehand, and what answers them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mapseek.oip import open_inference_pb2 as oip
from mapseek.v1 import embedding_pb2 as pb

from benchmarks.pictures import encode, screenshot
from inference.artifact import Manifest
from inference.oip.models import image_model_name

OWN_UNARY = "/mapseek.v1.EmbeddingService/Embed"
OWN_STREAM = "/mapseek.v1.EmbeddingService/EmbedStream"
OPEN_UNARY = "/inference.GRPCInferenceService/ModelInfer"
OPEN_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"

# Of the JPEG: small, so that decoding leaves the cores to what is measured.
_JPEG_SIDE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of call, or of message of a stream.

    Attributes:
        name: What it is.
        method: Where it goes.
        message: A serialised request.
        images: Images in it.
        answer_bytes: Length of its answer, which an empty server gives as well.
        embedded: How many embeddings a serialised answer holds; raises where it tells of an error.
        streams: Whether messages of it follow each other in one call.
        encoded: Whether its images have to be decoded.
    """

    name: str
    method: str
    message: bytes
    images: int
    answer_bytes: int
    embedded: Callable[[bytes], int]
    streams: bool
    encoded: bool = False


def small_jpeg() -> bytes:
    """The encoded image of every kind that sends one."""
    return encode(screenshot(0, width=_JPEG_SIDE, height=_JPEG_SIDE), "JPEG")


def kinds(manifest: Manifest, images: Sequence[int]) -> list[Kind]:
    """All kinds, in the order of the table.

    Args:
        manifest: Of the model that is served.
        images: Images a message, in streams and in batches.
    """
    side = manifest.preprocessing.image_size
    jpeg = small_jpeg()
    floats = manifest.dimensions * 4
    single = pb.EmbedRequest(image=jpeg).SerializeToString()
    found = [
        Kind(
            name="Embed, a small JPEG",
            method=OWN_UNARY,
            message=single,
            images=1,
            answer_bytes=floats,
            embedded=_of_embed,
            streams=False,
            encoded=True,
        )
    ]
    for streams, method, embedded in (
        (False, OPEN_UNARY, _of_infer),
        (True, OPEN_STREAM, _of_stream_infer),
    ):
        found += [
            Kind(
                name=f"{method.rpartition('/')[2]}, {_told(count)} as pixels",
                method=method,
                message=_question(manifest, side, count),
                images=count,
                answer_bytes=count * floats,
                embedded=embedded,
                streams=streams,
            )
            for count in images
        ]
    return found + [
        Kind(
            name=f"EmbedStream, {_told(count)} as small JPEG",
            method=OWN_STREAM,
            message=pb.EmbedStreamRequest(
                images=[pb.StreamImage(id=number, image=jpeg) for number in range(count)]
            ).SerializeToString(),
            images=count,
            answer_bytes=count * floats,
            embedded=_of_embed_stream,
            streams=True,
            encoded=True,
        )
        for count in images
    ]


def _told(count: int) -> str:
    return f"{count} image" + "s" * (count > 1)


def _question(manifest: Manifest, side: int, count: int) -> bytes:
    shape = (count, side, side, 3)
    pixels = np.random.default_rng(0).integers(0, 256, math.prod(shape), np.uint8)
    request = oip.ModelInferRequest(model_name=image_model_name(manifest))
    request.inputs.add(name="pixels", datatype="UINT8", shape=shape)
    request.raw_input_contents.append(pixels.tobytes())
    return request.SerializeToString()


def _of_embed(answer: bytes) -> int:
    return int(pb.EmbedResponse.FromString(answer).HasField("embedding"))


def _of_infer(answer: bytes) -> int:
    return int(oip.ModelInferResponse.FromString(answer).outputs[0].shape[0])


def _of_stream_infer(answer: bytes) -> int:
    response = oip.ModelStreamInferResponse.FromString(answer)
    if response.error_message:
        raise ValueError(response.error_message)
    return int(response.infer_response.outputs[0].shape[0])


def _of_embed_stream(answer: bytes) -> int:
    results = pb.EmbedStreamResponse.FromString(answer).results
    for result in results:
        if not result.HasField("embedding"):
            raise ValueError(result.error.message)
    return len(results)
