"""How the process lies in memory: what goes back to the system, and what lies in large pages.

Large pieces that are given back go to the system at once. Left alone, glibc keeps pieces of up to
32 MB for later once such a piece was freed, for each thread apart: after some pictures of many
megapixels the process is larger for good. `mallopt(3)`.

Smaller pieces are kept in two places for all threads in place of one for each: 30 MB less after
mixed load, at the same throughput.
"""

import ctypes
import gc
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
# Above this, what is taken while the model is loaded lies apart from the heap. protobuf gives the
# heap's free pages back at every ten thousandth piece that it frees (`malloc_trim(3)`), and that
# breaks up the large pages that they are part of.
_APART_BYTES = 128 * 1024
# The pixels of a screenshot fit below, and a message with 32 images of 224 x 224 pixels: these come
# and go in half the time for it (`mapseek bench overhead`).
_LARGE_BYTES = 6 * 1024 * 1024
_KEPT_BYTES = 32 * 1024 * 1024
_ARENAS = 2

_MADV_COLLAPSE = 25
_LARGE_PAGE: Final = 2 * 1024 * 1024
_SMAPS: Final = Path("/proc/self/smaps")
# Of an entry there: where it begins and ends, that it may be written to and is no file's, and how
# much of it there is.
_PIECE: Final = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *(?:\[heap\])?\n.*?^Rss: +(\d+) kB",
    re.MULTILINE | re.DOTALL,
)


def give_back_large_pieces() -> None:
    """Tells the C library so; does nothing where it is not glibc. Call it before threads start."""
    _glibc("mallopt", _M_MMAP_THRESHOLD, _APART_BYTES)
    _glibc("mallopt", _M_TRIM_THRESHOLD, _KEPT_BYTES)
    _glibc("mallopt", _M_ARENA_MAX, _ARENAS)


def keep_middling_pieces() -> None:
    """Has all but large pieces kept for later. Call it when what stays for good is in memory."""
    _glibc("mallopt", _M_MMAP_THRESHOLD, _LARGE_BYTES)


def pass_over_what_stays() -> None:
    """Has Python's collector pass over all that is there now; undone by `gc.unfreeze`.

    The process stands still while it looks at everything, and what was loaded for good is nearly
    all of that.
    """
    gc.collect()
    gc.freeze()


def keep_all_pieces() -> None:
    """Has nothing given back, however large: for what takes the same pieces at every step."""
    _glibc("mallopt", _M_MMAP_MAX, 0)
    _glibc("mallopt", _M_TRIM_THRESHOLD, -1)
    _glibc("mallopt", _M_ARENA_MAX, _ARENAS)


def give_back_free_pieces() -> None:
    """Gives back what is kept for later; blocks for some 10 ms. `malloc_trim(3)`."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library, such as musl
            getattr(ctypes.CDLL(None), function)(*arguments)


def use_large_pages() -> None:
    """Moves what fills large pieces of memory into large pages; does nothing before Linux 6.1.

    A run of a model on a CPU reads all its weights, and has to find each page of them in a table.
    In pages of 2 MB in place of 4 KB the bundled model takes 0.92 of the time, and 0.955 in batches
    of 16. Takes 0.3 s where there is much to move. `madvise(2)`.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for start, end in _full_pieces(_SMAPS.read_text()):
            madvise(start, end - start, _MADV_COLLAPSE)


def _full_pieces(smaps: str) -> Iterator[tuple[int, int]]:
    """Whole large pages of pieces of memory that are in use, and not the nearly empty stacks."""
    for piece in _PIECE.finditer(smaps):
        start, end = (int(place, 16) for place in piece.groups()[:2])
        if 1024 * int(piece[3]) > (end - start) / 2:
            start, end = -(-start // _LARGE_PAGE) * _LARGE_PAGE, end // _LARGE_PAGE * _LARGE_PAGE
            if start < end:
                yield start, end
