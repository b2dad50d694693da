"""The picture of `bench serve`: throughput over callers, latency over load."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

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
