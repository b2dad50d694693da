"""How far a command is: a bar in a terminal, now and then a line elsewhere; on stderr."""

import time
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from bot.cli.console import console

_LINE_EVERY_S = 10.0


class Bar:
    """The bar. A context manager, which clears it away.

    Args:
        total: How many there are; None where that is not known yet.
    """

    def __init__(self, total: int | None = None) -> None:
        self._console = console(err=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._total = total
        self._task = self._bar.add_task("", total=total, note="")
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Clears the bar away; may be called twice."""
        self._bar.stop()

    def show(self, step: str, done: int, note: str = "", *, total: int | None = None) -> None:
        """Takes the newest state; a total is kept from the call that brings it."""
        self._total = self._total if total is None else total
        self._bar.update(self._task, description=step, completed=done, total=self._total, note=note)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            of = "" if self._total is None else f" of {self._total}"
            self._console.print(", ".join(filter(None, (f"{step}: {done}{of}", note))))
