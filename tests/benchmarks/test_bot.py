"""The bot's benchmarks, small: everything killed a few times, and a load for a moment."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import discord
from benchmarks.bot import _growth
from benchmarks.bot_load import Sample
from benchmarks.crash import Found
from benchmarks.memory import MB
from benchmarks.outage import Ended
from inference.errors import StartupError
from tests.benchmarks.test_commands import bench
from tests.bot.archive.atlas.secantus import MISSING


def test_the_archive_is_exact_after_everything_was_killed(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "crash.json"
    done = bench("crash", "-m", model, "--posts", 50, "--kills", 6, "--seed", 5, "--json", out)
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())["data"]
    assert {"bot", "server"} <= data["kills"].keys()
    assert data["happened"]["posts"] == 50
    assert data["happened"]["delete"] > 0
    assert data["pictures"] > 50
    assert data["found"] == {"missing": [], "left_over": [], "untrue": []}


def test_a_picture_too_many_or_too_few_is_seen() -> None:
    assert Found().exact
    assert not Found(missing=["1/2"]).exact
    assert not Found(left_over=["1/2"]).exact
    assert not Found(untrue=["1/2"]).exact


def test_bot(model: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "bot.json", tmp_path / "bot.svg"
    what = ("--posts", 900, "--rate", 8, "--seconds", 12, "--json", out, "--plot", plot)
    done = bench("bot", "-m", model, *what)
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())["data"]
    searches = data["measured"]["searches"]
    assert {one["outcome"] for one in searches} <= {"answered", "busy"}
    assert data["answered"]["count"] + data["busy"]["count"] == len(searches) > 0
    assert data["measured"]["indexed"][-1][1] == 900
    assert data["measured"]["lags_s"]
    assert data["measured"]["processes"].keys() == {"bot", "server", "bench"}
    assert "<svg" in plot.read_text()


@pytest.mark.parametrize(
    ("seconds", "per_s", "found"), [(400, 40_000, 8), (400, 0, 0), (60, 40_000, None)]
)
def test_memory_that_grows_in_the_second_half_is_seen(
    seconds: int, per_s: int, found: float | None
) -> None:
    samples = [
        Sample(moment_s=moment, rss=0, own=10**8 + per_s * moment, cpu_s=0)
        for moment in range(seconds)
    ]
    growth = _growth(samples)
    assert math.isnan(growth) if found is None else growth / MB == pytest.approx(found, abs=0.1)


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_outage(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "outage.json"
    what = ("--seconds", 3, "--calm", 2, "--rate", 6, "--retry", 0.5, "--json", out)
    done = bench("outage", "-m", model, *what)
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())["data"]
    gone = next(one for one in data["parts"] if one["name"] == "the server is gone")
    assert gone["backlog"] > 0
    assert gone["answered_s"] == []
    assert len(gone["told_s"]) > 0
    ended = data["ended"]
    assert ended["pictures"] > 20
    assert (ended["missing"], ended["twice"], ended["left_over"]) == ([], [], [])


def test_a_picture_missing_or_twice_is_seen() -> None:
    def exact(**wrong: list[str]) -> bool:
        right: dict[str, list[str]] = {"missing": [], "twice": [], "left_over": []}
        return Ended(pictures=1, out_of_turn=0, **(right | wrong)).exact

    assert exact()
    assert not any(exact(**{name: ["1"]}) for name in ("missing", "twice", "left_over"))


def test_without_the_tests_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(discord, "_ROOT", tmp_path)
    with pytest.raises(StartupError, match="from a checkout of the project"):
        discord.loopback()
