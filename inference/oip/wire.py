"""Requests off the wire without copying their tensors, which are nearly all of their bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

from mapseek.oip import open_inference_pb2 as oip

from inference.fields import Bound, Buffer, Within, apart, tag

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
    parts = apart(data, _RAW)
    if parts is None:
        return Request.of(oip.ModelInferRequest.FromString(data))
    raw, rest = parts
    return Request(oip.ModelInferRequest.FromString(rest), raw)


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
