"""`mapseek bench`: measure it yourself. Each command imports what is heavy only when it runs."""
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
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 10,
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
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw throughput and latency: a .png or .svg file."),
    ] = None,
) -> None:
    """Throughput and latency of the server, and the limit: the same work with no server.

    [dim]mapseek bench serve --json serve.json --plot serve.png[/]

    It starts its own server and sends JPEG screenshots of 854 by 480 pixels.

    Everything is measured in rounds, so that other work disturbs all alike.

    Ctrl-C ends it with the figures so far.
    """
    from benchmarks.serve import ServeOptions, bench_serve

    _check_outputs(json, plot)
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
        from benchmarks.plot import plot_serve

        plot_serve(measured, f"{report.model_id} on {report.machine.cpu}", plot)


@app.command()
def peers(
    *,
    model: Model = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 5,
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
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw throughput and latency: a .png or .svg file."),
    ] = None,
) -> None:
    """The server beside mosec, LitServe and a plain gRPC server, on the same model and pictures.

    [dim]mapseek bench peers --plot peers.png[/]

    It installs them with pip into an environment of their own.

    Ctrl-C ends it with the figures so far.
    """
    from benchmarks.peers.bench import PeersOptions, bench_peers

    _check_outputs(json, plot)
    options = PeersOptions(
        model=_folder(model),
        environment=environment.absolute(),
        rounds=rounds,
        seconds=seconds,
        callers=callers or (1, 8, 32),
    )
    with _progress() as progress:
        report, served = bench_peers(options, progress)
    _publish(report, json)
    if plot is not None:
        from benchmarks.plot import plot_peers

        plot_peers(served, f"{report.model_id} on {report.machine.cpu}", plot)


@app.command()
def overhead(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 5,
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
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw what a call costs: a .png or .svg file."),
    ] = None,
) -> None:
    """What a call costs beside the model, and how many one event loop lets through.

    [dim]mapseek bench overhead --plot overhead.png[/]

    The model costs next to nothing, and an empty gRPC server takes the same messages in turn.

    Ctrl-C ends it with the figures so far.
    """
    from benchmarks.overhead.bench import OverheadOptions, bench_overhead

    _check_outputs(json, plot)
    options = OverheadOptions(
        rounds=rounds, seconds=seconds, images=images or (1, 8, 32), side=side
    )
    with _progress() as progress:
        report, rows = bench_overhead(options, progress)
    _publish(report, json)
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
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 3,
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

    _check_writable(json)
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
    _check_writable(out / "report.json")
    options = GpuOptions(
        model=model,
        providers=chosen,  # type: ignore[arg-type]  # checked above
        out=out,
        rounds=rounds,
        seconds=seconds,
        batches=batch or (1, 2, 4, 8, 16, 32, 64),
        gflop=gflop,
    )
    with _progress() as progress:
        report = bench_gpu(options, progress)
    _publish(report, None)
    if report.missed:
        raise typer.Exit(1)


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

    _check_writable(json)
    options = PreprocessOptions(
        model=_folder(model), pictures=pictures, folder=folder, rounds=rounds
    )
    with _progress() as progress:
        report = bench_preprocess(options, progress)
    _publish(report, json)
    if report.missed:
        raise typer.Exit(1)


@app.command()
def archive(
    *,
    model: Model = None,
    kind: Annotated[
        Literal["embedded", "atlas"],
        typer.Option("--archive", help="Which archive; atlas needs MAPSEEK_ATLAS_URI."),
    ] = "embedded",
    size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Pictures; repeat for several. 1000, 10000, 100000 if unset"),
    ] = None,
    maps: Annotated[
        int, typer.Option(min=2, help="Maps that are drawn; other vectors are grown from theirs.")
    ] = 1000,
    searches: Annotated[int, typer.Option(min=2, help="Searches of each kind.")] = 100,
    json: Json = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw time, recall and size: a .png or .svg file."),
    ] = None,
) -> None:
    """Filling and searching an archive, by its size: time, recall, disk and memory.

    [dim]mapseek bench archive --plot archive.png[/]

    [dim]mapseek bench archive --size 1000000[/]

    The vectors are embeddings of drawn maps, and others between them.

    A million takes some minutes and 3 GB of the folder for temporary files.

    It exits with 1 where a target is missed. Ctrl-C ends it with the figures so far.
    """
    from benchmarks.archive import ArchiveBenchOptions, bench_archive

    _check_outputs(json, plot)
    options = ArchiveBenchOptions(
        archive=kind,
        sizes=size or (1_000, 10_000, 100_000),
        model=_folder(model),
        maps=maps,
        searches=searches,
    )
    with _progress() as progress:
        report, rows = bench_archive(options, progress)
    _publish(report, json)
    if plot is not None:
        from benchmarks.plot import plot_archive

        plot_archive(rows, f"{report.model_id} on {report.machine.cpu}", plot)
    if report.missed:
        raise typer.Exit(1)


@app.command()
def lucene(
    *,
    jar: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Lucene 9.9: lucene-core-9.9.1.jar, or the jar in the wheel of pyserini 0.24.0.",
        ),
    ],
    java: Annotated[
        str, typer.Option(metavar="CMD", help="What runs Java, a JDK of 17 or newer.")
    ] = "java",
    model: Model = None,
    size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Vectors; repeat for several. 1000 to 100000 if unset"),
    ] = None,
    maps: Annotated[
        int, typer.Option(min=2, help="Maps that are drawn; other vectors are grown from theirs.")
    ] = 1000,
    searches: Annotated[int, typer.Option(min=2, help="How many different queries.")] = 200,
    json: Json = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw time and recall: a .png or .svg file."),
    ] = None,
) -> None:
    """Exact and approximate search in Lucene, which is what searches in Atlas.

    [dim]mapseek bench lucene --jar lucene-core-9.9.1.jar --plot lucene.png[/]

    Each size is indexed as it is and in int8, and searched as the archive in Atlas asks.

    It exits with 1 where a target is missed. Ctrl-C ends it with the figures so far.
    """
    from benchmarks.lucene.bench import LuceneOptions, bench_lucene

    _check_outputs(json, plot)
    options = LuceneOptions(
        jar=jar,
        java=java,
        sizes=size or (1_000, 5_000, 10_000, 20_000, 50_000, 100_000),
        model=_folder(model),
        maps=maps,
        searches=searches,
    )
    with _progress() as progress:
        report, rows = bench_lucene(options, progress)
    _publish(report, json)
    if plot is not None:
        from benchmarks.plot import plot_lucene

        plot_lucene(rows, f"{report.model_id} on {report.machine.cpu}", plot)
    if report.missed:
        raise typer.Exit(1)


@app.command()
def retrieval(
    *,
    art: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder of pictures to make maps of, a subfolder for each source. "
            "`make retrieval-art` builds one.",
        ),
    ] = Path("results/retrieval-art"),
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "--model", "-m", metavar="DIR", help="Model folder; repeat to compare. [bundled]"
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Measure a running server's model, too."),
    ] = None,
    baseline: Annotated[
        Literal["phash"] | None, typer.Option(help="Measure a perceptual hash, too.")
    ] = None,
    half: Annotated[
        Literal["validation", "test"],
        typer.Option(help="Choose models by the one half of the artwork, judge by the other."),
    ] = "test",
    maps: Annotated[int, typer.Option(min=2, help="How many maps.")] = 3000,
    seed: Annotated[int, typer.Option(min=0, help="Decides everything random.")] = 0,
    distractors: Annotated[
        int, typer.Option(min=0, help="Other maps that are put into the archive as well.")
    ] = 0,
    views: Annotated[
        list[str] | None,
        typer.Option(
            help="Ways of looking at a query: full, centre, mean2, max2, mean3, max3, grid; "
            "repeat. [full]"
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Write thresholds into the manifest of the first --model."
        ),
    ] = False,
    failures: Annotated[
        int, typer.Option(min=0, help="How many failures of each kind are drawn.")
    ] = 120,
    show: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Only this source's pictures may be in examples.png, which you mean to publish; "
            "repeat. [all]",
        ),
    ] = None,
    cache: Annotated[
        Path, typer.Option(metavar="DIR", help="Keeps what is drawn and embedded.")
    ] = Path("results/retrieval-set"),
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for plots and sheets of failures.")
    ] = Path("results/retrieval"),
    workers: Annotated[int, typer.Option(min=0, help="Drawing processes. 0: one per core.")] = 0,
    provider: Provider = "auto",
    json: Json = None,
) -> None:
    """Is the right map found from a bad picture of it? On maps made of a folder of artwork.

    [dim]mapseek bench retrieval --baseline phash --json retrieval.json[/]

    [dim]mapseek bench retrieval -m models/a -m models/b --half validation --maps 600[/]

    The set is drawn once and kept; Ctrl-C stops it, and the next run goes on there.

    It exits with 1 where a target is missed.
    """
    from benchmarks.retrieval.artwork import Half
    from benchmarks.retrieval.bench import RetrievalOptions, bench_retrieval
    from benchmarks.retrieval.embedders import VIEWS
    from inference.client import ClientSettings
    from inference.providers import usable_cores

    _check_writable(json, out / "recall.png")
    unknown = [name for name in views or () if name not in VIEWS]
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]} is no view: take {', '.join(VIEWS)}.", param_hint="--views"
        )
    options = RetrievalOptions(
        art=art,
        models=model or ([] if server else [_folder(None)]),
        server=ClientSettings.load(server=server) if server else None,
        baseline=baseline == "phash",
        half=Half(half),
        maps=maps,
        seed=seed,
        distractors=distractors,
        views=tuple(dict.fromkeys(views or ("full",))),
        calibrate=calibrate,
        failures=failures,
        show=tuple(show or ()),
        cache=cache,
        out=out,
        workers=workers or usable_cores(),
        provider=provider,
    )
    with _progress() as progress:
        report = bench_retrieval(options, progress)
    _publish(report, json)
    if report.missed:
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
    tolerance_mb: Annotated[
        float, typer.Option(min=0, help="Growth of the resident memory that is let pass.")
    ] = 16.0,
    seed: Annotated[int, typer.Option(help="Which attacks come when.")] = 0,
    json: Json = None,
) -> None:
    """Hostile traffic with valid traffic beside it; exits with 1 where a target is missed.

    [dim]mapseek bench soak --minutes 10[/]

    [dim]mapseek bench soak --requests 50000[/]

    It starts its own server on loopback: nothing else is attacked.

    Ctrl-C ends it with the figures so far.
    """
    from benchmarks.soak import SoakOptions, bench_soak

    _check_writable(json)
    options = SoakOptions(
        model=_folder(model),
        minutes=minutes,
        requests=requests,
        attackers=attackers,
        callers=callers,
        tolerance_mb=tolerance_mb,
        seed=seed,
    )
    with _progress() as progress:
        report = bench_soak(options, progress)
    _publish(report, json)
    if report.missed:
        raise typer.Exit(1)


@app.command()
def chaos(
    *,
    model: Model = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each fault lasts.")] = 3.0,
    within: Annotated[
        float, typer.Option(min=0.1, help="Seconds within which health has to tell the truth.")
    ] = 1.0,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Scenario to run; repeat. All if unset")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    json: Json = None,
) -> None:
    """Engine errors, hangs, no memory, poison, vanishing clients, signals, clock jumps, under load.

    [dim]mapseek bench chaos --json chaos.json[/]

    [dim]mapseek bench chaos --only "poisoned pictures"[/]

    It starts servers of its own on loopback, and checks every answer, health and exit statuses.

    It exits with 1 where a call was lost or answered wrongly, or a promise was not kept.
    """
    from benchmarks.chaos.bench import NAMES, bench_chaos
    from benchmarks.chaos.outcome import ChaosOptions

    _check_writable(json)
    unknown = [name for name in only or () if name not in NAMES]
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]!r} is no scenario: take {', '.join(NAMES)}.", param_hint="--only"
        )
    options = ChaosOptions(
        model=_folder(model), seconds=seconds, within_s=within, only=only or (), seed=seed
    )
    with _progress() as progress:
        report = bench_chaos(options, progress)
    _publish(report, json)
    if report.missed:
        raise typer.Exit(1)


@app.command()
def fuzz(
    *,
    model: Model = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long it goes on.")] = 1.0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for what broke a promise.")
    ] = Path("results/fuzz"),
    seed: Annotated[int, typer.Option(help="Decides what is spoilt how.")] = 0,
    json: Json = None,
) -> None:
    """Spoilt pictures for the decoder, spoilt messages and frames for a server of its own.

    [dim]mapseek bench fuzz --minutes 60 --seed 1[/]

    It exits with 1 where anything but a documented error came out, and keeps what did it.

    Ctrl-C ends it with what was seen so far.
    """
    from benchmarks.fuzz.bench import FuzzOptions, bench_fuzz

    _check_writable(json, out / "finding")
    options = FuzzOptions(model=_folder(model), minutes=minutes, out=out, seed=seed)
    with _progress() as progress:
        report = bench_fuzz(options, progress)
    _publish(report, json)
    if report.missed:
        raise typer.Exit(1)


@app.command()
def bot(
    *,
    model: Model = None,
    posts: Annotated[int, typer.Option(min=1, help="Old posts that are indexed.")] = 10_000,
    rate: Annotated[
        float,
        typer.Option(
            min=0, help="Searches a second beside it, every other one for a new screenshot."
        ),
    ] = 50.0,
    seconds: Annotated[
        float, typer.Option(min=1, help="For how long, in seconds, also when all is indexed.")
    ] = 420.0,
    seed: Annotated[int, typer.Option(help="Which picture is searched for when.")] = 0,
    json: Json = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw latencies and memory: a .png or .svg file."),
    ] = None,
) -> None:
    """A long backfill with searches and new posts beside it.

    [dim]mapseek bench bot --posts 10000 --rate 50 --plot bot.png[/]

    It runs the real bot against a loopback Discord, which is in the project's tests: run it from
    a checkout.
    """
    from benchmarks.bot import BotBenchOptions, bench_bot

    _check_outputs(json, plot)
    options = BotBenchOptions(
        model=_folder(model).resolve(), posts=posts, rate=rate, seconds=seconds, seed=seed
    )
    with _progress() as progress:
        report, measured = bench_bot(options, progress)
    _publish(report, json)
    if plot is not None:
        from benchmarks.plot import plot_bot

        plot_bot(measured, f"{report.model_id} on {report.machine.cpu}", plot)


@app.command()
def crash(
    *,
    model: Model = None,
    posts: Annotated[int, typer.Option(min=1, help="How many messages are posted.")] = 300,
    kills: Annotated[int, typer.Option(min=0, help="How often something is killed.")] = 25,
    seed: Annotated[int, typer.Option(help="What happens when.")] = 0,
    json: Json = None,
) -> None:
    """Kill the bot, the server and a writer of the archive at random; is the archive exact?

    [dim]mapseek bench crash --posts 300 --kills 25[/]

    It posts on a loopback Discord, which is in the project's tests: run it from a checkout.

    It exits with 1 where a picture is missing, left over or untrue in the end.
    """
    from benchmarks.crash import CrashOptions, bench_crash

    _check_writable(json)
    options = CrashOptions(model=_folder(model).resolve(), posts=posts, kills=kills, seed=seed)
    with _progress() as progress:
        report = bench_crash(options, progress)
    _publish(report, json)
    if report.missed:
        raise typer.Exit(1)


@app.command()
def outage(
    *,
    model: Model = None,
    seconds: Annotated[float, typer.Option(min=0, help="How long the database is gone.")] = 60.0,
    calm: Annotated[
        float, typer.Option(min=0.1, help="Seconds before it, after it, and of each other fault.")
    ] = 15.0,
    rate: Annotated[float, typer.Option(min=0.1, help="Posts a second.")] = 4.0,
    retry: Annotated[
        float, typer.Option(min=0, help="MAPSEEK_ATLAS_RETRY_S of the bot, in seconds.")
    ] = 15.0,
    seed: Annotated[int, typer.Option(help="What happens when.")] = 0,
    json: Json = None,
) -> None:
    """The database of the archive goes away under load: is each picture there once at the end?

    [dim]mapseek bench outage --seconds 60[/]

    Then its primary steps down, and connections break in the middle of bulk writes. Discord and
    the database are those of the project's tests: run it from a checkout.

    It exits with 1 where a picture is missing, twice or left over, or a search is not answered.
    """
    from benchmarks.outage import OutageOptions, bench_outage

    _check_writable(json)
    options = OutageOptions(
        model=_folder(model).resolve(),
        away_s=seconds,
        calm_s=calm,
        rate=rate,
        retry_s=retry,
        seed=seed,
    )
    with _progress() as progress:
        report = bench_outage(options, progress)
    _publish(report, json)
    if report.missed:
        raise typer.Exit(1)


def _folder(model: Path | None) -> Path:
    if model is not None:
        return model
    from inference.settings import BUNDLED_MODEL

    return BUNDLED_MODEL


def _check_outputs(json: Path | None, plot: Path | None) -> None:
    """Refuses files that cannot be written, and plots in no known format."""
    _check_writable(json, plot)
    if plot is not None:
        from benchmarks.plot import check_format

        check_format(plot)


def _check_writable(*files: Path | None) -> None:
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
def _progress() -> Iterator["Progress"]:
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


def _publish(report: "Report", json: Path | None) -> None:
    from rich.console import Console

    console = Console()
    # Into a file or a pipe, tables keep the width that they need.
    report.show(console if console.is_terminal else Console(width=_PIPE_WIDTH))
    if json is not None:
        report.write(json)
