"""The commands that measure archives, and whether the right map is found."""
# ruff: noqa: PLC0415 - what is heavy is imported only when its command runs

from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmarks.cli.shared import (
    Json,
    Model,
    Provider,
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
    plot: Annotated[Path | None, drawn("time, recall and size")] = None,
) -> None:
    """Filling and searching an archive, by its size: time, recall, disk and memory.

    [dim]mapseek bench archive --plot archive.png[/]

    [dim]mapseek bench archive --size 1000000[/]

    The vectors are embeddings of drawn maps, and others between them.

    A million takes some minutes and 3 GB of the folder for temporary files.

    It exits with 1 where a target is missed. Ctrl-C ends it with the figures so far.
    """
    from benchmarks.archive import ArchiveBenchOptions, bench_archive

    check_outputs(json, plot)
    options = ArchiveBenchOptions(
        archive=kind,
        sizes=size or (1_000, 10_000, 100_000),
        model=folder_of(model),
        maps=maps,
        searches=searches,
    )
    with progress_line() as progress:
        report, rows = bench_archive(options, progress)
    publish(report, json)
    if plot is not None:
        from benchmarks.plot import plot_archive

        plot_archive(rows, report.subject, plot)
    demand(report)


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
    plot: Annotated[Path | None, drawn("time and recall")] = None,
) -> None:
    """Exact and approximate search in Lucene, which is what searches in Atlas.

    [dim]mapseek bench lucene --jar lucene-core-9.9.1.jar --plot lucene.png[/]

    Each size is indexed as it is and in int8, and searched as the archive in Atlas asks.

    It exits with 1 where a target is missed. Ctrl-C ends it with the figures so far.
    """
    from benchmarks.lucene.bench import LuceneOptions, bench_lucene

    check_outputs(json, plot)
    options = LuceneOptions(
        jar=jar,
        java=java,
        sizes=size or (1_000, 5_000, 10_000, 20_000, 50_000, 100_000),
        model=folder_of(model),
        maps=maps,
        searches=searches,
    )
    with progress_line() as progress:
        report, rows = bench_lucene(options, progress)
    publish(report, json)
    if plot is not None:
        from benchmarks.plot import plot_lucene

        plot_lucene(rows, report.subject, plot)
    demand(report)


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
        Literal["phash"] | None,
        typer.Option(help="Measure a perceptual hash of the whole query, too."),
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
            help="Ways of looking at a query: full, centre, mean2, max2, mean3, max3, grid, looks "
            "(as `find` and the bot do where in doubt); repeat. [full]"
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Write thresholds into the manifest of the first --model, chosen by the first of "
            "the --views.",
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
    from inference.cores import usable_cores

    check_writable(json, out / "recall.png")
    unknown = [name for name in views or () if name not in VIEWS]
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]} is no view: take {', '.join(VIEWS)}.", param_hint="--views"
        )
    options = RetrievalOptions(
        art=art,
        models=model or ([] if server else [folder_of(None)]),
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
    with progress_line() as progress:
        report = bench_retrieval(options, progress)
    publish(report, json)
    demand(report)
