"""A benchmark's result: a table for people, JSON for machines, a plot where it helps."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import Machine

if TYPE_CHECKING:
    from rich.console import Console

# Version of the JSON's shape.
FORMAT = 1

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
class Report:
    """Everything that a benchmark found.

    Attributes:
        command: What was run, as one would type it.
        machine: On what.
        model_id: With which model.
        settings: With which parameters.
        tables: The figures for people.
        data: The same and more for machines: anything that `json` or a dataclass can hold.
        complete: False where it was interrupted.
    """

    command: str
    machine: Machine
    model_id: str
    settings: Mapping[str, Any]
    tables: Sequence[Table]
    data: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True

    def to_json(self) -> str:
        """The report as JSON; NaN, which JSON does not know, becomes null."""
        document = {
            "format": FORMAT,
            "command": self.command,
            "complete": self.complete,
            "machine": self.machine,
            "model_id": self.model_id,
            "settings": self.settings,
            "data": self.data,
        }
        return json.dumps(_plain(document), indent=2, allow_nan=False) + "\n"

    def show(self, console: "Console") -> None:
        """Prints the tables and what they were measured on."""
        from rich.markup import escape  # noqa: PLC0415  imported when there is something to show
        from rich.table import Table as RichTable  # noqa: PLC0415

        for table in self.tables:
            shown = RichTable(title=table.title, title_justify="left", title_style="bold")
            for index, column in enumerate(table.columns):
                shown.add_column(column, justify="left" if index == 0 else "right")
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
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")


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
