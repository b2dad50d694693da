import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks.latency import Latency
from benchmarks.limit import Pace, Single
from benchmarks.load import Load
from benchmarks.machine import this_machine
from benchmarks.memory import MB, Growth
from benchmarks.peers import bench
from benchmarks.peers.bench import Served
from benchmarks.plot import plot_peers, plot_serve
from benchmarks.report import Report, Target
from benchmarks.rounds import Measured, Round
from inference.errors import StartupError


def load(*latencies_s: float) -> Load:
    return Load(seconds=1, sent=len(latencies_s), latencies_s=latencies_s)


def measured() -> Measured:
    """Two rounds, in the second of which everything is half as fast."""
    rounds = [
        Round(
            limit=Pace(images=100 // slow, seconds=1, cpu_s=1),
            single=Single(decode_s=[0.002], run_s=[0.006], total_s=[0.008 * slow]),
            closed={1: load(0.009 * slow), 32: load(*[0.01] * (95 // slow))},
            open={0.5: load(0.01, 0.03)},
            rates={0.5: 40.0},
            stream=load(*[math.nan] * (98 // slow)),
            beside_bulk={0.5: load(0.03, 0.05)},
        )
        for slow in (1, 2)
    ]
    return Measured(
        rounds=rounds, cold_start_s=2.0, rss_at_start_bytes=90 * MB, rss_highest_bytes=500 * MB
    )


def test_percentiles_are_interpolated_and_in_milliseconds() -> None:
    latency = Latency.of([number / 1000 for number in range(101)])
    assert (latency.count, latency.max_ms) == (101, 100)
    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == pytest.approx((50, 90, 99))
    assert Latency.of([0.001, 0.002]).p50_ms == pytest.approx(1.5)
    assert math.isnan(Latency.of([]).p99_ms)


def test_ratios_are_taken_within_a_round() -> None:
    figures = measured()
    assert (figures.limit(), figures.capacity(32)) == (75, 71)  # medians of 100, 50 and of 95, 47
    assert figures.ratio_to_limit(32) == pytest.approx((0.95 + 0.94) / 2)
    assert figures.ratio_to_single(1) == pytest.approx(9 / 8)
    assert figures.open_latency(0.5).p50_ms == pytest.approx(20)


def test_targets_say_by_how_much_they_are_met_or_missed() -> None:
    targets = measured().targets()
    assert [target.met for target in targets] == [False, True, True, True, True, True, False]
    ratios = [target.ratio for target in targets]
    assert ratios == pytest.approx(
        [0.945 / 0.95, 1.125 / 1.15, 0.75, 0.98 / 0.97, 5 / 6, 2 / 3, 500 / 400]
    )
    assert Target.at_least("", 0.9, 0.9).met
    assert Target.at_most("", 0.9, 0.9).met
    assert Target.at_least("", 0.89, 0.9).met is False
    assert Target.at_most("", math.nan, 1).met is None


def test_a_report_is_strict_json_and_a_table() -> None:
    figures = measured()
    what: dict[str, Any] = {"command": "", "model_id": "", "settings": {"model": Path("x")}}
    what |= {"tables": figures.tables(), "targets": figures.targets()}
    report = Report(**what, machine=this_machine(), data={**figures.data(), "nothing": math.nan})
    document = json.loads(report.to_json())
    assert document["targets"][6]["met"] is False
    assert document["data"]["closed"][1]["ratio_to_limit"] == pytest.approx(0.945)
    assert document["data"]["nothing"] is None
    screen = StringIO()
    report.show(Console(width=200, file=screen))
    assert "throughput with 32 callers at least 0.95 of the limit" in screen.getvalue()
    assert "MISSED" in screen.getvalue()


@pytest.mark.parametrize("figures", [measured(), Measured(rounds=[Round()])])
def test_a_plot_is_drawn_of_whatever_was_measured(figures: Measured, tmp_path: Path) -> None:
    plot_serve(figures, "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_we_are_ahead_only_where_all_three_figures_say_so(tmp_path: Path) -> None:
    served = [
        Served(server="mapseek", callers=8, loads=[load(0.01, 0.02, 0.02)]),
        Served(server="slower", callers=8, loads=[load(0.02, 0.04)]),
        Served(server="steadier", callers=8, loads=[load(0.015, 0.015)]),
    ]
    targets = bench._targets(served)
    assert [target.met for target in targets] == [True, False]
    assert targets[1].ratio == pytest.approx(15 / 20)
    plot_peers(served, "title", tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_leaves_calls_unanswered_is_not_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    codes = {"OK": 3}

    @contextmanager
    def process(*_: Any, **__: Any) -> Iterator[Any]:
        yield SimpleNamespace(run=lambda _: replace(load(0.1, 0.1, 0.1), codes=codes))

    monkeypatch.setattr(bench, "LoadProcess", process)
    case = Served(server="mosec", callers=32)
    bench._measure([case], "", "image", pictures=tmp_path, seconds=1)
    assert case.codes == {"OK": 3}
    codes = {"OK": 3, "INTERNAL": 7}
    with pytest.raises(StartupError, match=r"mosec did not answer all of 32 .*'INTERNAL': 7"):
        bench._measure([case], "", "image", pictures=tmp_path, seconds=1)


def test_growth_is_what_is_never_given_back() -> None:
    def growth(values: list[int]) -> float:
        found = Growth.of([(number / 2, value) for number, value in enumerate(values)])
        assert found is not None
        return found.rise

    warming = [min(200, 90 + 10 * number) for number in range(100)]
    busy = [value + 300 * (number % 7 > 2) for number, value in enumerate(warming)]
    leaking = [value + 2 * number for number, value in enumerate(busy)]
    assert growth(warming) == growth(busy) == growth([*warming[:-10], *[500] * 10]) == 0
    assert growth(leaking) == pytest.approx(100, abs=12)  # 2 a sample, half of the samples apart
    assert Growth.of([(0.0, 1.0), (1.0, 9.0)]) is None
