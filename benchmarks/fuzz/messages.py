"""The messages and connections that are spoilt: of every method that the server answers."""

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message
from mapseek.oip import open_inference_pb2 as oip
from mapseek.v1 import embedding_pb2 as pb

from benchmarks.fuzz.mutations import spoilt
from inference.oip.models import PIXELS

T = TypeVar("T")

# Names and contents of the files that are sent.
Corpus = list[tuple[str, bytes]]

_OWN = "/mapseek.v1.EmbeddingService/"
_OPEN = "/inference.GRPCInferenceService/"
EMBED = f"{_OWN}Embed"

_ODD_COUNTS = (-(2**63), -1, 0, 1, 2, 3, 2**31, 2**63 - 1)
_ODD_TEXTS = (
    "",
    "images",
    PIXELS,
    "texts",
    "\N{NULL}",
    "BYTES",
    "UINT8",
    "image_embeds",
    "x" * 300,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method of the server.

    Attributes:
        path: As HTTP/2 names it.
        whole: Makes a message of it that can be read, whatever it asks for.
        streams: Whether it takes many.
    """

    path: str
    whole: Callable[[Corpus, random.Random], Message]
    streams: bool = False

    @property
    def name(self) -> str:
        """The method without its service."""
        return self.path.rpartition("/")[2]


def methods(model: str) -> Sequence[Method]:
    """Every method that takes something.

    Args:
        model: Name of a model that is there, in the Open Inference Protocol.
    """

    def question(corpus: Corpus, chance: random.Random) -> Message:
        return _question(model, corpus, chance)

    def named(kind: Callable[..., Message]) -> Callable[[Corpus, random.Random], Message]:
        return lambda _, chance: kind(name=_mostly(model, _ODD_TEXTS, chance))

    return (
        Method(path=EMBED, whole=_embed),
        Method(path=f"{_OWN}EmbedText", whole=_text),
        Method(path=f"{_OWN}GetModel", whole=_text),
        Method(path=f"{_OWN}EmbedStream", whole=_stream, streams=True),
        Method(path=f"{_OPEN}ModelInfer", whole=question),
        Method(path=f"{_OPEN}ModelStreamInfer", whole=question, streams=True),
        Method(path=f"{_OPEN}ModelMetadata", whole=named(oip.ModelMetadataRequest)),
        Method(path=f"{_OPEN}ModelConfig", whole=named(oip.ModelConfigRequest)),
        Method(path=f"{_OPEN}ModelStatistics", whole=named(oip.ModelStatisticsRequest)),
        Method(path=f"{_OPEN}ModelReady", whole=named(oip.ModelReadyRequest)),
        Method(path=f"{_OPEN}RepositoryIndex", whole=_text),
        Method(path="/grpc.health.v1.Health/Check", whole=_text),
        Method(
            path="/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            whole=_text,
            streams=True,
        ),
    )


def message(method: Method, corpus: Corpus, chance: random.Random) -> bytes:
    """A message for a method: pure chance, spoilt, or one that can be read and asks for odd things.

    The same chance makes the same message.
    """
    if chance.random() < 0.1:  # noqa: PLR2004  a tenth
        return chance.randbytes(chance.randrange(200))
    whole = method.whole(corpus, chance).SerializeToString()
    # Of a spoilt message the parser mostly sees to it that nobody reads on.
    if method.path.startswith(_OPEN) and chance.random() < 0.5:  # noqa: PLR2004  half
        return whole
    return spoilt(whole, chance.choice(corpus)[1], chance)


def frames(corpus: Corpus, chance: random.Random) -> bytes:
    """An HTTP/2 connection with one call, spoilt behind the preface."""
    headers = b"".join(
        b"\x00" + _header(key) + _header(value)
        for key, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", chance.choice([method.path for method in methods("")])),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        )
    )
    sent = pb.EmbedRequest(image=chance.choice(corpus)[1]).SerializeToString()
    body = b"\x00" + struct.pack(">I", len(sent)) + sent
    whole = _frame(4, 0, 0, b"") + _frame(1, 4, 1, headers) + _frame(0, 1, 1, body[:16_000])
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + spoilt(whole, headers, chance)


def _embed(corpus: Corpus, chance: random.Random) -> Message:
    return pb.EmbedRequest(image=chance.choice(corpus)[1], lane=pb.LANE_BULK)


def _stream(corpus: Corpus, chance: random.Random) -> Message:
    image = chance.choice(corpus)[1]
    images = [pb.StreamImage(id=number, image=image) for number in range(chance.randint(0, 3))]
    return pb.EmbedStreamRequest(images=images)


def _text(_: Corpus, chance: random.Random) -> Message:
    del chance
    return pb.EmbedTextRequest(text="mapseek.v1.EmbeddingService")


def _question(model: str, corpus: Corpus, chance: random.Random) -> Message:
    """A question that is right in most of its parts."""
    elements = [chance.choice(corpus)[1] for _ in range(chance.randint(1, 3))]
    request = oip.ModelInferRequest(
        model_name=_mostly(model, _ODD_TEXTS, chance),
        model_version=_mostly("", ("0", "1", "x"), chance),
        id=chance.choice(("", "7", "\N{NULL}")),
    )
    for _ in range(_mostly(1, (0, 2), chance)):
        _add_input(request, elements, chance)
    if chance.random() < 0.8:  # noqa: PLR2004  four of five
        raw = b"".join(struct.pack("<I", len(one)) + one for one in elements)
        request.raw_input_contents.append(_mostly(raw, (spoilt(raw, b"", chance),), chance))
    for name in ("priority", "timeout", "lane", "binary_data_output"):
        if chance.random() < 0.1:  # noqa: PLR2004  a tenth
            _set_odd(request.parameters[name], chance)
    if chance.random() < 0.2:  # noqa: PLR2004  a fifth
        output = request.outputs.add(name=_mostly("image_embeds", _ODD_TEXTS, chance))
        if chance.random() < 0.5:  # noqa: PLR2004  half
            _set_odd(output.parameters[chance.choice(("binary_data", "classification"))], chance)
    return request


def _add_input(
    request: oip.ModelInferRequest, elements: Sequence[bytes], chance: random.Random
) -> None:
    tensor = request.inputs.add(
        name=_mostly("images", _ODD_TEXTS, chance),
        datatype=_mostly("BYTES", ("", "UINT8", "FP32", "bytes"), chance),
        shape=_mostly([len(elements)], _shapes(chance), chance),
    )
    if chance.random() < 0.1:  # noqa: PLR2004  a tenth
        tensor.parameters["shared_memory_region"].string_param = "region"
    match chance.randrange(8):
        case 0:
            tensor.contents.bytes_contents.extend(elements)
        case 1:
            tensor.contents.uint_contents.extend(chance.choices((0, 255, 2**32 - 1), k=12))
        case 2:
            tensor.contents.fp32_contents.extend([float("nan"), 1.0])
        case _:
            pass


def _shapes(chance: random.Random) -> Sequence[list[int]]:
    return [[chance.choice(_ODD_COUNTS) for _ in range(length)] for length in (0, 1, 2, 4, 40)]


def _set_odd(parameter: oip.InferParameter, chance: random.Random) -> None:
    match chance.randrange(5):
        case 0:
            parameter.int64_param = chance.choice(_ODD_COUNTS)
        case 1:
            parameter.uint64_param = chance.choice((0, 1, 2**64 - 1))
        case 2:
            parameter.string_param = chance.choice(("", "bulk", "9" * 400, "\N{SUPERSCRIPT TWO}"))
        case 3:
            parameter.double_param = float("nan")
        case _:
            parameter.bool_param = True


def _mostly(right: T, odd: Sequence[T], chance: random.Random) -> T:
    return right if chance.random() < 0.8 else chance.choice(odd)  # noqa: PLR2004  four of five


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _header(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
