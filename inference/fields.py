"""Fields of a message as they lie on the wire, looked at before protobuf makes objects of them.

An empty part of a message takes two bytes on the wire and up to 84 in memory: the longest message
that is taken would grow to 0.7 GB. What has more parts than anybody means is refused unread.

And gRPC holds a message as it came for as long as its call runs. protobuf's copy of it, and the
copy that reading a field makes, would treble the memory that a full queue of pictures takes; so a
long field is used where it lies.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError

from inference.errors import InvalidInputError

# How fields lie on the wire.
VARINT: Final = 0
LENGTH: Final = 2
GROUPS: Final = frozenset({3, 4})  # their begin and their end
_FIXED: Final = {1: 8, 5: 4}

# A number goes on where its byte has the high bit. Tags and lengths have 32 bits, values 64.
_MORE = 0x80
_LONGEST_NUMBER, _LONGEST_VALUE = 5, 10
# Below this, looking costs more: there is no room for parts that matter, and little to copy.
_WORTH_LOOKING_BYTES = 16 * 1024
# Somebody who sends more fields than any client does shall not be read in Python.
_MOST_FIELDS = 64

Buffer: TypeAlias = bytes | memoryview

Within: TypeAlias = "Mapping[int, Within | None]"
"""By tag, which parts have parts of their own: messages, or (None) numbers of a byte each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How many parts a message may have.

    Attributes:
        most: The most fields, those of the messages in `within` and its numbers included.
        within: What of the message is looked into.
        error: What a caller is told that sends more.
    """

    most: int
    within: Within
    error: str

    def check(self, data: bytes) -> None:
        """Looks at a message no further than it has to.

        Raises:
            InvalidInputError: It has more parts.
            google.protobuf.message.DecodeError: It is no message.
        """
        if len(data) < _WORTH_LOOKING_BYTES:
            return
        if _count(data, 0, len(data), self.within, self.most) > self.most:
            raise InvalidInputError(self.error)


def tag(number: int, kind: int = LENGTH) -> int:
    """What stands before a field of this number."""
    return number << 3 | kind


@lru_cache(maxsize=64)  # of the same few lengths
def varint(number: int) -> bytes:
    """A number, not negative, as it lies on the wire."""
    written = bytearray()
    while number >= _MORE:
        written.append(number % _MORE | _MORE)
        number >>= 7
    written.append(number)
    return bytes(written)


def fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The tag of each field between two places, and where its contents begin and end.

    Groups, which no message of ours has, are taken for two fields and what is between them.

    Raises:
        google.protobuf.message.DecodeError: There is no message.
    """
    try:
        while at < end:
            given = data[at]
            at += 1
            if given >= _MORE:
                given, at = _number(data, at - 1)
            kind = given & 7
            start = at
            if kind == LENGTH:
                length = data[at]
                start = at + 1
                if length >= _MORE:
                    length, start = _number(data, at)
                at = start + length
            elif kind == VARINT:
                at = _after_value(data, at)
            elif kind in _FIXED:
                at += _FIXED[kind]
            elif kind not in GROUPS:
                raise DecodeError
            if at > end:
                raise DecodeError
            yield given, start, at
    except IndexError:
        raise DecodeError from None


def apart(data: bytes, field: int) -> tuple[list[memoryview], bytes] | None:
    """Parts a message from the contents of its long field, which stay where they are.

    Args:
        data: The message.
        field: The field's tag.

    Returns:
        The contents, as often as the field is there, and the message without it; None where that
        is not worth it, or better left to protobuf.

    Raises:
        google.protobuf.message.DecodeError: There is no message.
    """
    if len(data) < _WORTH_LOOKING_BYTES:
        return None
    view = memoryview(data)
    contents: list[memoryview] = []
    rest: list[memoryview] = []
    begin = at = 0
    for number, (given, start, end) in enumerate(fields(data, 0, len(data))):
        if number == _MOST_FIELDS or given & 7 in GROUPS:
            return None
        if given == field:
            rest.append(view[begin:at])
            contents.append(view[start:end])
            begin = end
        at = end
    rest.append(view[begin:])
    return contents, b"".join(rest)


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A tag or a length, and where it ends."""
    number = 0
    for place in range(_LONGEST_NUMBER):
        byte = data[at + place]
        number |= (byte & ~_MORE) << (7 * place)
        if byte < _MORE:
            return number, at + place + 1
    raise DecodeError


def _after_value(data: bytes, at: int) -> int:
    for place in range(at, at + _LONGEST_VALUE):
        if data[place] < _MORE:
            return place + 1
    raise DecodeError


def _count(data: bytes, at: int, end: int, within: Within, most: int) -> int:
    """How many parts there are between two places; of more than `most`, some of them."""
    count = 0
    for given, start, stop in fields(data, at, end):
        count += 1
        if given in within:
            inner = within[given]
            count += (
                stop - start if inner is None else _count(data, start, stop, inner, most - count)
            )
        if count > most:
            break
    return count
