"""Triton's load tool, unchanged, against a server process; where its libraries are installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from benchmarks.server_process import run_server
from inference.settings import BUNDLED_MODEL

PROGRAM = shutil.which("perf_analyzer", path=str(Path(sys.executable).parent)) or "perf_analyzer"
# It wants libcudart, though no GPU: here the package nvidia-cuda-runtime-cu12 puts it.
CUDART = Path(sysconfig.get_path("purelib")) / "nvidia" / "cuda_runtime" / "lib"
ENVIRONMENT = {
    **os.environ,
    "LD_LIBRARY_PATH": os.pathsep.join(
        filter(None, (str(CUDART), os.environ.get("LD_LIBRARY_PATH")))
    ),
}


def starts() -> bool:
    try:
        done = subprocess.run([PROGRAM, "-h"], env=ENVIRONMENT, capture_output=True, check=False)
    except OSError:
        return False
    return b"Usage" in done.stdout + done.stderr


@pytest.mark.skipif(not starts(), reason="perf_analyzer cannot start here, see docs/oip.md")
@pytest.mark.parametrize("how", [(), ("--streaming",)])
def test_perf_analyzer_measures_raw_pixels(how: tuple[str, ...]) -> None:
    with run_server(BUNDLED_MODEL) as server:
        done = subprocess.run(
            [
                *(PROGRAM, "-i", "grpc", "-u", server.address, "-m", "mapseek-small_pixels"),
                *("-b", "2", "--concurrency-range", "2", "-r", "3", "-s", "1000", *how),
                *("--measurement-mode", "count_windows", "--measurement-request-count", "20"),
            ],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Throughput:" in said
    assert "rror" not in said.replace("Errors:", ""), said
