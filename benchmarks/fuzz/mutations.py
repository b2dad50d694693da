"""Files and messages that are nearly right: seeds of every format, and ways of spoiling them."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_MOST_SPOILT = 4
# Longer ones teach nothing that shorter ones do not.
_LONGEST = 64 * 1024


def seeds() -> dict[str, bytes]:
    """Small valid files of every format that the server takes, in the modes that they come in."""
    chance = np.random.default_rng(0)
    picture = Image.fromarray(chance.integers(0, 256, (40, 56, 3), np.uint8))
    smooth = picture.resize((9, 7)).resize((56, 40), Image.Resampling.BICUBIC)
    frames = [smooth.rotate(90 * turn) for turn in range(3)]
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(chance.integers(0, 65_536, (20, 30)).astype(np.uint16))
    moving: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 50}
    return {
        "JPEG": _saved(smooth, "JPEG"),
        "JPEG, progressive": _saved(smooth, "JPEG", progressive=True),
        "JPEG, grey": _saved(smooth.convert("L"), "JPEG"),
        "JPEG, CMYK": _saved(smooth.convert("CMYK"), "JPEG"),
        "JPEG, turned": _saved(smooth, "JPEG", exif=turned, comment=b"a comment"),
        "PNG": _saved(picture, "PNG"),
        "PNG, RGBA": _saved(picture.convert("RGBA"), "PNG"),
        "PNG, palette": _saved(smooth.quantize(16), "PNG", transparency=3),
        "PNG, one bit": _saved(smooth.convert("1"), "PNG"),
        "PNG, 16 bits": _saved(deep, "PNG"),
        "PNG, animated": _saved(frames[0], "PNG", **moving),
        "GIF": _saved(smooth.quantize(32), "GIF"),
        "GIF, animated": _saved(frames[0], "GIF", **moving, loop=0),
        "WebP": _saved(smooth, "WEBP"),
        "WebP, lossless": _saved(smooth.convert("RGBA"), "WEBP", lossless=True),
        "WebP, animated": _saved(frames[0], "WEBP", **moving),
        "AVIF": _saved(smooth, "AVIF"),
        "AVIF, RGBA": _saved(smooth.convert("RGBA"), "AVIF"),
    }


def spoilt(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Spoils some bytes or parts of a file or message.

    Args:
        data: What to spoil.
        other: Another one, to take parts from.
        chance: Decides what and where; the same chance spoils in the same way.
    """
    for _ in range(chance.randint(1, _MOST_SPOILT)):
        how = chance.choice((_png, _segments, *_ANY) if len(data) > len(_PNG) else _ANY)
        data = how(data, other, chance)[:_LONGEST]
    return data


def _flip(data: bytes, _: bytes, chance: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _bit in range(chance.randint(1, 8) if spoilt else 0):
        spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
    return bytes(spoilt)


def _number(data: bytes, _: bytes, chance: random.Random) -> bytes:
    """Writes an odd number over a length, or whatever lies there."""
    form = chance.choice((">B", ">H", "<H", ">I", "<I"))
    size = struct.calcsize(form)
    number = chance.choice(_ODD_NUMBERS) & (256**size - 1)
    at = chance.randrange(max(1, len(data) - size + 1))
    return data[:at] + struct.pack(form, number) + data[at + size :]


def _cut(data: bytes, _: bytes, chance: random.Random) -> bytes:
    start, end = _span(data, chance)
    return data[:start] + data[end:]


def _end(data: bytes, _: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _repeat(data: bytes, _: bytes, chance: random.Random) -> bytes:
    start, end = _span(data, chance)
    return data[:start] + data[start:end] * chance.choice((2, 3, 50)) + data[end:]


def _insert(data: bytes, _: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.randint(1, 16)) + data[at:]


def _splice(data: bytes, other: bytes, chance: random.Random) -> bytes:
    start, end = _span(other, chance)
    at = chance.randrange(len(data) + 1)
    return data[:at] + other[start:end] + data[at:]


_ANY: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (
    _flip, _number, _cut, _end, _repeat, _insert, _splice,
)  # fmt: skip


def _png(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Spoils a chunk of a PNG file and lets the checksums be right, so that it is read at all."""
    if not data.startswith(_PNG):
        return _number(data, other, chance)
    chunks = []
    at = len(_PNG)
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return _PNG + b"".join(_chunk(*chunk) for chunk in _parts_spoilt(chunks, chance))


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def _segments(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Spoils a segment of a JPEG file and lets the lengths be right."""
    if not data.startswith(b"\xff\xd8"):
        return _number(data, other, chance)
    parts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:  # noqa: PLR2004
        length = int.from_bytes(data[at + 2 : at + 4])
        parts.append((data[at : at + 2], data[at + 4 : at + 2 + length]))
        at += 2 + max(length, 2)
    written = (
        marker + struct.pack(">H", (len(body) + 2) & 0xFFFF) + body
        for marker, body in _parts_spoilt(parts, chance)
    )
    return data[:2] + b"".join(written) + data[at:]


def _parts_spoilt(
    parts: list[tuple[bytes, bytes]], chance: random.Random
) -> list[tuple[bytes, bytes]]:
    if not parts:
        return parts
    parts = list(parts)
    which = chance.randrange(len(parts))
    kind, body = parts[which]
    match chance.randrange(5):
        case 0:
            parts[which] = (kind, chance.choice((_flip, _number, _end, _repeat))(body, b"", chance))
        case 1:
            del parts[which]
        case 2:
            parts[which:which] = [(kind, body)] * chance.choice((1, 2, 300))
        case 3:
            chance.shuffle(parts)
        case _:
            parts[which] = (parts[chance.randrange(len(parts))][0], body)
    return parts


def _span(data: bytes, chance: random.Random) -> tuple[int, int]:
    start = chance.randrange(len(data) + 1)
    return start, min(len(data), start + chance.choice((1, 2, 4, 16, 256)))


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()
