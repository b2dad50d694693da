"""Reads a picture file's container, so that Pillow is shown nothing but what makes the pixels.

Pillow's parsers are written in Python and read every chunk, segment and comment of a file. A
file of a few megabytes that is made of nothing else keeps such a parser busy for a minute, and
some of the loops are quadratic. So the parts that no pixel depends on are left out here, and what
remains is counted. Pixels are never touched.
"""

from dataclasses import dataclass

from inference.errors import InvalidInputError

# The formats that Discord shows as pictures. BMP and TIFF are left out on purpose: chats do not
# show them, and their decoders are the slowest and the least safe ones.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")

# Far above what encoders write, and few enough to be read in milliseconds.
_MAX_JPEG_SEGMENTS = 1_000
_MAX_JPEG_SCANS = 64  # a progressive JPEG has about ten, and every one costs a pass over all pixels
_MAX_PNG_CHUNKS = 20_000
_MAX_GIF_BLOCKS = 20_000

_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT"))
# JPEG markers: the byte that follows 0xFF.
_FILL = 0xFF
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset((0xC0, 0xC1))
_START_OF_SCAN = 0xDA
_EXIF_SEGMENT = 0xE1
# Of the application segments only JFIF's (0xE0) and Adobe's (0xEE) tell the colours.
_UNSEEN = frozenset((*range(0xE1, 0xEE), 0xEF, 0xFE))
_EXIF_HEADER = b"Exif\0\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A picture file, reduced to what makes its pixels.

    Attributes:
        format: Pillow's name of the format, one of `FORMATS`.
        data: A complete file of that format.
        exif: The EXIF block that was left out of `data`; empty where `data` still holds it.
    """

    format: str
    data: bytes
    exif: bytes = b""


def read_container(data: bytes) -> Container:
    """Recognises the format by its first bytes and leaves out what no pixel depends on.

    Raises:
        InvalidInputError: The format is not one of `FORMATS`, or the file is cut short, damaged
            or made to be slow.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _read_jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _read_png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _read_gif(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Container(format="WEBP", data=data)
    if data[4:8] == b"ftyp" and b"avi" in data[8 : int.from_bytes(data[:4])]:
        return Container(format="AVIF", data=data)
    raise InvalidInputError(
        "This is no image in a format that is accepted here: JPEG, PNG, WebP, GIF or AVIF."
    )


def orientation(exif: bytes) -> int:
    """Reads the orientation, 1 to 8, from an EXIF block; 1 (upright) where it names none."""
    tiff = exif.removeprefix(_EXIF_HEADER)
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(tiff[:4])
    if order is None:
        return 1

    def number(offset: int, length: int) -> int:
        return int.from_bytes(
            tiff[offset : offset + length], "little" if order == "little" else "big"
        )

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == 0x0112:  # noqa: PLR2004 - the orientation tag of the EXIF standard
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1  # noqa: PLR2004 - the standard's eight values
    return 1


def _read_jpeg(data: bytes) -> Container:
    kept = _Kept(data)
    exif = b""
    frame, components = 0, b""
    position = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            raise _cut_short("JPEG")
        marker = data[position + 1]
        if marker == _FILL:
            position += 1
            continue
        if marker in _WITHOUT_LENGTH:
            position += 2
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if end > len(data):
            raise _cut_short("JPEG")
        if marker == _START_OF_SCAN:  # the rest is coefficients
            one_scan = frame in _SEQUENTIAL and data[position + 4 : position + 5] == components
            stop = len(data) if one_scan else _end_of_scans(data, position)
            return Container(format="JPEG", data=kept.until(stop), exif=exif)
        if marker in _FRAME_HEADERS:
            frame, components = marker, data[position + 9 : position + 10]
        if marker == _EXIF_SEGMENT and not exif and data.startswith(_EXIF_HEADER, position + 4):
            exif = data[position + 4 : end]
        if marker in _UNSEEN:
            kept.leave_out(position, end)
        position = end
    raise InvalidInputError(
        f"The JPEG image has more than {_MAX_JPEG_SEGMENTS} header segments: save it anew."
    )


def _end_of_scans(data: bytes, start: int) -> int:
    # What follows the end marker is no part of the picture: previews, videos, depth maps.
    end = data.find(b"\xff\xd9", start)
    if end < 0:
        raise _cut_short("JPEG")
    if data.count(b"\xff\xda", start, end) > _MAX_JPEG_SCANS:
        raise InvalidInputError(
            f"The JPEG image has more than {_MAX_JPEG_SCANS} scans: save it anew."
        )
    return end + 2


def _read_png(data: bytes) -> Container:
    kept = _Kept(data)
    exif = b""
    position = 8
    for _ in range(_MAX_PNG_CHUNKS):
        name = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if end > len(data):
            raise _cut_short("PNG")
        if name == b"IEND":
            return Container(format="PNG", data=kept.until(end), exif=exif)
        if name == b"eXIf":
            exif = data[position + 8 : end - 4]
        if name not in _PNG_CHUNKS:
            kept.leave_out(position, end)
        position = end
    raise InvalidInputError(f"The PNG image has more than {_MAX_PNG_CHUNKS} chunks: save it anew.")


def _read_gif(data: bytes) -> Container:
    kept = _Kept(data)
    position = 13 + _gif_palette_bytes(data[10:11])
    start = -1  # of the extension that the position is in
    for _ in range(_MAX_GIF_BLOCKS):
        if start < 0:
            if data[position : position + 1] == b",":  # the first picture
                return Container(format="GIF", data=kept.until(len(data)))
            if data[position : position + 1] != b"!":
                raise _cut_short("GIF")
            start = position
            position += 2
        length = int.from_bytes(data[position : position + 1])
        position += 1 + length
        if length == 0:  # the end of the extension
            # Only the graphic control extension matters: it tells what is transparent.
            if data[start + 1 : start + 2] != b"\xf9":
                kept.leave_out(start, position)
            start = -1
    raise InvalidInputError(
        f"The GIF image has more than {_MAX_GIF_BLOCKS} blocks before its first picture: "
        "save it anew."
    )


def _gif_palette_bytes(flags: bytes) -> int:
    value = int.from_bytes(flags)
    return 3 << ((value & 7) + 1) if value & 0x80 else 0


class _Kept:
    """Parts of a file, joined with a single copy, or none where nothing was left out."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._view = memoryview(data)
        self._parts: list[memoryview] = []
        self._start = 0

    def leave_out(self, start: int, end: int) -> None:
        if start > self._start:
            self._parts.append(self._view[self._start : start])
        self._start = end

    def until(self, end: int) -> bytes:
        if self._start == 0 and end == len(self._data):
            return self._data
        return b"".join((*self._parts, self._view[self._start : end]))


def _cut_short(name: str) -> InvalidInputError:
    return InvalidInputError(f"The {name} image is damaged or cut short: send the whole file.")
