"""Everything that a server on the open network gets besides requests, in small bounded doses."""

import asyncio
import io
import random
import struct
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
from mapseek.v1 import embedding_pb2 as pb
from PIL import Image, PngImagePlugin

_SERVICE = "/mapseek.v1.EmbeddingService"
_ANSWER_S = 30.0

Unary = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

OK = "OK"
INVALID = "INVALID_ARGUMENT"
FULL = "RESOURCE_EXHAUSTED"
LATE = "DEADLINE_EXCEEDED"
LEFT = "CANCELLED"
# What an attacker does who expects no answer.
DONE = "done"
# No answer at all within the time that anybody waits.
HUNG = "no answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One kind of hostile, broken or merely odd traffic.

    Attributes:
        name: What it is.
        run: Does it once and returns how it ended: a gRPC status, or one of the words above.
        expected: How it may end. A server that is full may always refuse.
        weight: How often it is chosen, relative to the others.
    """

    name: str
    run: Callable[["Victim"], Awaitable[str]]
    expected: frozenset[str]
    weight: float = 1.0


class Victim:
    """The server under attack, and chance.

    Args:
        address: HOST:PORT on this machine.
        pictures: Valid pictures.
        max_image_bytes: The server's limit.
        max_message_bytes: The server's limit.
        seed: The same seed makes the same choices.
    """

    def __init__(
        self,
        address: str,
        pictures: Sequence[bytes],
        *,
        max_image_bytes: int,
        max_message_bytes: int,
        seed: int,
    ) -> None:
        self.address = address
        self.pictures = pictures
        self.max_image_bytes = max_image_bytes
        self.max_message_bytes = max_message_bytes
        self.chance = random.Random(seed)
        self.channel = self.connect()

    def connect(self) -> grpc.aio.Channel:
        """Opens a connection of its own, which shares nothing with the other channels."""
        return grpc.aio.insecure_channel(
            self.address,
            options=[
                ("grpc.max_send_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    async def embed(self, image: bytes, *, timeout_s: float = _ANSWER_S) -> str:
        """Sends one image and returns the status."""
        return await self.unary("Embed", pb.EmbedRequest(image=image), timeout_s=timeout_s)

    async def unary(
        self,
        method: str,
        request: Any,
        *,
        timeout_s: float = _ANSWER_S,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> str:
        """Calls a method with a message, or with raw bytes in its place."""
        body = request if isinstance(request, bytes) else request.SerializeToString()
        method_of: Unary = self.channel.unary_unary(f"{_SERVICE}/{method}")
        call = method_of(body, timeout=timeout_s, metadata=grpc.aio.Metadata(*metadata))
        code: grpc.StatusCode = await call.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s >= _ANSWER_S:
            return HUNG
        return code.name

    def some(self, count: int) -> list[bytes]:
        """Some valid pictures."""
        return [self.chance.choice(self.pictures) for _ in range(count)]


def attacks() -> list[Attack]:
    """All kinds of attack."""
    files = [
        *((name, data, {INVALID}) for name, data in _broken_files().items()),
        *((name, data, {OK}) for name, data in _odd_files().items()),
    ]
    return [
        *(
            Attack(name=name, run=_sending(data), expected=frozenset({*expected, FULL}))
            for name, data, expected in files
        ),
        Attack(
            name="truncated JPEG", run=_truncated, expected=frozenset({INVALID, FULL}), weight=3
        ),
        Attack(name="bytes by chance", run=_random_bytes, expected=frozenset({INVALID, FULL})),
        Attack(
            name="damaged JPEG", run=_damaged, expected=frozenset({INVALID, OK, FULL}), weight=3
        ),
        Attack(name="file over the limit", run=_long_file, expected=frozenset({INVALID, FULL})),
        Attack(name="message over the limit", run=_long_message, expected=frozenset({FULL})),
        Attack(
            name="no protobuf message",
            run=lambda victim: victim.unary("Embed", b"\xff\xff\xff\xff not a message"),
            expected=frozenset({INVALID, FULL}),
        ),
        Attack(
            name="unknown method",
            run=lambda victim: victim.unary("Embezzle", b""),
            expected=frozenset({"UNIMPLEMENTED"}),
        ),
        Attack(
            name="metadata over the limit",
            run=lambda victim: victim.unary("GetModel", b"", metadata=[("junk", "x" * 60_000)]),
            expected=frozenset({FULL}),
        ),
        Attack(
            name="call cancelled",
            run=_cancelled,
            expected=frozenset({LEFT, OK, FULL}),
            weight=6,
        ),
        Attack(
            name="connection dropped in a call",
            run=_dropped,
            expected=frozenset({DONE}),
            weight=3,
        ),
        Attack(
            name="tiny deadline",
            run=lambda victim: victim.embed(
                victim.some(1)[0], timeout_s=victim.chance.uniform(0.0005, 0.02)
            ),
            expected=frozenset({LATE, OK, FULL}),
            weight=6,
        ),
        Attack(
            name="stream left in the middle",
            run=_stream_left,
            expected=frozenset({DONE}),
            weight=3,
        ),
        Attack(
            name="stream that does not read",
            run=_stream_half_open,
            expected=frozenset({DONE}),
            weight=2,
        ),
        Attack(name="garbage on the port", run=_garbage, expected=frozenset({DONE}), weight=3),
        Attack(name="flood", run=_flood, expected=frozenset({DONE}), weight=0.3),
    ]


def _sending(data: bytes) -> Callable[[Victim], Awaitable[str]]:
    return lambda victim: victim.embed(data)


async def _truncated(victim: Victim) -> str:
    (whole,) = victim.some(1)
    return await victim.embed(whole[: victim.chance.randrange(1, len(whole) // 2)])


async def _random_bytes(victim: Victim) -> str:
    return await victim.embed(victim.chance.randbytes(victim.chance.randrange(1, 100_000)))


async def _damaged(victim: Victim) -> str:
    (whole,) = victim.some(1)
    damaged = bytearray(whole)
    for _ in range(victim.chance.randrange(1, 30)):
        damaged[victim.chance.randrange(len(damaged))] = victim.chance.randrange(256)
    return await victim.embed(bytes(damaged))


async def _long_file(victim: Victim) -> str:
    (picture,) = victim.some(1)
    return await victim.embed(picture + bytes(victim.max_image_bytes + 1 - len(picture)))


async def _long_message(victim: Victim) -> str:
    return await victim.embed(bytes(victim.max_message_bytes + 1))


async def _cancelled(victim: Victim) -> str:
    (picture,) = victim.some(1)
    body = pb.EmbedRequest(image=picture).SerializeToString()
    embed: Unary = victim.channel.unary_unary(f"{_SERVICE}/Embed")
    call = embed(body, timeout=_ANSWER_S)
    # From before the request is sent to after it is answered.
    await asyncio.sleep(victim.chance.uniform(0, 0.05))
    call.cancel()
    code: grpc.StatusCode = await call.code()
    return code.name


async def _dropped(victim: Victim) -> str:
    """Leaves with the whole connection while a call is on its way."""
    channel = victim.connect()
    body = pb.EmbedRequest(image=victim.some(1)[0]).SerializeToString()
    embed: Unary = channel.unary_unary(f"{_SERVICE}/Embed")
    call = embed(body, timeout=_ANSWER_S)
    # A full server may have refused it before it was dropped.
    with suppress(TimeoutError, grpc.aio.AioRpcError):
        async with asyncio.timeout(victim.chance.uniform(0, 0.05)):
            await call.wait_for_connection()
            await asyncio.Event().wait()
    await channel.close(grace=None)
    return DONE


async def _stream_left(victim: Victim) -> str:
    """Sends a few messages, reads a few answers or none, and drops the connection."""
    channel = victim.connect()
    call = _stream(channel)
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        for number in range(victim.chance.randrange(1, 6)):
            await call.write(_stream_message(victim, number))
        for _ in range(victim.chance.randrange(0, 2)):
            await call.read()
    await channel.close(grace=None)
    return DONE


async def _stream_half_open(victim: Victim) -> str:
    """Sends as long as the server takes it, reads nothing, and stays for a while."""
    channel = victim.connect()
    call = _stream(channel)
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
        async with asyncio.timeout(victim.chance.uniform(1, 6)):
            for number in range(50):
                await call.write(_stream_message(victim, number))
            await asyncio.Event().wait()
    await channel.close(grace=None)
    return DONE


def _stream(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream(f"{_SERVICE}/EmbedStream")(timeout=_ANSWER_S)


def _stream_message(victim: Victim, number: int) -> bytes:
    images = [pb.StreamImage(id=number, image=picture) for picture in victim.some(4)]
    images.append(pb.StreamImage(id=number, image=b"no picture"))
    return pb.EmbedStreamRequest(images=images).SerializeToString()


async def _garbage(victim: Victim) -> str:
    """Speaks anything but gRPC to the port, or nothing at all."""
    host, _, port = victim.address.rpartition(":")
    openings = [
        victim.chance.randbytes(2_000),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + victim.chance.randbytes(500),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + victim.chance.randbytes(500),
        b"",
    ]
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(victim.chance.choice(openings))
            with suppress(TimeoutError):
                async with asyncio.timeout(victim.chance.uniform(0.1, 2)):
                    await reader.read()
            writer.close()
            await writer.wait_closed()
    return DONE


async def _flood(victim: Victim) -> str:
    """Many more valid requests at once than the server admits."""
    codes = await asyncio.gather(*(victim.embed(picture) for picture in victim.some(400)))
    unexpected = set(codes) - {OK, FULL}
    return ", ".join(sorted(unexpected)) or DONE


def _broken_files() -> dict[str, bytes]:
    """Files that no server should embed."""
    small = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    return {
        "empty file": b"",
        "text": b"This is not a picture. " * 500,
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj <</Type /Catalog>> endobj\n" * 20,
        "MP4": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + bytes(4_000),
        "ZIP": b"PK\x03\x04" + bytes(2_000),
        "TIFF": _encoded(small, "TIFF"),
        "JPEG header only": b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0",
        "truncated PNG": _encoded(small, "PNG")[:60],
        # A few hundred bytes that ask for gigabytes.
        "pixel bomb, PNG": _png_that_claims(60_000, 60_000),
        "pixel bomb, GIF": _gif_that_claims(65_535, 65_535),
        "pixel bomb, WebP": _webp_that_claims(16_383, 16_383),
        "long and thin bomb": _png_that_claims(2_000_000, 10),
    }


def _odd_files() -> dict[str, bytes]:
    """Files that look suspicious and are pictures nevertheless."""
    chance = np.random.default_rng(1)
    noise = Image.fromarray(chance.integers(0, 256, (300, 400, 3), np.uint8))
    frames = [noise.rotate(90 * turn) for turn in range(4)]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    deep = Image.fromarray(chance.integers(0, 65_536, (200, 300)).astype(np.uint16))
    notes = PngImagePlugin.PngInfo()
    for number in range(200):
        notes.add_text(f"note {number}", "x" * 1_000, zip=True)
    flat = Image.new("RGB", (6_000, 6_000), (40, 90, 160))
    return {
        "animated GIF": _encoded(
            frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50, loop=0
        ),
        "CMYK JPEG": _encoded(noise.convert("CMYK"), "JPEG"),
        "grey JPEG": _encoded(noise.convert("L"), "JPEG"),
        "16-bit PNG": _encoded(deep, "PNG"),
        "transparent palette PNG": _encoded(noise.quantize(16), "PNG", transparency=3),
        "RGBA WebP": _encoded(noise.convert("RGBA"), "WEBP"),
        "one pixel": _encoded(noise.resize((1, 1)), "PNG"),
        "one row": _encoded(noise.resize((4_000, 1)), "PNG"),
        "rotated by EXIF": _encoded(noise, "JPEG", exif=rotated),
        "PNG with 200 notes": _encoded(noise, "PNG", pnginfo=notes),
        "36 megapixels in a small file": _encoded(flat, "PNG", compress_level=9),
    }


def _encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def _gif_that_claims(width: int, height: int) -> bytes:
    """A whole file of one frame with two colours and a single pixel."""
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0)
    return b"GIF89a" + screen + frame + b"\x02\x02\x44\x01\0" + b"\x3b"


def _webp_that_claims(width: int, height: int) -> bytes:
    """A lossless WebP header without the pixels."""
    bits = (width - 1) | (height - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes(16)
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
