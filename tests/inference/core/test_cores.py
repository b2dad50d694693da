"""How many cores a control group leaves to the process."""

import math
import os
from pathlib import Path

import pytest

from inference.cores import usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """What a process of these control groups sees of `/proc` and `/sys`."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(("quota", "cores"), [(0.2, 1), (1, 1), (1.5, 2), (4, 4), (64, 8)])
def test_a_quota_bounds_the_cores(tmp_path: Path, quota: float, cores: int) -> None:
    limit = math.floor(quota * 100_000)
    container = {"sys/fs/cgroup/cpu.max": f"{limit} 100000\n"}
    assert usable_cores(machine(tmp_path, "0::/\n", container)) == cores


@pytest.mark.parametrize("group", ["", "/mapseek.slice", "/mapseek.slice/server.service"])
def test_a_quota_holds_for_all_groups_inside(tmp_path: Path, group: str) -> None:
    files = {
        "sys/fs/cgroup/mapseek.slice/server.service/cpu.max": "max 100000\n",
        f"sys/fs/cgroup{group}/cpu.max": "300000 100000\n",
    }
    assert usable_cores(machine(tmp_path, "0::/mapseek.slice/server.service\n", files)) == 3


@pytest.mark.parametrize("folder", ["cpu", "cpu/docker/1f", "cpu/docker"])
def test_a_quota_of_the_first_version_counts(tmp_path: Path, folder: str) -> None:
    files = {
        f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": "250000\n",
        f"sys/fs/cgroup/{folder}/cpu.cfs_period_us": "100000\n",
    }
    groups = "9:memory:/docker/1f\n4:cpu,cpuacct:/docker/1f\n0::/\n"
    assert usable_cores(machine(tmp_path, groups, files)) == 3


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("", {}),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "\n"}),
        ("0::/../../outside\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}),
        (
            "3:cpu:/\n",
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
        ),
    ],
)
def test_no_quota_leaves_all_cores(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    assert usable_cores(machine(tmp_path, groups, files)) == 8


def test_elsewhere_than_on_linux_there_is_no_quota(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8
