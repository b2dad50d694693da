"""Whether a message is read as protobuf reads it."""

from collections.abc import Callable
from typing import TypeVar

import pytest
from google.protobuf.message import DecodeError, Message

M = TypeVar("M", bound=Message)
Request = TypeVar("Request")


def read_both_ways(
    data: bytes, message: type[M], parse: Callable[[bytes], Request]
) -> tuple[M, Request] | None:
    """A message as protobuf and as `parse` read it; None where both refuse it."""
    try:
        expected = message.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            parse(data)
        return None
    return expected, parse(data)
