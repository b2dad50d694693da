"""The commands on an archive in Atlas, as people run them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bot.cli.main import app
from tests.bot.cli.test_commands import assert_fails, maps, run
from tests.bot.cli.toy import DIMENSIONS, ToyProcess
from tests.bot.conftest import Atlas


@pytest.fixture(autouse=True)
def in_atlas(atlas: Atlas, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPSEEK_ATLAS_URI", atlas.proxy.uri)
    monkeypatch.setenv("MAPSEEK_ATLAS_DATABASE", database)
    monkeypatch.setenv("MAPSEEK_ATLAS_TIMEOUT_S", "60")


def test_from_nothing_to_a_find(process: ToyProcess, tmp_path: Path, database: str) -> None:
    folder = maps(tmp_path / "export", 12)
    indexed = run("index", folder)
    assert indexed.returncode == 0, indexed
    assert indexed.stdout == f"12 stored. The archive is Atlas {database}.images.\n"
    asked = next(folder.rglob("007.png"))
    failed = run("find", asked)
    assert_fails(failed, 1, f"mapseek archive init --dimensions {DIMENSIONS}")
    set_up = run("archive", "init")
    assert (set_up.returncode, set_up.stdout) == (0, ""), set_up
    assert f"mapseek_{DIMENSIONS} answers" in set_up.stderr
    found = run("find", asked, "--json")
    assert found.returncode == 0, found
    best = json.loads(found.stdout)["matches"][0]
    assert best["score"] == pytest.approx(1, abs=1e-5)
    day = best["posted_at"][:10]
    assert run("find", asked, "--json", "--since", day, "--until", day).returncode == 0
    assert_fails(run("find", asked, "--since", "2999-12-31"), 1, "no picture in that part")
    assert not (tmp_path / "mapseek.db").exists()


def test_a_file_that_is_named_goes_before_the_settings(database: str) -> None:
    counted = CliRunner().invoke(app, ["stats", "--json"])
    assert json.loads(counted.stdout)["pictures"] == 0
    named = CliRunner().invoke(app, ["stats", "--archive", "other.db"])
    assert "There is no archive at other.db" in named.output


@pytest.mark.parametrize(
    "uri", ["mongodb://me:hunter2@127.0.0.1:1/", "mongodb+srv://me:hunter2@x.invalid/"]
)
def test_a_password_stays_out_of_every_sentence(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MAPSEEK_ATLAS_URI", uri)
    monkeypatch.setenv("MAPSEEK_ATLAS_TIMEOUT_S", "0.5")
    monkeypatch.setenv("MAPSEEK_ATLAS_RETRY_S", "0")
    for command in (["stats"], ["archive", "status"], ["settings"]):
        done = CliRunner().invoke(app, command)
        assert done.output
        assert "hunter2" not in done.output
        assert "Traceback" not in done.output
