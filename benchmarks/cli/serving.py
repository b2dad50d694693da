"""The commands that measure the server and what is in it."""
# ruff: noqa: PLC0415 - what is heavy is imported only when its command runs

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.shared import (
    Json,
    Model,
    Provider,
    Rounds,
    app,
    check_outputs,
    check_writable,
    demand,
    drawn,
    folder_of,
    progress_line,
    publish,
)


@app.command()
def serve(
    *,
    model: Model = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A server that runs already, without TLS, on the same --model.",
        ),
    ] = None,
    token: Annotated[
        str, typer.Option(envvar="MAPSEEK_TOKEN", help="Bearer token of that server.")
    ] = "",
    rounds: Rounds = 10,
    seconds: Annotated[
        float, typer.Option(min=0.05, help="Length of each measurement of a round.")
    ] = 1.5,
    callers: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Callers of a closed loop; repeat for several. 1, 8, 32 if unset"),
    ] = None,
    load: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01,
            help="Rate of an open loop as a share of the capacity; repeat for several. "
            "0.25, 0.5, 0.8, 2 if unset",
        ),
    ] = None,
    provider: Provider = "auto",
    json: Json = None,
    plot: Annotated[Path | None, drawn("throughput and latency")] = None,
) -> None:
    """Throughput and latency of the server, and the limit: the same work with no server.

    [dim]mapseek bench serve --json serve.json --plot serve.png[/]

    It starts its own server and sends JPEG screenshots of 854 by 480 pixels.

    Everything is measured in rounds, so that other work disturbs all alike.

    Ctrl-C ends it with the figures so far.
    """
    from benchmarks.serve import ServeOptions, bench_serve

    check_outputs(json, plot)
    options = ServeOptions(
        model=folder_of(model),
        server=server,
        token=token,
        rounds=rounds,
        seconds=seconds,
        callers=callers or (1, 8, 32),
        loads=load or (0.25, 0.5, 0.8, 2.0),
        provider=provider,
    )
    with progress_line() as progress:
        report, measured = bench_serve(options, progress)
    publish(report, json)
    if plot is not None:
        from benchmarks.plot import plot_serve

        plot_serve(measured, report.subject, plot)


@app.command()
def peers(
    *,
    model: Model = None,
    rounds: Rounds = 5,
    seconds: Annotated[
        float, typer.Option(min=0.05, help="Length of each measurement of a round.")
    ] = 2.0,
    callers: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Callers of a closed loop; repeat for several. 1, 8, 32 if unset"),
    ] = None,
    environment: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the peers are installed, once.")
    ] = Path("results/peers"),
    json: Json = None,
    plot: Annotated[Path | None, drawn("throughput and latency")] = None,
) -> None:
    """The server beside mosec, LitServe and a plain gRPC server, on the same model and pictures.

    [dim]mapseek bench peers --plot peers.png[/]

    It installs them with pip into an environment of their own.

    Ctrl-C ends it with the figures so far.
    """
    from benchmarks.peers.bench import PeersOptions, bench_peers

    check_outputs(json, plot)
    options = PeersOptions(
        model=folder_of(model),
        environment=environment.absolute(),
        rounds=rounds,
        seconds=seconds,
        callers=callers or (1, 8, 32),
    )
    with progress_line() as progress:
        report, served = bench_peers(options, progress)
    publish(report, json)
    if plot is not None:
        from benchmarks.plot import plot_peers

        plot_peers(served, report.subject, plot)


@app.command()
def overhead(
    *,
    rounds: Rounds = 5,
    seconds: Annotated[
        float, typer.Option(min=0.05, help="Length of each measurement of a round.")
    ] = 1.5,
    images: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Images a message; repeat for several. 1, 8, 32 if unset"),
    ] = None,
    side: Annotated[
        int, typer.Option(min=4, max=512, help="Side of the pixels that are sent.")
    ] = 224,
    json: Json = None,
    plot: Annotated[Path | None, drawn("what a call costs")] = None,
) -> None:
    """What a call costs beside the model, and how many one event loop lets through.

    [dim]mapseek bench overhead --plot overhead.png[/]

    The model costs next to nothing, and an empty gRPC server takes the same messages in turn.

    Ctrl-C ends it with the figures so far.
    """
    from benchmarks.overhead.bench import OverheadOptions, bench_overhead

    check_outputs(json, plot)
    options = OverheadOptions(
        rounds=rounds, seconds=seconds, images=images or (1, 8, 32), side=side
    )
    with progress_line() as progress:
        report, rows = bench_overhead(options, progress)
    publish(report, json)
    if plot is not None:
        from benchmarks.plot import plot_overhead

        plot_overhead(rows, report.machine.cpu, plot)


@app.command()
def engine(
    *,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "--model", "-m", metavar="DIR", help="Model folder; repeat to compare precisions."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Batch size; repeat for several. 1, 2, 4, 8, 16, 32 if unset"),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Threads of a run; repeat. One, half and all cores if unset"),
    ] = None,
    rounds: Rounds = 3,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Length of each measurement of a round.")
    ] = 0.7,
    provider: Provider = "auto",
    json: Json = None,
) -> None:
    """Latency and throughput of the model alone, over batch sizes, threads and precisions.

    [dim]mapseek bench engine -m model-fp32 -m model-int8 --threads 1 --threads 4[/]

    Ctrl-C ends it with the figures so far.
    """
    from benchmarks.engine import EngineBenchOptions, bench_engine

    check_writable(json)
    options = EngineBenchOptions(
        models=model or [folder_of(None)],
        batches=batch or (1, 2, 4, 8, 16, 32),
        threads=threads or (),
        rounds=rounds,
        seconds=seconds,
        provider=provider,
    )
    with progress_line() as progress:
        report = bench_engine(options, progress)
    publish(report, json)


@app.command()
def gpu(
    *,
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="DIR", help="Model folder, best in fp16.")
    ],
    provider: Annotated[
        list[str] | None,
        typer.Option(help="cuda, tensorrt or both; cpu rehearses the run. Both if unset"),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the report; what is there is kept.")
    ] = Path("results/gpu/report"),
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Batch size; repeat for several. 1 to 64 if unset"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of what is measured in rounds.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.05, help="Length of each measurement.")] = 3.0,
    gflop: Annotated[
        float, typer.Option(min=0.001, help="Arithmetic of one image; that of ViT-B/32 if unset.")
    ] = 8.8,
) -> None:
    """The model against the card's limit, the server against the model, memory that runs out.

    [dim]benchmarks/gpu.sh[/] exports a model and runs this, unattended.

    Each step is a process of its own; one that fails is told, and ends nothing else.

    Ctrl-C stops it; the same command goes on after the last step that is done.
    """
    from benchmarks.gpu.bench import GpuOptions, bench_gpu

    chosen = tuple(provider or ("cuda", "tensorrt"))
    if chosen != ("cpu",) and not set(chosen) <= {"cuda", "tensorrt"}:
        raise typer.BadParameter(
            "Take cuda, tensorrt or both, or cpu alone.", param_hint="--provider"
        )
    check_writable(out / "report.json")
    options = GpuOptions(
        model=model,
        providers=chosen,  # type: ignore[arg-type]  # checked above
        out=out,
        rounds=rounds,
        seconds=seconds,
        batches=batch or (1, 2, 4, 8, 16, 32, 64),
        gflop=gflop,
    )
    with progress_line() as progress:
        report = bench_gpu(options, progress)
    publish(report, None)
    demand(report)


@app.command()
def preprocess(
    *,
    model: Model = None,
    pictures: Annotated[int, typer.Option(min=1, help="Drawn pictures of each kind.")] = 12,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", exists=True, file_okay=False, help="Folder of real pictures to add."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each one is decoded.")] = 5,
    json: Json = None,
) -> None:
    """Time and fidelity of the decoding, against the plain reference.

    [dim]mapseek bench preprocess --folder screenshots[/]

    It exits with 1 where any embedding moves below a cosine of 0.99.
    """
    from benchmarks.preprocess import PreprocessOptions, bench_preprocess

    check_writable(json)
    options = PreprocessOptions(
        model=folder_of(model), pictures=pictures, folder=folder, rounds=rounds
    )
    with progress_line() as progress:
        report = bench_preprocess(options, progress)
    publish(report, json)
    demand(report)
