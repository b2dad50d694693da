"""How many cores this process may use: those it may run on, and no more than its quota buys."""

import math
import os
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy; at least one.

    A container may run on all cores of its machine and yet be stopped for the rest of each tenth
    of a second once it has used its share (`docker run --cpus`, `limits.cpu` of Kubernetes,
    `CPUQuota` of systemd). More threads than that only make it wait at more places at once. Half
    a core more is a thread more: under a quota of 1.5 of two cores, two threads embed 1.4 times as
    much as one.

    Args:
        root: Where `/proc` and `/sys` lie.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return math.ceil(min(cores, _quota(root)))


def _quota(root: Path) -> float:
    """Cores' worth of time that the process may use; infinite where no control group limits it.

    The files are those of the kernel's "Control Group v2" and "CFS Bandwidth Control".
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    quota = math.inf
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        # Whatever holds for a group holds for those inside. A container may see its own group at
        # the mount, under a path that tells where the machine has it.
        folder = mount / path.lstrip("/")
        for one in (folder, *folder.parents):
            quota = min(quota, _quota_of(one))
            if one == mount:
                break
    return quota


def _quota_of(group: Path) -> float:
    """The same, of one control group of either version."""
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text().split()
        else:
            limit = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return int(limit) / int(period) if limit != "max" and int(limit) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # no such file: the group has no limit
        return math.inf
