"""Requests off the wire without copying their tensors, which are nearly all of their bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message_factory import GetMessageClass
from mapseek.oip import open_inference_pb2 as oip

from inference.fields import GROUPS, Bound, Within, fields, tag

# Below this, copying costs less than looking.
_WORTH_LOOKING_BYTES = 16 * 1024
# Somebody who sends more fields than any client does shall not be read in Python.
_MOST_FIELDS = 64
_RAW = tag(oip.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER)
# Beside the elements of a batch: inputs, outputs, parameters, and what is in them.
_MOST_PARTS = 1024
_TENSOR = oip.ModelInferRequest.InferInputTensor
_CONTENTS = oip.InferTensorContents
# Where protobuf makes much of little. Pixels may be many; numbers of other types do not grow.
_PARTS: Within = {
    tag(oip.ModelInferRequest.INPUTS_FIELD_NUMBER): {
        tag(_TENSOR.SHAPE_FIELD_NUMBER): None,
        tag(_TENSOR.CONTENTS_FIELD_NUMBER): {
            tag(_CONTENTS.INT_CONTENTS_FIELD_NUMBER): None,
            tag(_CONTENTS.INT64_CONTENTS_FIELD_NUMBER): None,
            tag(_CONTENTS.UINT64_CONTENTS_FIELD_NUMBER): None,
        },
    },
    tag(oip.ModelInferRequest.OUTPUTS_FIELD_NUMBER): {},
}

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
    for number, (field, start, end) in enumerate(fields(data, 0, len(data))):
        if number == _MOST_FIELDS or field & 7 in GROUPS:
            return None
        if field == _RAW:
            rest.append(view[begin:at])
            raw.append(view[start:end])
            begin = end
        at = end
    rest.append(view[begin:])
    return raw, rest


def bound(max_batch: int) -> Bound:
    """How many parts a request may have.

    Args:
        max_batch: Most elements of one request.
    """
    return Bound(
        most=max_batch + _MOST_PARTS,
        within=_PARTS,
        error=f"The request has more than {max_batch + _MOST_PARTS} parts, and at most "
        f"{max_batch} elements are taken at once: send several requests.",
    )


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
