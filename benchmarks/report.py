"""A benchmark's result: a table for people, JSON for machines, a plot where it helps."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import Machine

if TYPE_CHECKING:
    from rich.console import Console

# Version of the JSON's shape.
FORMAT = 1

# Told what is going on, and which share of the work is done.
Progress = Callable[[str, float], None]

Cell = str | int | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of figures.

    Attributes:
        title: What the rows are about.
        columns: Their heads, with units.
        rows: One cell for each column; None and NaN are shown as a dash.
        notes: Sentences that belong under the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a benchmark has to show, and whether it did.

    Attributes:
        name: What is wanted, with its bound.
        met: Whether it was so; None where the run was too short to tell.
        found: What was seen.
        ratio: What was seen over the bound, where both are numbers.
    """

    name: str
    met: bool | None
    found: str
    ratio: float | None = None

    @classmethod
    def at_least(cls, name: str, value: float, bound: float) -> "Target":
        """A target that is met from the bound upwards."""
        return cls._number(name, value, bound, met=value >= bound)

    @classmethod
    def at_most(cls, name: str, value: float, bound: float) -> "Target":
        """A target that is met up to the bound."""
        return cls._number(name, value, bound, met=value <= bound)

    @classmethod
    def _number(cls, name: str, value: float, bound: float, *, met: bool) -> "Target":
        if math.isnan(value):
            return cls(name=name, met=None, found="not measured")
        return cls(name=name, met=met, found=f"{value:.4g}", ratio=value / bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that a benchmark found.

    Attributes:
        command: What was run, as one would type it.
        machine: On what.
        model_id: With which model.
        settings: With which parameters.
        tables: The figures for people.
        targets: What the figures are held against.
        data: The same and more for machines: anything that `json` or a dataclass can hold.
        complete: False where it was interrupted.
    """

    command: str
    machine: Machine
    model_id: str
    settings: Mapping[str, Any]
    tables: Sequence[Table]
    targets: Sequence[Target] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True

    @property
    def missed(self) -> bool:
        """Whether any target was missed."""
        return any(target.met is False for target in self.targets)

    @property
    def subject(self) -> str:
        """What was measured on what, as the title of a plot."""
        return f"{self.model_id} on {self.machine.cpu}"

    def to_json(self) -> str:
        """The report as JSON; NaN, which JSON does not know, becomes null."""
        document = {
            "format": FORMAT,
            "command": self.command,
            "complete": self.complete,
            "machine": self.machine,
            "model_id": self.model_id,
            "settings": self.settings,
            "targets": self.targets,
            "data": self.data,
        }
        return json.dumps(_plain(document), indent=2, allow_nan=False) + "\n"

    def show(self, console: "Console") -> None:
        """Prints the tables and what they were measured on."""
        from rich.markup import escape  # noqa: PLC0415  imported when there is something to show
        from rich.table import Table as RichTable  # noqa: PLC0415

        for table in (*self.tables, *self._verdicts()):
            shown = RichTable(title=table.title, title_justify="left", title_style="bold")
            for index, column in enumerate(table.columns):
                worded = index == 0 or any(isinstance(row[index], str) for row in table.rows)
                shown.add_column(column, justify="left" if worded else "right")
            for row in table.rows:
                shown.add_row(*(escape(_text(cell)) for cell in row))
            console.print(shown)
            for note in table.notes:
                console.print(f"  {escape(note)}", highlight=False)
        machine = self.machine
        versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        console.print(
            f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, "
            f"load {machine.load_1m:g}; {versions}; model {self.model_id}"
            + (f"; commit {machine.commit}" if machine.commit else ""),
            style="dim",
            highlight=False,
            markup=False,
        )
        if not self.complete:
            console.print("Interrupted: these are the figures so far.", style="bold")

    def write(self, path: Path) -> None:
        """Writes the JSON file."""
        path.write_text(self.to_json(), encoding="utf-8")

    def _verdicts(self) -> list[Table]:
        if not self.targets:
            return []
        words = {True: "met", False: "MISSED", None: "cannot tell"}
        rows = [
            (target.name, words[target.met], target.ratio, target.found) for target in self.targets
        ]
        return [Table(title="Targets", columns=("", "", "x target", "seen"), rows=rows)]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # `asdict` would copy what is inside; this walks it once.
        pairs = ((part.name, getattr(value, part.name)) for part in dataclasses.fields(value))
        return {name: _plain(inner) for name, inner in pairs}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        if not math.isfinite(cell):
            return "-"
        # Three digits tell two runs apart; more would be noise.
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"  # noqa: PLR2004  see above
    return str(cell)
