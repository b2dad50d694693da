"""The picture of `bench serve`: throughput over callers, latency over load."""

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.rounds import Measured
from inference.errors import StartupError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_serve(measured: Measured, title: str, path: Path) -> None:
    """Draws both diagrams into one file; the ending of its name says in which format.

    Raises:
        StartupError: matplotlib is not installed, or it cannot write such a file.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  large, and part of the extra `bench` only
    except ImportError:
        raise StartupError(
            "Plots need matplotlib: install it with `pip install 'mapseek[bench]'`, "
            "or leave --plot out."
        ) from None
    mpl.use("agg")
    from matplotlib.figure import Figure  # noqa: PLC0415  as above

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _throughput(left, measured)
    _latency(right, measured)
    figure.suptitle(title, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise StartupError(f"The plot cannot be written to {path}: {error}") from None


def _throughput(axes: "Axes", measured: Measured) -> None:
    callers = measured.callers()
    axes.plot(callers, [measured.capacity(count) for count in callers], "o-", label="server")
    axes.axhline(measured.limit(), color="grey", linestyle="--", label="limit (no server)")
    axes.set(xlabel="callers (closed loop)", ylabel="images per second", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.set_xticks(callers, [str(count) for count in callers])
    axes.legend()
    axes.grid(alpha=0.3)


def _latency(axes: "Axes", measured: Measured) -> None:
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
    axes.set(xlabel="requests per second (open loop)", ylabel="latency, ms", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
