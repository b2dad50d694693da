"""What a figure was measured on; without it the figure means nothing."""

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from inference.cores import usable_cores

# What onnxruntime may be asked to run on.
Provider = Literal["auto", "cpu", "cuda", "tensorrt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where and with what a benchmark ran.

    Attributes:
        cpu: The processor's name.
        cores: Cores that this process may use.
        memory_gib: The machine's memory.
        load_1m: The load average when the benchmark began: how much else was going on.
        system: Kernel and architecture.
        versions: Of what the work is done by.
        commit: The checkout's commit, with "+changes" where files differ from it; "" outside git.
        time: When the benchmark began, in UTC.
    """

    cpu: str
    cores: int
    memory_gib: float
    load_1m: float
    system: str
    versions: dict[str, str]
    commit: str
    time: str


def this_machine() -> Machine:
    """Describes the machine and the software."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    packages = ("mapseek", "onnxruntime", "onnxruntime-gpu", "grpcio", "pillow", "numpy")
    found = {name: version for name in packages if (version := _version(name))}
    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory_gib=round(pages / 2**30, 1),
        load_1m=round(os.getloadavg()[0], 2),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions={"python": platform.python_version(), **found},
        commit=_commit(),
        time=datetime.now(tz=UTC).isoformat(timespec="seconds"),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        commit, status = (
            subprocess.run(  # noqa: S603  fixed arguments
                ["git", *command],  # noqa: S607  whichever git the operator uses
                cwd=here,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for command in (
                ("rev-parse", "--short=12", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no"),
            )
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}+changes" if status else commit
