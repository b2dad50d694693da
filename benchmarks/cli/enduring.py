"""The commands that attack, break and kill, and look whether all is right afterwards."""
# ruff: noqa: PLC0415 - what is heavy is imported only when its command runs

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli.shared import (
    Json,
    Model,
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

    check_writable(json)
    options = SoakOptions(
        model=folder_of(model),
        minutes=minutes,
        requests=requests,
        attackers=attackers,
        callers=callers,
        tolerance_mb=tolerance_mb,
        seed=seed,
    )
    with progress_line() as progress:
        report = bench_soak(options, progress)
    publish(report, json)
    demand(report)


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

    check_writable(json)
    unknown = [name for name in only or () if name not in NAMES]
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]!r} is no scenario: take {', '.join(NAMES)}.", param_hint="--only"
        )
    options = ChaosOptions(
        model=folder_of(model), seconds=seconds, within_s=within, only=only or (), seed=seed
    )
    with progress_line() as progress:
        report = bench_chaos(options, progress)
    publish(report, json)
    demand(report)


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

    check_writable(json, out / "finding")
    options = FuzzOptions(model=folder_of(model), minutes=minutes, out=out, seed=seed)
    with progress_line() as progress:
        report = bench_fuzz(options, progress)
    publish(report, json)
    demand(report)


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
    plot: Annotated[Path | None, drawn("latencies and memory")] = None,
) -> None:
    """A long backfill with searches and new posts beside it.

    [dim]mapseek bench bot --posts 10000 --rate 50 --plot bot.png[/]

    It runs the real bot against a loopback Discord, which is in the project's tests: run it from
    a checkout.
    """
    from benchmarks.bot import BotBenchOptions, bench_bot

    check_outputs(json, plot)
    options = BotBenchOptions(
        model=folder_of(model).resolve(), posts=posts, rate=rate, seconds=seconds, seed=seed
    )
    with progress_line() as progress:
        report, measured = bench_bot(options, progress)
    publish(report, json)
    if plot is not None:
        from benchmarks.plot import plot_bot

        plot_bot(measured, report.subject, plot)


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

    check_writable(json)
    options = CrashOptions(model=folder_of(model).resolve(), posts=posts, kills=kills, seed=seed)
    with progress_line() as progress:
        report = bench_crash(options, progress)
    publish(report, json)
    demand(report)


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

    check_writable(json)
    options = OutageOptions(
        model=folder_of(model).resolve(),
        away_s=seconds,
        calm_s=calm,
        rate=rate,
        retry_s=retry,
        seed=seed,
    )
    with progress_line() as progress:
        report = bench_outage(options, progress)
    publish(report, json)
    demand(report)
