"""What a fuzz run saw, and what is promised of it."""

import resource
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.memory import MB
from benchmarks.report import Table, Target

MOST_CPU_S = 2.0
_MOST_GROWTH_MB = 256.0
_MOST_FINDINGS = 100


@dataclass(slots=True, kw_only=True)
class Seen:
    """What came of it.

    Attributes:
        endings: How spoilt things ended, by what they were.
        findings: What broke a promise, by name: what it was, and why.
        slowest_s: Most processor time that a picture took.
        valid: Valid calls that were answered right, and those that were not.
        growth_mb: By how much this process and the server grew at most.
    """

    endings: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    findings: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    slowest_s: float = 0.0
    valid: Counter[bool] = field(default_factory=Counter)
    growth_mb: float = 0.0

    @property
    def spoilt(self) -> int:
        """How many things were spoilt."""
        return sum(map(Counter.total, self.endings.values()))

    def found(self, what: str, data: bytes, why: str) -> None:
        """Keeps something that broke a promise; a hundred are enough to begin with."""
        if len(self.findings) < _MOST_FINDINGS:
            self.findings[f"{what}-{len(self.findings)}"] = (data, why)

    def keep(self, folder: Path) -> None:
        """Writes the findings into a folder, which is made where there are any."""
        if self.findings:
            folder.mkdir(parents=True, exist_ok=True)
        for name, (data, _) in self.findings.items():
            (folder / f"{name}.bin").write_bytes(data)

    def table(self) -> Table:
        """The endings, and the first findings."""
        return Table(
            title="Spoilt",
            columns=("what", "times", "ended"),
            rows=[
                (
                    what,
                    ends.total(),
                    ", ".join(f"{end} {count}" for end, count in ends.most_common()),
                )
                for what, ends in sorted(self.endings.items())
            ],
            notes=[f"{name}.bin: {why}" for name, (_, why) in list(self.findings.items())[:20]],
        )


def judge(seen: Seen, *, exit_status: int | None) -> list[Target]:
    """Holds what was seen against what is promised."""
    reasons = "; ".join(sorted({why for _, why in seen.findings.values()})[:3])
    return [
        Target(
            name="nothing but documented errors comes out",
            met=not seen.findings,
            found=f"{len(seen.findings)} findings: {reasons}" if seen.findings else "all of them",
        ),
        Target(
            name="valid calls in between are answered right",
            met=seen.valid[True] > 0 and not seen.valid[False],
            found=f"{seen.valid[True]} right, {seen.valid[False]} not",
        ),
        Target(
            name="the server lives, and stops cleanly",
            met=exit_status == 0,
            found=f"exit status {exit_status}",
        ),
        Target.at_most("processor time of a picture, s", seen.slowest_s, MOST_CPU_S),
        Target.at_most("growth of memory, MB", seen.growth_mb, _MOST_GROWTH_MB),
    ]


def peak_mb() -> float:
    """The most resident memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MB if sys.platform == "darwin" else 1024)
