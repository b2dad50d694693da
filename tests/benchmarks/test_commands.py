"""Every command as a user types it, with the real server on loopback, for a moment each."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from typer.testing import CliRunner, Result

from benchmarks.cli import app
from benchmarks.machine import this_machine
from benchmarks.report import Report, Target
from benchmarks.server_process import run_server
from bot.archive.port import ArchiveError
from inference.errors import EmbeddingError, StartupError
from tests.bot.archive.atlas.proxy import AtlasProxy
from tests.bot.archive.atlas.secantus import MISSING, Secantus


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def data_of(done: Result, path: Path) -> dict[str, Any]:
    assert done.exit_code == 0, done.output
    found = json.loads(path.read_text())
    assert found["command"].startswith("mapseek bench ")
    assert found["model_id"].startswith("tiny@")
    assert found["complete"]
    return dict(found["data"], targets=found["targets"])


def test_serve(model: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "new" / "serve.json", tmp_path / "serve.svg"
    what = ("--callers", 1, "--callers", 32, "--load", 0.5, "--load", 2, "--rounds", 1)
    done = bench("serve", "-m", model, *what, "--seconds", 0.1, "--json", out, "--plot", plot)
    data = data_of(done, out)
    assert "<svg" in plot.read_text()
    assert [case["callers"] for case in data["closed"]] == [1, 32]
    assert [case["share"] for case in data["open"]] == [0.5, 2]
    assert data["closed"][1]["latency"]["count"] == data["closed"][1]["codes"]["OK"]
    assert data["limit_images_per_s"] > 0
    assert data["single"]["total"]["count"] > 0
    assert data["open"][1]["refusal"]["count"] == data["open"][1]["codes"].get(
        "RESOURCE_EXHAUSTED", 0
    )
    assert data["stream"]["images_per_s"] is not None
    assert [case["share"] for case in data["beside_bulk"]] == [0.5]
    assert data["beside_bulk"][0]["bulk_images_per_s"] is not None
    assert len(data["targets"]) == 9


def test_archive(model: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "archive.json", tmp_path / "archive.svg"
    what = ("--size", 300, "--size", 20, "--maps", 12, "--searches", 6, "--json", out)
    data = data_of(bench("archive", "-m", model, *what, "--plot", plot), out)
    assert "<svg" in plot.read_text()
    assert [(row["pictures"], row["searched"]) for row in data["rows"]] == [
        (size, searched) for size in (20, 300) for searched in ("everything", "one channel")
    ]
    for row in data["rows"]:
        assert row["recall"] == 1  # so few are compared exactly
        assert row["latency"]["count"] == 6
        assert row["disk_mb"] > 0
        assert row["inserts_per_s"] > 0
    assert [target["met"] for target in data["targets"]][1] is True


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[AtlasProxy]:
    """An Atlas whose search index learns nothing from the first write on."""
    if MISSING:
        pytest.skip(MISSING)

    def freeze(_: dict[str, Any]) -> None:
        running.freeze()

    with Secantus() as server, AtlasProxy(server.address) as running:
        running.fail("update", refusal=freeze)
        monkeypatch.setenv("MAPSEEK_ATLAS_URI", running.uri)
        monkeypatch.setenv("MAPSEEK_ATLAS_DATABASE", "maps")
        monkeypatch.setattr("benchmarks.archive._INDEX_LOOK_S", 0.01)
        yield running
        client: MongoClient[dict[str, Any]] = MongoClient(running.uri)
        with client:
            assert client["maps"].list_collection_names() == []


def test_archive_in_atlas(
    model: Path, tmp_path: Path, proxy: AtlasProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    def follow_late(command: dict[str, Any]) -> None:
        nonlocal looked
        looked += "$vectorSearch" in command["pipeline"][0]
        if looked == 5:
            proxy.follow()

    proxy.fail("aggregate", times=1000, refusal=follow_late)
    monkeypatch.setenv("MAPSEEK_ATLAS_EXACT_LIMIT", "20")
    out = tmp_path / "archive.json"
    sizes = ("--size", 20, "--size", 40, "--maps", 12, "--searches", 4)
    done = bench("archive", "-m", model, "--archive", "atlas", *sizes, "--json", out)
    assert [row["recall"] for row in data_of(done, out)["rows"]] == [1, 1, 1, 1]
    # Five looks until it had followed, one at the second size; eight searches of each.
    exact = ["exact" in asked for asked in proxy.searches()]
    assert exact == [True] * (5 + 8) + [False] * (1 + 8)


def test_an_index_that_never_follows_is_told(
    model: Path, proxy: AtlasProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.archive._INDEX_WAIT_S", 0.1)
    what = ("--archive", "atlas", "--size", 20, "--maps", 12, "--searches", 4)
    error = bench("archive", "-m", model, *what).exception
    assert isinstance(error, ArchiveError)
    assert "has not followed within 0.1 s" in str(error)


def test_serve_against_a_running_server(model: Path, tmp_path: Path) -> None:
    out, token = tmp_path / "serve.json", "the-operators-own-token"
    what = ("--callers", 2, "--load", 0.5, "--rounds", 1, "--seconds", 0.05, "--json", out)
    with run_server(model, {"token": token}) as server:
        where = ("serve", "-m", model, "--server", server.address)
        done = bench(*where, "--token", token, *what)
        assert isinstance(bench(*where, *what).exception, EmbeddingError)
    assert server.process.returncode == 0
    # Of what was asked for, only these are promised.
    names = [target["name"] for target in data_of(done, out)["targets"]]
    assert [name.split(" ")[0] for name in names] == ["p99", "one", "p99"]
    assert token not in done.output + out.read_text()


def test_engine(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine.json"
    what = ("--batch", 4, "--batch", 1, "--threads", 1, "--rounds", 1, "--seconds", 0.02)
    cases = data_of(bench("engine", "-m", model, *what, "--json", out), out)["cases"]
    assert [(case["threads"], case["batch"]) for case in cases] == [(1, 4), (1, 1)]
    for case in cases:
        run_s = case["latency"]["mean_ms"] / 1000
        assert case["images_per_s"] == pytest.approx(case["batch"] / run_s)


def test_preprocess(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "preprocess.json"
    what = ("preprocess", "-m", model, "--pictures", 1, "--rounds", 1)
    data = data_of(bench(*what, "--json", out), out)
    assert [target["met"] for target in data["targets"]] == [True]
    assert {kind["reference"]["count"] for kind in data["kinds"]} == {1}


def test_soak(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    valid = data_of(bench("soak", "-m", model, "--requests", 300, "--json", out), out)
    assert (valid["right"], valid["wrong"], valid["failed"]) == (300, 0, {})
    hostile = data_of(bench("soak", "-m", model, "--minutes", 0.05, "--json", out), out)
    assert hostile["right"] > 0
    assert hostile["attacks"]


def test_a_missed_target_fails_the_soak(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [Target(name="the process lives", met=False, found="it died")]
    what: dict[str, Any] = {"command": "", "model_id": "", "settings": {}, "tables": []}
    report = Report(**what, machine=this_machine(), targets=targets)
    monkeypatch.setattr("benchmarks.soak.bench_soak", lambda options, progress: report)
    done = bench("soak", "-m", model)
    assert (done.exit_code, "MISSED" in done.output) == (1, True)


@pytest.mark.parametrize(
    "mistake", [("--plot", "plot.txt"), ("--json", "/dev/null/x.json"), ("-m", "/nowhere")]
)
def test_mistakes_are_told_before_measuring(model: Path, mistake: tuple[str, str]) -> None:
    assert isinstance(bench("serve", "-m", model, *mistake).exception, StartupError)
