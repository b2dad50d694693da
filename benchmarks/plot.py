"""The pictures of `mapseek bench`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from benchmarks.archive import Row
from benchmarks.bot_load import Measured as BotMeasured
from benchmarks.lucene.bench import Row as LuceneRow
from benchmarks.memory import MB
from benchmarks.overhead.bench import EMPTY, OURS, cards
from benchmarks.overhead.bench import Row as OverheadRow
from benchmarks.peers.bench import Served
from benchmarks.rounds import Measured
from inference.errors import StartupError


def check_format(path: Path) -> None:
    """Refuses a file name whose ending names no format, before anything is measured.

    Raises:
        StartupError: matplotlib cannot write such a file.
    """
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in formats:
        raise StartupError(f"A plot cannot be written to {path}: name a .png or .svg file.")


def plot_serve(measured: Measured, title: str, path: Path) -> None:
    """Draws both diagrams into one file; the ending of its name says in which format."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _throughput(left, measured)
    _latency(right, measured)
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=150)


def plot_bot(measured: BotMeasured, title: str, path: Path) -> None:
    """Draws how the backfill went on, and what searches and new posts met meanwhile."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*measured.indexed, strict=True), label="old posts indexed")
    left.set(xlabel="seconds", ylabel="posts", ylim=(0, None))
    memory = left.twinx()
    for name, style in (("bot", "-"), ("server", ":")):
        samples = measured.processes.get(name, [])
        memory.plot(
            [one.moment_s for one in samples],
            [one.own / MB for one in samples],
            style,
            color="grey",
        )
    memory.set(ylabel="MB", ylim=(0, None))
    left.set_title("Backfill; own memory of bot (grey) and server (dotted)")
    answered, busy = (
        [(one.moment_s, one.took_s) for one in measured.searches if one.outcome == outcome]
        for outcome in ("answered", "busy")
    )
    for name, points in (
        ("search answered", answered),
        ("told to try again", busy),
        ("new post", measured.lives),
    ):
        moments, seconds = [one for one, _ in points], [took for _, took in points]
        right.plot(moments, seconds, ".", markersize=3, label=name)
    right.set_title("Time from asking to the answer, from posting to found")
    right.set(xlabel="seconds", ylabel="seconds", yscale="log")
    right.legend()
    right.grid(alpha=0.3, which="both")
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=150)


def _throughput(axes: Axes, measured: Measured) -> None:
    callers = measured.callers()
    axes.plot(callers, [measured.capacity(count) for count in callers], "o-", label="server")
    axes.axhline(measured.limit(), color="grey", linestyle="--", label="limit (no server)")
    axes.set_title("Closed loop: who has an answer sends the next")
    axes.set(xlabel="callers", ylabel="images per second", ylim=(0, None))
    if callers:  # an interrupted run may have nothing for a logarithm
        axes.set_xscale("log", base=2)
        axes.set_xticks(callers, [str(count) for count in callers])
    axes.legend()
    axes.grid(alpha=0.3)


def _latency(axes: Axes, measured: Measured) -> None:
    shares = measured.shares()
    rates = [measured.rate(share) for share in shares]
    latencies = [measured.open_latency(share) for share in shares]
    for name, values in (
        ("p50", [latency.p50_ms for latency in latencies]),
        ("p90", [latency.p90_ms for latency in latencies]),
        ("p99", [latency.p99_ms for latency in latencies]),
    ):
        axes.plot(rates, values, "o-", label=name)
    axes.axvline(measured.limit(), color="grey", linestyle="--", label="limit (no server)")
    axes.set_title("Open loop: Poisson arrivals, from the intended moment")
    axes.set(xlabel="requests per second", ylabel="latency, ms", xlim=(0, None))
    if rates:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.legend()
    axes.grid(alpha=0.3, which="both")


def plot_peers(served: Sequence[Served], title: str, path: Path) -> None:
    """Draws throughput, p50 and p99 of each server by the number of callers into one file."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    servers = list(dict.fromkeys(one.server for one in served))
    callers = sorted({one.callers for one in served})
    width = 0.8 / len(servers)
    parts: dict[str, Callable[[Served], float]] = {
        "images per second": lambda one: one.images_per_s,
        "p50, ms": lambda one: one.latency.p50_ms,
        "p99, ms": lambda one: one.latency.p99_ms,
    }
    for axes, (name, value) in zip(figure.subplots(1, 3), parts.items(), strict=True):
        for number, server in enumerate(servers):
            some = {one.callers: value(one) for one in served if one.server == server}
            places = [
                place + (number - (len(servers) - 1) / 2) * width for place in range(len(callers))
            ]
            axes.bar(places, [some[count] for count in callers], width, label=server)
        axes.set_xticks(range(len(callers)), [str(count) for count in callers])
        axes.set(xlabel="callers", title=name)
        if "ms" in name:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())
        axes.grid(alpha=0.3, axis="y")
        axes.legend(fontsize="small")
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=150)


def plot_overhead(rows: Sequence[OverheadRow], title: str, path: Path) -> None:
    """Draws what an image costs, and how many one event loop lets through, into one file."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [row.kind.name for row in rows]
    empty = [row.process_us(EMPTY) / row.kind.images for row in rows]
    left.barh(names, empty, color="lightgrey", label="an empty server")
    own = [max(0.0, row.own_us / row.kind.images) for row in rows]
    left.barh(names, own, left=empty, color="C0", label="our part")
    left.set(title="CPU time of the server", xlabel="microseconds an image")
    left.invert_yaxis()
    left.legend(fontsize="small")
    right.barh(names, [row.wall_images_per_s for row in rows], color="C0", label="loop is full")
    right.plot([row.images_per_s(OURS) for row in rows], names, "k|", label="measured")
    for name, rate in cards().items():
        right.axvline(rate, color="grey", linestyle=":", linewidth=1)
        right.annotate(name, (rate, -0.6), fontsize="x-small", ha="center", annotation_clip=False)
    right.set(title="Where the event loop is the wall", xlabel="images per second", xscale="log")
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="x")
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=150)


def plot_archive(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draws time, recall and size over the number of pictures into one file."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    time, recall, space = figure.subplots(1, 3)
    for colour, searched in enumerate(dict.fromkeys(row.searched for row in rows)):
        some = [row for row in rows if row.searched == searched]
        sizes = [row.pictures for row in some]
        style = {"color": f"C{colour}", "marker": "o"}
        time.plot(sizes, [row.latency.p50_ms for row in some], label=f"{searched}, p50", **style)
        p99 = [row.latency.p99_ms for row in some]
        time.plot(sizes, p99, label=f"{searched}, p99", linestyle=":", **style)
        recall.plot(sizes, [row.recall for row in some], label=searched, **style)
    time.set(title="A search", ylabel="ms", yscale="log")
    time.yaxis.set_major_formatter(LogFormatter())
    recall.set(title="Found of the true three nearest", ylabel="recall@3")
    recall.set_ylim(min([0.95, *(row.recall - 0.01 for row in rows)]), 1.002)
    sizes = sorted({row.pictures for row in rows})
    for name, values in (
        ("disk", {row.pictures: row.disk_mb for row in rows if row.disk_mb is not None}),
        ("memory of the process", {row.pictures: row.memory_mb for row in rows}),
    ):
        space.plot([*values], [*values.values()], "o-", label=name)
    space.set(title="What it takes", ylabel="MB", yscale="log")
    space.yaxis.set_major_formatter(LogFormatter())
    for axes in (time, recall, space):
        axes.set(xlabel="pictures", xscale="log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=150)


def plot_lucene(rows: Sequence[LuceneRow], title: str, path: Path) -> None:
    """Draws time and recall of each way to search over the number of vectors into one file."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    time, plain, quantized = figure.subplots(1, 3)
    sizes = sorted({row.pictures for row in rows})
    for colour, candidates in enumerate(dict.fromkeys(row.candidates for row in rows)):
        name = "exact" if candidates is None else f"{candidates} candidates"
        style = {"color": f"C{colour}", "marker": "o"}
        some = [row for row in rows if row.candidates == candidates]
        none, scalar = (
            [row for row in some if row.quantization == kind] for kind in ("none", "scalar")
        )
        time.plot(_sizes(none), [row.latency.p50_ms for row in none], label=name, **style)
        plain.plot(_sizes(none), [row.recall for row in none], label=name, **style)
        quantized.plot(_sizes(scalar), [row.recall for row in scalar], linestyle=":", **style)
        quantized.plot(_sizes(scalar), [row.reranked for row in scalar], label=name, **style)
    time.set(title="A search, the median", ylabel="ms", yscale="log")
    time.yaxis.set_major_formatter(LogFormatter())
    plain.set(title="Found of the true three nearest", ylabel="recall@3")
    quantized.set(title="With int8; dotted: not re-ranked", ylabel="recall@3")
    lowest = min([0.95, *(row.recall - 0.01 for row in rows)])
    for axes in (plain, quantized):
        axes.set_ylim(lowest, 1.002)
    for axes in (time, plain, quantized):
        axes.set(xlabel="pictures", xscale="log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
        axes.minorticks_off()
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=150)


def _sizes(rows: Sequence[LuceneRow]) -> list[int]:
    return [row.pictures for row in rows]
