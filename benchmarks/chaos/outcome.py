"""What a chaos run looks for, and what came of each fault."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import Table, Target

OK, INTERNAL, UNAVAILABLE = "OK", "INTERNAL", "UNAVAILABLE"
FULL, WRONG = "RESOURCE_EXHAUSTED", "WRONG ANSWER"
# Of a stream that ended well without saying a word about an image, or spoke of one twice.
LOST, TWICE = "NO ANSWER", "TWO ANSWERS"
# Broken off by the end of the process. gRPC has several words for it.
GONE = frozenset({UNAVAILABLE, "CANCELLED"})

# The ways in which images are sent.
UNARY, STREAM, OPEN_STREAM = "Embed", "EmbedStream", "ModelStreamInfer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """What to break, and how patiently to look.

    Attributes:
        model: The model folder to serve.
        seconds: How long each fault lasts, beside the time that it takes by itself.
        within_s: How late health may tell the truth.
        only: Scenarios to run, by their names; all of them if empty.
        seed: Decides everything random.
    """

    model: Path
    seconds: float = 3.0
    within_s: float = 1.0
    only: Sequence[str] = ()
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one scenario.

    Attributes:
        statuses: How known pictures were answered, by the way in which they were sent: a status,
            or `WRONG`, `LOST`, `TWICE`.
        poisoned: How calls for poisoned pictures ended.
        late_s: How late health told the truth, at worst.
        faults: What was not as it should be.
        exit_status: Of the process, where the scenario ends it.
    """

    statuses: dict[str, Counter[str]] = field(
        default_factory=lambda: {way: Counter() for way in (UNARY, STREAM, OPEN_STREAM)}
    )
    poisoned: Counter[str] = field(default_factory=Counter)
    late_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    exit_status: int | None = None


def judge(outcomes: Mapping[str, Outcome]) -> list[Target]:
    """Holds what was seen against what is promised, scenario by scenario."""
    return [
        Target(
            name=name,
            met=not outcome.faults,
            found="; ".join(outcome.faults) or "as it should be",
        )
        for name, outcome in outcomes.items()
    ]


def table(outcomes: Mapping[str, Outcome]) -> Table:
    """A row for each scenario."""

    def counts(statuses: Counter[str]) -> str:
        return ", ".join(f"{status} {count}" for status, count in statuses.most_common())

    return Table(
        title="Chaos",
        columns=("what goes wrong", *Outcome().statuses, "poisoned", "health late, s", "exit"),
        rows=[
            (
                name,
                *map(counts, one.statuses.values()),
                counts(one.poisoned),
                one.late_s,
                one.exit_status,
            )
            for name, one in outcomes.items()
        ],
        notes=(
            "how the images of each way of asking were answered",
            "The wall clock of the server's Python jumps, not that of the machine.",
        ),
    )
