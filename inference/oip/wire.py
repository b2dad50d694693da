"""Requests off the wire without copying their tensors, which are nearly all of their bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message_factory import GetMessageClass
from mapseek.oip import open_inference_pb2 as oip

# Below this, copying costs less than looking.
_WORTH_LOOKING_BYTES = 16 * 1024
# Somebody who sends more fields than any client does shall not be read in Python.
_MOST_FIELDS = 64
_RAW = oip.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
# How fields lie on the wire.
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Request:
    """A `ModelInferRequest`.

    Attributes:
        message: All of it but what is in `raw`.
        raw: Its `raw_input_contents`.
    """

    message: oip.ModelInferRequest
    raw: Sequence[Buffer]

    @property
    def inputs(self) -> Sequence[oip.ModelInferRequest.InferInputTensor]:
        """The tensors that are described, as in the message."""
        return self.message.inputs

    @classmethod
    def of(cls, message: oip.ModelInferRequest) -> "Request":
        """A request out of a whole message."""
        return cls(message, message.raw_input_contents)


def parse(data: bytes) -> Request:
    """Reads a request; raw tensors stay where they are.

    Raises:
        google.protobuf.message.DecodeError: It is none.
    """
    parts = _split(data) if len(data) >= _WORTH_LOOKING_BYTES else None
    if parts is None:
        return Request.of(oip.ModelInferRequest.FromString(data))
    raw, rest = parts
    return Request(oip.ModelInferRequest.FromString(b"".join(rest)), raw)


def _split(data: bytes) -> tuple[list[memoryview], list[memoryview]] | None:
    """The raw tensors and the rest of a message; None leaves it to protobuf, as in all doubt."""
    view = memoryview(data)
    raw: list[memoryview] = []
    rest: list[memoryview] = []
    begin = at = 0
    for _ in range(_MOST_FIELDS):
        if at == len(data):
            rest.append(view[begin:])
            return raw, rest
        field, start = _varint(data, at)
        kind = field & 7
        if kind == _LENGTH:
            length, start = _varint(data, start)
            end = start + length
        elif kind == _VARINT:
            _, end = _varint(data, start)
        elif kind in {_FIXED32, _FIXED64}:
            end = start + (4 if kind == _FIXED32 else 8)
        else:
            return None
        if start < 0 or not start <= end <= len(data):
            return None
        if field == _RAW << 3 | _LENGTH:
            rest.append(view[begin:at])
            raw.append(view[start:end])
            begin = end
        at = end
    return None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends; (0, -1) where there is none."""
    number = 0
    for place, byte in enumerate(data[at : at + 5] if at >= 0 else b""):
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:  # noqa: PLR2004  the last byte has no high bit
            return number, at + place + 1
    return 0, -1


def add_to(server: grpc.aio.Server, service: Any) -> None:
    """Lets a server answer with an `OpenInferenceService`, whose requests `parse` reads."""
    descriptor = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    handlers = {}
    for method in descriptor.methods:
        kind = GetMessageClass(method.input_type)
        make: Any = (
            grpc.stream_stream_rpc_method_handler
            if method.client_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        handlers[method.name] = make(
            getattr(service, method.name),
            request_deserializer=parse if kind is oip.ModelInferRequest else kind.FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    generic = grpc.method_handlers_generic_handler(descriptor.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))
    server.add_registered_method_handlers(descriptor.full_name, handlers)
