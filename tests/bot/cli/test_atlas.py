"""The commands on an archive in Atlas, as people run them."""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bot.cli.main import app
from bot.moving import models
from tests.bot.cli.test_commands import assert_fails, maps, run
from tests.bot.cli.toy import DIMENSIONS, ToyProcess
from tests.bot.conftest import Atlas

OLD, NEW = "toy@43602d44172a", "new@43602d44172a"


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


def test_moving_to_another_model(
    process: ToyProcess,
    tmp_path: Path,
    atlas: Atlas,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "_LATE_POSTS_S", 0.0)
    folder = maps(tmp_path / "export", 12)
    asked = next(folder.rglob("007.png"))
    assert mapseek("index", folder).exit_code == 0
    assert mapseek("archive", "init").exit_code == 0
    new = ToyProcess("--name", "new")
    reembed = ("archive", "reembed", "--server", new.address)
    kept = asked.read_bytes()
    asked.unlink()
    stopped = mapseek(*reembed)
    assert stopped.exit_code == 1
    assert "Not embedded (1): its file cannot be read" in stopped.stdout
    assert models_of(atlas, database) == {OLD: 12, NEW: 11}
    asked.write_bytes(kept)
    assert model_found(asked) == OLD, "searches stay on the old one until all is embedded"
    done = mapseek(*reembed)
    assert done.exit_code == 0, done.output
    assert "1 pictures have got a vector" in done.stdout
    assert models_of(atlas, database) == {OLD: 12, NEW: 12}
    assert f"searched with {NEW}" in mapseek("find", asked).stderr
    monkeypatch.setenv("MAPSEEK_NEXT_SERVER", new.address)
    # Vectors of both models lie in one collection and one index, and never meet in a query.
    assert model_found(asked) == NEW
    (searched,) = atlas.proxy.searches()[-1:]
    assert NEW in json.dumps(searched["filter"])
    assert mapseek("archive", "switch", OLD).exit_code == 0
    assert model_found(asked) == OLD
    assert mapseek("archive", "switch", NEW).exit_code == 0
    assert "Dropped 12 vectors" in mapseek("archive", "drop", OLD).stderr
    assert models_of(atlas, database) == {NEW: 12}
    assert model_found(asked) == NEW
    new.close()


def mapseek(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def model_found(asked: Path) -> str:
    """The model of an answer, which is the picture itself."""
    done = mapseek("find", asked, "--json", "--limit", 1)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["matches"][0]["score"] == pytest.approx(1, abs=1e-5)
    return str(answer["model"])


def models_of(atlas: Atlas, database: str) -> dict[str, int]:
    """What lies in the database itself."""
    with atlas.collection(database) as collection:
        return dict(Counter(one["model_id"] for one in collection.find()))


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
