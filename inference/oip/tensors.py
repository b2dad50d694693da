"""Tensors of a request to pictures or texts, embeddings to tensors of an answer.

Everything here is checked against what strangers send: an error names the tensor and what it should
have been.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mapseek.oip import open_inference_pb2 as oip

from inference.engine import Pixels
from inference.errors import InvalidInputError
from inference.fields import Buffer
from inference.lanes import Lane
from inference.oip.models import TEXTS, Model, Tensor
from inference.oip.statistics import Slowest
from inference.oip.wire import Request
from inference.pipeline import Embedded

# Before each element of raw BYTES: its length.
_LENGTH = struct.Struct("<I")
# Of Triton's priorities, 0 is the default and 1 the highest.
_BULK_PRIORITY = 2
_MAX_TIMEOUT_US = 3_600_000_000

Parameters = Mapping[str, oip.InferParameter]
Items = Sequence[Buffer] | Sequence[Pixels] | Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request, read and checked.

    Attributes:
        tensor: The input that was given.
        items: Its elements: encoded images, pixels uint8 [S, S, 3], or texts.
        lane: How urgent it is.
        timeout_s: How long it may take, in seconds; None leaves it to the call's deadline.
        raw: Whether the answer shall be raw.
    """

    tensor: Tensor
    items: Items
    lane: Lane
    timeout_s: float | None
    raw: bool


def read(request: Request, model: Model) -> Question:
    """Reads and checks a request.

    Raises:
        InvalidInputError: It is not what the model takes.
    """
    message, raw = request.message, request.raw
    given, tensor = _input(request, model)
    count = _count(given.shape, tensor, model)
    items: Items
    if tensor.datatype == "BYTES":
        elements = _raw_bytes(raw[0], tensor, count) if raw else _typed_bytes(given, tensor, count)
        items = _texts(elements) if tensor == TEXTS else elements
    else:
        items = _pixels(raw, given, tensor, count)
    parameters = message.parameters
    return Question(
        tensor=tensor,
        items=items,
        lane=_lane(parameters),
        timeout_s=_timeout_s(parameters),
        raw=_raw_is_wanted(message, model, default=bool(raw)),
    )


def is_slow(request: Request) -> bool:
    """Whether reading takes long enough to be done beside the event loop: numbers one by one."""
    return any(given.contents.uint_contents for given in request.inputs)


def answer(
    embedded: Sequence[Embedded], *, request: Request, model: Model, raw: bool
) -> oip.ModelInferResponse:
    """The answer to a request, its times being the longest of the batch."""
    output = model.output
    response = oip.ModelInferResponse(
        model_name=model.name, model_version=str(model.version), id=request.message.id
    )
    tensor = response.outputs.add(
        name=output.name, datatype=output.datatype, shape=(len(embedded), *output.dims)
    )
    if raw:
        rows = [one.embedding.astype("<f4", copy=False).tobytes() for one in embedded]
        response.raw_output_contents.append(b"".join(rows))
    else:
        for one in embedded:
            tensor.contents.fp32_contents.extend(one.embedding.tolist())
    slowest = Slowest.of(embedded)
    parameters = response.parameters
    parameters["mapseek_decode_us"].int64_param = round(slowest.decode_s * 1e6)
    parameters["mapseek_queue_us"].int64_param = round(slowest.queue_s * 1e6)
    parameters["mapseek_inference_us"].int64_param = round(slowest.inference_s * 1e6)
    parameters["mapseek_batch_size"].int64_param = slowest.batch_size
    return response


def _input(request: Request, model: Model) -> tuple[oip.ModelInferRequest.InferInputTensor, Tensor]:
    """The one input of a request, and which of the model's it is."""
    inputs, raw = request.inputs, request.raw
    known = {tensor.name: tensor for tensor in model.inputs}
    for given in inputs:
        if given.name not in known:
            raise InvalidInputError(f"There is no input {given.name!r}: {_takes(model)}.")
    if len(inputs) != 1:
        raise InvalidInputError(f"{len(inputs)} inputs were sent: {_takes(model)}, one a request.")
    given = inputs[0]
    tensor = known[given.name]
    if given.datatype != tensor.datatype:
        raise InvalidInputError(
            f"{tensor.name} has the datatype {given.datatype or 'none'!r}, and must have "
            f"{tensor.datatype}."
        )
    if "shared_memory_region" in given.parameters:
        raise InvalidInputError("Shared memory is not offered here: send the tensor itself.")
    if raw and given.HasField("contents"):
        raise InvalidInputError(
            f"{tensor.name} has both contents and raw_input_contents: send one of them."
        )
    if len(raw) > 1:
        raise InvalidInputError(f"raw_input_contents has {len(raw)} entries for 1 input.")
    return given, tensor


def _takes(model: Model) -> str:
    return f"{model.name} takes " + " or ".join(
        f"{tensor.name} ({tensor.datatype} {_shown(tensor)})" for tensor in model.inputs
    )


def _count(shape: Sequence[int], tensor: Tensor, model: Model) -> int:
    """How many elements the batch has."""
    fits = tuple(shape[1:]) == tensor.dims or (tensor.dims == (1,) and len(shape) == 1)
    if not shape or not fits or shape[0] < 1:
        raise InvalidInputError(
            f"{tensor.name} has the shape {list(shape)}, and must have {_shown(tensor)}."
        )
    if shape[0] > model.max_batch:
        raise InvalidInputError(
            f"{tensor.name} has a batch of {shape[0]}, and at most {model.max_batch} are taken "
            "at once: send several requests."
        )
    return shape[0]


def _shown(tensor: Tensor) -> str:
    if tensor.dims == (1,):
        return "[N] or [N, 1]"
    return f"[N, {', '.join(map(str, tensor.dims))}]"


def _raw_bytes(data: Buffer, tensor: Tensor, count: int) -> list[Buffer]:
    elements: list[Buffer] = []
    start = 0
    for number in range(count):
        end = start + _LENGTH.size
        if end <= len(data):
            (length,) = _LENGTH.unpack_from(data, start)
            start, end = end, end + length
        if end > len(data):
            raise InvalidInputError(
                f"{tensor.name}: raw_input_contents ends within element {number} of {count}: "
                "before each goes its length in four bytes, little-endian."
            )
        elements.append(data[start:end])
        start = end
    if start != len(data):
        raise InvalidInputError(
            f"{tensor.name}: raw_input_contents goes on for {len(data) - start} bytes after the "
            f"last of {count} elements."
        )
    return elements


def _typed_bytes(
    given: oip.ModelInferRequest.InferInputTensor, tensor: Tensor, count: int
) -> list[bytes]:
    elements = list(given.contents.bytes_contents)
    if len(elements) != count:
        raise InvalidInputError(
            f"{tensor.name} has {len(elements)} elements in bytes_contents, and {count} in its "
            "shape."
        )
    return elements


def _texts(elements: Iterable[Buffer]) -> list[str]:
    texts = []
    for number, element in enumerate(elements):
        try:
            texts.append(str(element, "utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{TEXTS.name}[{number}]: The text is no UTF-8.") from error
    return texts


def _pixels(
    raw: Sequence[Buffer],
    given: oip.ModelInferRequest.InferInputTensor,
    tensor: Tensor,
    count: int,
) -> Sequence[Pixels]:
    shape = (count, *tensor.dims)
    wanted = math.prod(shape)
    if raw:
        data = raw[0]
        if len(data) != wanted:
            raise InvalidInputError(
                f"{tensor.name} has {len(data)} bytes in raw_input_contents, and its shape needs "
                f"{wanted}."
            )
        batch = np.frombuffer(data, np.uint8)
    else:
        numbers = given.contents.uint_contents
        if len(numbers) != wanted:
            raise InvalidInputError(
                f"{tensor.name} has {len(numbers)} numbers in uint_contents, and its shape needs "
                f"{wanted}."
            )
        try:
            batch = np.frombuffer(bytes(numbers), np.uint8)
        except ValueError:
            raise InvalidInputError(
                f"{tensor.name} has the number {max(numbers)} in uint_contents, which is no UINT8."
            ) from None
    return list(batch.reshape(shape))


def _lane(parameters: Parameters) -> Lane:
    if "lane" in parameters:
        try:
            return Lane(parameters["lane"].string_param)
        except ValueError:
            lanes = " or ".join(Lane)
            raise InvalidInputError(f"The parameter lane must be {lanes}.") from None
    return Lane.BULK if _number(parameters, "priority") >= _BULK_PRIORITY else Lane.INTERACTIVE


def _timeout_s(parameters: Parameters) -> float | None:
    timeout_us = _number(parameters, "timeout")
    return timeout_us / 1e6 if 0 < timeout_us <= _MAX_TIMEOUT_US else None


def _number(parameters: Parameters, name: str) -> int:
    """A parameter that is a number, 0 where it is missing."""
    if name not in parameters:
        return 0
    parameter = parameters[name]
    match parameter.WhichOneof("parameter_choice"):
        case "int64_param" if parameter.int64_param >= 0:
            return parameter.int64_param
        case "uint64_param":
            return parameter.uint64_param
        case "string_param" if (
            parameter.string_param.isdecimal() and parameter.string_param.isascii()
        ):
            return int(parameter.string_param[:20])
        case _:
            raise InvalidInputError(f"The parameter {name} must be a number that is not negative.")


def _raw_is_wanted(message: oip.ModelInferRequest, model: Model, *, default: bool) -> bool:
    raw = default
    if "binary_data_output" in message.parameters:
        raw = message.parameters["binary_data_output"].bool_param
    for output in message.outputs:
        if output.name != model.output.name:
            raise InvalidInputError(
                f"There is no output {output.name!r}: {model.name} gives {model.output.name}."
            )
        if "shared_memory_region" in output.parameters or "classification" in output.parameters:
            raise InvalidInputError(
                f"{output.name}: neither shared memory nor classification is offered here."
            )
        if "binary_data" in output.parameters:
            raw = output.parameters["binary_data"].bool_param
    return raw
