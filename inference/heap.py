"""What the C library does with memory that is given back: large pieces go to the system at once.

Left alone, glibc keeps pieces of up to 32 MB for later once such a piece was freed, for each thread
apart: after some pictures of many megapixels the process is larger for good. `mallopt(3)`.

Smaller pieces are kept in two places for all threads in place of one for each: 30 MB less after
mixed load, at the same throughput.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# The pixels of a screenshot fit below, and a message with 32 images of 224 x 224 pixels: these come
# and go in half the time for it (`mapseek bench overhead`).
_LARGE_BYTES = 6 * 1024 * 1024
_KEPT_BYTES = 32 * 1024 * 1024
_ARENAS = 2


def give_back_large_pieces() -> None:
    """Tells the C library so; does nothing where it is not glibc. Call it before threads start."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_ARENA_MAX, _ARENAS)
