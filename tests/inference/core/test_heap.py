import subprocess
import sys

import pytest

# Large pieces with small ones between them that stay: a heap cannot be cut behind those.
PROGRAM = """
import os, sys, threading
from pathlib import Path

from inference import heap

if sys.argv[1] == "told":
    heap.give_back_large_pieces()


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
