"""The bot's benchmarks, small: everything killed a few times, and a load for a moment."""

import json
from pathlib import Path

import pytest

from benchmarks import discord
from benchmarks.crash import Found
from inference.errors import StartupError
from tests.benchmarks.test_commands import bench


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
    what = ("--posts", 150, "--rate", 4, "--json", out, "--plot", plot)
    done = bench("bot", "-m", model, *what)
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())["data"]
    assert data["measured"]["failed"] == 0
    assert data["measured"]["indexed"][-1][1] == 150
    assert data["searches"]["count"] == len(data["measured"]["searches"])
    assert "<svg" in plot.read_text()


def test_without_the_tests_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(discord, "_ROOT", tmp_path)
    with pytest.raises(StartupError, match="from a checkout of the project"):
        discord.loopback()
