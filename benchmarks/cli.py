"""`mapseek bench`: measure it yourself. Each command imports what is heavy only when it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from benchmarks.report import Report

app = typer.Typer(
    no_args_is_help=True,
    help="Measure the server, the model and the decoding on this machine, or soak the server.",
)

_PIPE_WIDTH = 132

Model = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="Model folder; the bundled model where none is named."),
]
Json = Annotated[
    Path | None, typer.Option("--json", help="Write all figures to this JSON file, too.")
]
Provider = Annotated[str, typer.Option(help="onnxruntime provider: auto, cpu, cuda or tensorrt.")]


@app.command()
def serve(
    *,
    model: Model = None,
    server: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a server that runs already, on the same --model."),
    ] = None,
    token: Annotated[
        str, typer.Option(envvar="MAPSEEK_TOKEN", help="Bearer token of that server.")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 10,
    seconds: Annotated[
        float, typer.Option(min=0.05, help="Length of each measurement of a round.")
    ] = 1.5,
    callers: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Callers of a closed loop; repeat for several. [1, 8, 32]"),
    ] = None,
    load: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01,
            help="Rate of an open loop as a share of the capacity; repeat. [0.25, 0.5, 0.8, 2]",
        ),
    ] = None,
    provider: Provider = "auto",
    json: Json = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw throughput and latency into this file (.png or .svg)."),
    ] = None,
) -> None:
    """Throughput and latency of the server, and the limit: the same work with no server.

    Starts a server of its own on loopback. All measurements are interleaved in rounds, so that
    other work on the machine disturbs them alike. Ctrl-C ends it with the figures so far.
    """
    with _sentences():
        from benchmarks.serve import ServeOptions, bench_serve  # noqa: PLC0415  see the top

        options = ServeOptions(
            model=_folder(model),
            server=server,
            token=token,
            rounds=rounds,
            seconds=seconds,
            callers=callers or (1, 8, 32),
            loads=load or (0.25, 0.5, 0.8, 2.0),
            provider=provider,
        )
        with _progress() as progress:
            report, measured = bench_serve(options, progress)
        _publish(report, json)
        if plot is not None:
            from benchmarks.plot import plot_serve  # noqa: PLC0415  see the top

            plot_serve(measured, f"{report.model_id} on {report.machine.cpu}", plot)


@app.command()
def engine(
    *,
    model: Annotated[
        list[Path] | None,
        typer.Option("--model", "-m", help="Model folder; repeat to compare precisions."),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Batch size; repeat for several. [1, 2, 4, 8, 16, 32]"),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Threads of a run; repeat. [one, half and all cores]"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 3,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Length of each measurement of a round.")
    ] = 0.7,
    provider: Provider = "auto",
    json: Json = None,
) -> None:
    """Latency and throughput of the model alone, over batch sizes, threads and precisions."""
    with _sentences():
        from benchmarks.engine import EngineBenchOptions, bench_engine  # noqa: PLC0415  see the top

        options = EngineBenchOptions(
            models=model or [_folder(None)],
            batches=batch or (1, 2, 4, 8, 16, 32),
            threads=threads or (),
            rounds=rounds,
            seconds=seconds,
            provider=provider,
        )
        with _progress() as progress:
            report = bench_engine(options, progress)
        _publish(report, json)


@app.command()
def preprocess(
    *,
    model: Model = None,
    pictures: Annotated[int, typer.Option(min=1, help="Drawn pictures of each kind.")] = 12,
    folder: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of real pictures to add."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each one is decoded.")] = 5,
    json: Json = None,
) -> None:
    """Time and fidelity of the decoding that serves, against the plain reference.

    Fails where the embedding of any picture moves further than a cosine of 0.99.
    """
    with _sentences():
        from benchmarks.preprocess import (  # noqa: PLC0415  see the top
            PreprocessOptions,
            bench_preprocess,
        )

        options = PreprocessOptions(
            model=_folder(model), pictures=pictures, folder=folder, rounds=rounds
        )
        with _progress() as progress:
            report, kept = bench_preprocess(options, progress)
        _publish(report, json)
    if not kept:
        raise typer.Exit(1)


@app.command()
def soak(
    *,
    model: Model = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long it goes on.")] = 10.0,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="Send this many valid requests instead, and nothing hostile."),
    ] = None,
    attackers: Annotated[int, typer.Option(min=1, help="Hostile clients at a time.")] = 4,
    callers: Annotated[int, typer.Option(min=1, help="Well-behaved callers at a time.")] = 2,
    tolerance_mib: Annotated[
        float, typer.Option(min=0, help="Memory growth over the second half that is let pass.")
    ] = 16.0,
    seed: Annotated[int, typer.Option(help="Which attacks come when.")] = 0,
    json: Json = None,
) -> None:
    """Hostile traffic with valid traffic beside it; fails where a promise is broken.

    The server is one of its own, on loopback: nothing else is attacked. Ctrl-C ends it with the
    report so far.
    """
    with _sentences():
        from benchmarks.soak import SoakOptions, bench_soak  # noqa: PLC0415  see the top

        options = SoakOptions(
            model=_folder(model),
            minutes=minutes,
            requests=requests,
            attackers=attackers,
            callers=callers,
            tolerance_mib=tolerance_mib,
            seed=seed,
        )
        with _progress() as progress:
            report, kept = bench_soak(options, progress)
        _publish(report, json)
    if not kept:
        raise typer.Exit(1)


def _folder(model: Path | None) -> Path:
    if model is not None:
        return model
    from inference.settings import BUNDLED_MODEL  # noqa: PLC0415  see the top

    return BUNDLED_MODEL


@contextmanager
def _sentences() -> Iterator[None]:
    """What the operator can put right is a sentence on stderr, not a traceback."""
    from inference.errors import StartupError  # noqa: PLC0415  see the top

    try:
        yield
    except StartupError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(78) from None


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A progress line on stderr."""
    from rich.console import Console  # noqa: PLC0415  see the top
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns: tuple[Any, ...] = (
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def _publish(report: "Report", json: Path | None) -> None:
    from rich.console import Console  # noqa: PLC0415  see the top

    console = Console()
    # Into a file or a pipe, tables keep the width that they need.
    report.show(console if console.is_terminal else Console(width=_PIPE_WIDTH))
    if json is not None:
        report.write(json)


if __name__ == "__main__":
    app()
