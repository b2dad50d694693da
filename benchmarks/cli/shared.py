"""What the commands of `mapseek bench` share. Each imports what is heavy only when it runs."""
# ruff: noqa: PLC0415 - imports wait for their command, see above

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from benchmarks.report import Progress, Report

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure the server, the model and the decoding on this machine, or soak the server.",
)

_PIPE_WIDTH = 132

Model = Annotated[
    Path | None,
    typer.Option("--model", "-m", metavar="DIR", help="Model folder; the bundled model if unset."),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write all figures to this JSON file, too."),
]
Provider = Annotated[
    Literal["auto", "cpu", "cuda", "tensorrt"], typer.Option(help="Where the model runs.")
]
Rounds = Annotated[int, typer.Option(min=1, help="How often everything is measured.")]


def drawn(what: str) -> Any:
    """The option --plot of a command that draws this."""
    return typer.Option("--plot", metavar="FILE", help=f"Draw {what}: a .png or .svg file.")


def folder_of(model: Path | None) -> Path:
    """The model folder that is meant."""
    if model is not None:
        return model
    from inference.settings import BUNDLED_MODEL

    return BUNDLED_MODEL


def check_outputs(json: Path | None, plot: Path | None) -> None:
    """Refuses files that cannot be written, and plots in no known format."""
    check_writable(json, plot)
    if plot is not None:
        from benchmarks.plot import check_format

        check_format(plot)


def check_writable(*files: Path | None) -> None:
    """Refuses what cannot be written before minutes of measuring, not after them."""
    from inference.errors import StartupError

    for file in filter(None, files):
        try:
            if file.is_dir():
                raise IsADirectoryError("it is a folder")
            file.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=file.parent).close()
        except OSError as error:
            raise StartupError(f"{file} cannot be written: {error}") from None


@contextmanager
def progress_line() -> Iterator["Progress"]:
    """A progress line on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns: tuple[Any, ...] = (
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def publish(report: "Report", json: Path | None) -> None:
    """Prints a report, and writes it to a file if there is to be one."""
    from rich.console import Console

    console = Console()
    # Into a file or a pipe, tables keep the width that they need.
    report.show(console if console.is_terminal else Console(width=_PIPE_WIDTH))
    if json is not None:
        report.write(json)


def demand(report: "Report") -> None:
    """Exits with 1 where a target is missed; what is known is published before."""
    if report.missed:
        raise typer.Exit(1)
