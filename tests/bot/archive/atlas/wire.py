"""Just enough of MongoDB's wire protocol to stand between a driver and a server.

https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
"""

import socket
import struct
from dataclasses import dataclass
from typing import Any

import bson
from bson.codec_options import CodecOptions

_HEADER = struct.Struct("<iiii")
_MSG = 2013
_CHECKSUM, _MORE_TO_COME = 1, 2

_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as it came, and the command in it if it holds one."""

    raw: bytes
    request_id: int
    command: dict[str, Any] | None


def receive(connection: socket.socket) -> Message | None:
    """The next message of a driver, None where the connection has ended.

    Messages come as they are: SecantusDB agrees to no compression.
    """
    head = _exactly(connection, _HEADER.size)
    if head is None:
        return None
    length, request_id, _, opcode = _HEADER.unpack(head)
    body = _exactly(connection, length - _HEADER.size)
    if body is None:
        return None
    raw = head + body
    return Message(
        raw=raw,
        request_id=request_id,
        command=_command(body) if opcode == _MSG else None,
    )


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    parts: list[bytes] = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _command(body: bytes) -> dict[str, Any]:
    """The command of an OP_MSG, with its document sequences as the arrays that they stand for."""
    (flags,) = struct.unpack_from("<I", body)
    end = len(body) - (4 if flags & _CHECKSUM else 0)
    command: dict[str, Any] = {}
    place = 4
    while place < end:
        kind = body[place]
        (size,) = struct.unpack_from("<i", body, place + 1)
        section = body[place + 1 : place + 1 + size]
        if kind == 0:
            command |= bson.decode(section, _OPTIONS)
        else:
            name, _, documents = section[4:].partition(b"\0")
            command[name.decode()] = bson.decode_all(documents, _OPTIONS)
        place += 1 + size
    return command


def reply(request_id: int, document: dict[str, Any]) -> bytes:
    """An answer to a request."""
    body = struct.pack("<IB", 0, 0) + bson.encode(document)
    return _HEADER.pack(_HEADER.size + len(body), 0, request_id, _MSG) + body
