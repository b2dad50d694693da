"""Picture files on disk: telling them from others, and reading them within limits."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

# Only the decoders of the formats below: other plug-ins are not even loaded.
from PIL import (
    AvifImagePlugin,  # noqa: F401 - imported to be registered
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

# What the server reads.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")
FORMATS_IN_WORDS = "PNG, JPEG, WebP, GIF or AVIF"

_HEAD_BYTES = 16
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jfif", ".gif", ".webp", ".avif", ".bmp", ".tif", ".tiff"}
    | {".heic", ".heif", ".jxl"}
)


class UnreadableError(Exception):
    """A file cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A picture file that was read.

    Attributes:
        data: Its bytes.
        content_hash: Their hex SHA-256.
        width: In pixels as its header says; 0 where that is not to be had.
        height: In pixels as its header says; 0 where that is not to be had.
    """

    data: bytes
    content_hash: str
    width: int
    height: int


def tree(
    root: Path,
    *,
    hidden: bool,
    enters: Callable[[Path], bool] = lambda _: True,
    unreadable: Callable[[OSError], object] = lambda _: None,
) -> Iterator[Path]:
    """What is no folder in a folder and in those below it, each folder by names, files first.

    Links to folders are not followed. Depth is no matter, as it is to Python's own walks: they
    call themselves, and end at some thousand folders.

    Args:
        root: The folder.
        hidden: Whether hidden files and folders count.
        enters: Whether a folder below counts.
        unreadable: Told of folders that cannot be read.
    """
    waiting = [root]
    while waiting:
        for folder, folders, names in islice(os.walk(waiting.pop(), onerror=unreadable), 1):
            inner = [Path(folder, name) for name in sorted(folders, reverse=True)]
            # A path that is too long to be looked at counts as a folder, and so is told of.
            waiting += [
                one
                for one in inner
                if (hidden or one.name[0] != ".")
                and not os.path.islink(one)  # noqa: PTH114
                and enters(one)
            ]
            for name in sorted(names):
                if hidden or name[0] != ".":
                    yield Path(folder, name)


def claims_picture(name: str) -> bool:
    """Whether a file's name promises a picture."""
    return os.path.splitext(name)[1].lower() in _SUFFIXES  # noqa: PTH122 - not always a path


def is_picture(path: Path) -> bool:
    """Whether a file begins like a picture that the server reads, whatever its name.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return (
        head.startswith(_SIGNATURES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[4:12] in {b"ftypavif", b"ftypavis"}
    )


def read(path: Path, *, max_bytes: int) -> Contents:
    """Reads a picture file; its size is checked before and while it is read.

    Only the header is looked at here. Whether the picture is sound is the server's business, which
    is built to meet hostile files.

    Args:
        path: The file.
        max_bytes: The longest file that is read.

    Raises:
        UnreadableError: It is gone, too long, empty or no plain file.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableError("is no plain file, but a device or a pipe")
            # It may be growing while it is read.
            data = file.read(max_bytes + 1) if status.st_size <= max_bytes else b""
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror or error}") from error
    if status.st_size > max_bytes or len(data) > max_bytes:
        raise UnreadableError(
            f"has {status.st_size:,} bytes, and the server takes at most {max_bytes:,}"
        )
    if not data:
        raise UnreadableError("is empty")
    width, height = dimensions(data)
    return Contents(
        data=data, content_hash=hashlib.sha256(data).hexdigest(), width=width, height=height
    )


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file; a pipe, too, that nobody writes to."""
    return os.open(path, flags | os.O_NONBLOCK)


def dimensions(data: bytes) -> tuple[int, int]:
    """Width and height of a picture as its header says; zeros where that is not to be had.

    Nothing is decoded. Limits are for the caller to set: `Image.open` would print a warning of its
    own about a large picture.
    """
    try:
        for name in FORMATS:
            factory, accepts = Image.OPEN[name]
            if accepts is not None and accepts(data[:_HEAD_BYTES]) is True:
                return factory(BytesIO(data), "").size
    except Exception:  # noqa: BLE001 - Pillow raises anything over a hostile header
        return 0, 0
    return 0, 0
