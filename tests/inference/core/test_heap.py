import ctypes
import mmap
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from inference import heap

# Large pieces with small ones between them that stay: a heap cannot be cut behind those.
PROGRAM = """
import os, sys, threading
from pathlib import Path

from inference import heap

if sys.argv[1] == "told":
    heap.give_back_large_pieces()
    heap.keep_middling_pieces()


def resident_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def work():
    bytearray(b"x") * (16 * 2**20)  # the first one to be freed raises glibc's own bound
    kept, before = [], resident_mb()
    for _ in range(12):
        large = bytearray(b"x") * (8 * 2**20)
        kept.append((large, bytearray(b"x") * 100_000))
    small = [one for _, one in kept]
    kept.clear()
    del large
    print(resident_mb() - before)


thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def risen(how: str) -> float:
    """Megabytes that the process keeps after 96 of them came and went."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="what is told is told to glibc")
def test_large_pieces_go_back_to_the_system() -> None:
    assert risen("told") < 16


CROWD = """
import os
from pathlib import Path

from inference import heap


def resident_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


heap.give_back_large_pieces()
heap.keep_middling_pieces()
pieces = [bytearray(b"x") * 100_000 for _ in range(600)]
stays = pieces[-1]  # the heap cannot be cut before it
pieces.clear()
before = resident_mb()
heap.give_back_free_pieces()
print(before - resident_mb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what is told is told to glibc")
def test_what_is_free_between_what_stays_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", CROWD], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 40


STEPS = """
import resource

from inference import heap


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def step():
    bytearray(b"x") * (64 * 2**20)


heap.keep_all_pieces()
step()
before = faults()
for _ in range(4):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what is told is told to glibc")
def test_what_is_kept_is_not_asked_of_the_system_again() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # of the 65,536 pages that four steps fill


def version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])


@pytest.mark.skipif(sys.platform != "linux" or version() < (6, 1), reason="needs Linux 6.1")
def test_a_full_piece_of_memory_is_moved_into_large_pages() -> None:
    size = 16 * 2**20
    pattern = bytes(range(256)) * (size // 256)
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as piece:
        piece.write(pattern)
        heap.use_large_pages()
        assert piece[:] == pattern
        if not in_large_pages_kb(piece) and not can_collapse(piece):
            pytest.skip("the kernel gives no large pages")
        assert in_large_pages_kb(piece) >= size // 2 // 1024


def test_only_what_is_large_full_and_no_files_is_moved() -> None:
    entry = "{} {} 00000000 00:00 0 {}\nSize: 1 kB\nKernelPageSize: 4 kB\nRss: {} kB\nPss: 1 kB\n"
    smaps = "".join(
        [
            entry.format("00100000-00900000", "rw-p", "  [heap]", 8192),
            entry.format("01000000-01800000", "rw-p", "", 132),  # a thread's stack
            entry.format("02000000-02400000", "r--p", "", 4096),
            entry.format("03000000-03400000", "rw-p", "  /a/file", 4096),
            entry.format("04000000-04100000", "rw-p", "", 1024),
            entry.format("7f0000000000-7f0000200000", "rw-p", "", 2048),
        ]
    )
    assert list(heap._full_pieces(smaps)) == [
        (0x200000, 0x800000),
        (0x7F0000000000, 0x7F0000200000),
    ]


def can_collapse(piece: mmap.mmap) -> bool:
    at = -(-ctypes.addressof(ctypes.c_char.from_buffer(piece)) // 2**21) * 2**21
    refused: int = ctypes.CDLL(None).madvise(ctypes.c_void_p(at), ctypes.c_size_t(2**21), 25)
    return not refused


def in_large_pages_kb(piece: mmap.mmap) -> int:
    """Of the entry that a piece of memory lies in, which may hold more than that."""
    at = ctypes.addressof(ctypes.c_char.from_buffer(piece))
    for entry in re.split(
        r"^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE
    ):
        if (found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", entry)) and (
            int(found[1], 16) <= at < int(found[2], 16)
        ):
            return int(re.findall(r"AnonHugePages: +(\d+)", entry)[0])
    raise AssertionError
