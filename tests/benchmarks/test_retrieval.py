"""The retrieval benchmark on a small folder of drawn pictures, from the files to the report."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from benchmarks.cli import app
from benchmarks.retrieval import builds, fetch_art, unseen
from benchmarks.retrieval.artwork import Half, Piece, collect
from benchmarks.retrieval.builds import Relation
from benchmarks.retrieval.embedders import VIEWS, PerceptualHash, Vectors, embed_views
from benchmarks.retrieval.pictures import KINDS, Map, draw_set
from benchmarks.server_process import run_server
from bot import looks
from exporter.training import art as drawn_art
from exporter.training import mapart
from inference.artifact import Artifact, Calibration, Thresholds, replace_manifest
from inference.errors import StartupError

SOURCES = 6
EACH = 7


def quiet(what: str, done: float) -> None:
    pass


@pytest.fixture(scope="module")
def art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("art")
    for number in range(SOURCES * EACH):
        place = folder / f"source{number % SOURCES}" / "pictures"
        place.mkdir(parents=True, exist_ok=True)
        picture = drawn_art.draw(number + 400, (100 + number, 120))
        Image.fromarray(picture).save(place / f"{number}.png", compress_level=1)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pieces(art: Path, cache: Path) -> list[Piece]:
    return collect(art, cache / "artwork.json", 1, quiet)


@pytest.fixture(scope="module")
def draw(art: Path, pieces: list[Piece]) -> Callable[[Path, int], list[Map]]:
    def drawn(cache: Path, count: int) -> list[Map]:
        what = {"half": Half.TEST, "count": count, "seed": 3, "workers": 1, "progress": quiet}
        return draw_set(art, pieces, cache, **what)  # type: ignore[arg-type]

    return drawn


def test_useless_files_and_doubles_are_left_out(art: Path, tmp_path: Path) -> None:
    folder = tmp_path / "art"
    shutil.copytree(art, folder)
    before = collect(art, tmp_path / "a.json", 1, quiet)
    shutil.copy(folder / before[0].path, folder / "source5" / "copy.png")
    Image.new("RGB", (200, 200), "teal").save(folder / "blank.png")
    Image.fromarray(drawn_art.draw(1, (20, 20))).save(folder / "tiny.png")
    Image.fromarray(drawn_art.draw(1, (300, 60))).save(folder / "strip.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")

    after = collect(folder, tmp_path / "b.json", 1, quiet)

    assert len(before) > SOURCES * EACH * 0.7
    assert after == before


def test_the_list_is_kept_until_the_folder_changes(art: Path, tmp_path: Path) -> None:
    folder, cache = tmp_path / "art", tmp_path / "list.json"
    shutil.copytree(art / "source0", folder / "source0")
    said: list[str] = []

    first = collect(folder, cache, 1, lambda what, done: said.append(what))
    assert said
    said.clear()
    assert collect(folder, cache, 1, lambda what, done: said.append(what)) == first
    assert not said
    Image.fromarray(drawn_art.draw(77, (128, 128))).save(folder / "source0" / "new.png")
    assert len(collect(folder, cache, 1, quiet)) == len(first) + 1


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="make retrieval-art"):
        collect(tmp_path, tmp_path / "list.json", 1, quiet)


def test_halves_share_no_folder(pieces: list[Piece]) -> None:
    halves = {half: {Path(one.path).parent for one in pieces if one.half is half} for half in Half}
    assert halves[Half.TEST]
    assert halves[Half.VALIDATION]
    assert not halves[Half.TEST] & halves[Half.VALIDATION]


def test_a_longer_plan_begins_as_a_shorter_one() -> None:
    many = [Piece(f"s{number % 5}/{number // 9}/{number}.png", 99, 99) for number in range(900)]
    short, long = (builds.plan(many, Half.TEST, count, 1) for count in (20, 300))

    assert long[:20] == short
    assert [build.number for build in long] == list(range(300))
    assert {build.relation for build in long} == set(Relation)
    alone = [build for build in long if build.relation is Relation.ALONE]
    assert len({build.piece for build in alone}) == len(alone)
    assert {build.piece.half for build in long} == {Half.TEST}
    with pytest.raises(StartupError, match="--maps"):
        builds.plan(many, Half.TEST, 5000, 1)


@pytest.mark.parametrize("relation", Relation)
def test_maps_show_the_games_colours_and_differ(
    relation: Relation, art: Path, pieces: list[Piece]
) -> None:
    colours = {tuple(colour) for colour in mapart.palette(mapart.Blocks.STAIRCASE).tolist()}
    members = 1 if relation is Relation.ALONE else 3
    maps = [
        builds.draw(art, builds.Build(member, pieces[0], relation, 0, 8 * 4 + member, 5))
        for member in range(members)
    ]
    thumbnails = []
    for pixels in maps:
        height, width = pixels.shape[:2]
        assert (height % 128, width % 128) == (0, 0)
        assert max(height, width) <= 384
        assert {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()} <= colours
        thumbnails.append(
            np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BOX), float)
        )
    if relation is not Relation.SERIES:  # a series shows different pieces; here it is one
        for first in range(members):
            for second in range(first):
                assert np.abs(thumbnails[first] - thumbnails[second]).mean() > 8


def test_a_set_is_drawn_once_and_goes_on_where_it_was(
    draw: Callable[[Path, int], list[Map]], cache: Path, tmp_path: Path
) -> None:
    maps = draw(cache, 4)
    written = {kind: [one.files[kind].read_bytes() for one in maps] for kind in KINDS}
    times = [one.files["post"].stat().st_mtime_ns for one in maps]
    facts = maps[2].files["gallery"].parents[1] / "facts" / "00002.json"
    facts.unlink()
    maps[2].files["poor"].write_bytes(b"interrupted")

    again = draw(cache, 5)

    assert again[:4] == maps
    assert {kind: [one.files[kind].read_bytes() for one in maps] for kind in KINDS} == written
    kept = [one.files["post"].stat().st_mtime_ns for one in maps]
    assert [old == new for old, new in zip(times, kept, strict=True)] == [True, True, False, True]
    elsewhere = draw(tmp_path, 1)
    assert elsewhere[0].files["poor"].read_bytes() == written["poor"][0]


def test_what_training_never_draws_is_drawn_once_and_of_every_family(
    art: Path, pieces: list[Piece], tmp_path: Path
) -> None:
    plan = builds.plan(pieces, Half.TEST, 7, 3)

    def drawn() -> list[Path]:
        return unseen.draw_unseen(art, plan, tmp_path, seed=3, workers=1, progress=quiet)

    files = drawn()
    assert {unseen.family_of(number) for number in range(6)} == set(unseen.Family)
    assert unseen.family_of(6) is unseen.family_of(0)
    written = [file.read_bytes() for file in files]
    assert len(set(written)) == 7
    with Image.open(files[2]) as grey:  # of one colour
        pixels = np.asarray(grey.convert("RGB"), np.float32)
    assert np.linalg.matrix_rank(pixels.reshape(-1, 3), tol=0.1 * np.linalg.norm(pixels)) == 1
    times = [file.stat().st_mtime_ns for file in files]
    files[4].unlink()
    assert [file.read_bytes() for file in drawn()] == written
    kept = [old == file.stat().st_mtime_ns for old, file in zip(times, files, strict=True)]
    assert kept == [number != 4 for number in range(7)]


def test_the_hash_tells_pictures_apart(tmp_path: Path) -> None:
    hashing = PerceptualHash()
    pictures = [Image.fromarray(drawn_art.draw(seed, (256, 256))) for seed in range(8)]
    rows: dict[str, list[bytes]] = {"png": [], "jpeg": []}
    for picture in pictures:
        picture.save(tmp_path / "a.png")
        picture.resize((300, 200)).save(tmp_path / "a.jpg", quality=70)
        rows["png"].append((tmp_path / "a.png").read_bytes())
        rows["jpeg"].append((tmp_path / "a.jpg").read_bytes())
    first, second = (np.stack(list(hashing.embed(iter(rows[kind])))) for kind in ("png", "jpeg"))

    assert np.allclose(np.linalg.norm(first, axis=1), 1)
    similar = first @ second.T
    assert (similar.argmax(axis=1) == np.arange(8)).all()
    assert np.diag(similar).min() > 0.75
    assert (similar[~np.eye(8, dtype=bool)] < 0.6).all()


def test_the_view_of_looks_embeds_what_find_embeds(tmp_path: Path) -> None:
    hashing, views = PerceptualHash(), VIEWS["looks"]
    picture = tmp_path / "a.png"
    Image.fromarray(drawn_art.draw(5, (240, 320))).save(picture)

    (found,) = embed_views(hashing, [picture], views, tmp_path / "a.npy", lambda share: None)

    data = picture.read_bytes()
    shipped = np.stack(list(hashing.embed(iter([data, *looks.variants(data)]))))
    assert (views.combine, views.discount) == ("agreed", looks.DISCOUNT)
    assert found.shape == shipped.shape
    # The variants that are shipped are JPEGs: some of their 256 bits differ.
    assert (found * shipped).sum(axis=1).min() > 0.95
    similar = found @ shipped.T
    # More contrast changes no bit.
    shapes = [(one.box, one.degrees) for one in views.variants]
    unlike = np.array([[one != other for other in shapes] for one in shapes])
    assert similar[unlike].max() < 0.9


class Interrupted(PerceptualHash):
    """Hashes a few pictures, then the user has had enough."""

    def __init__(self, patience: int) -> None:
        super().__init__()
        self.hashed = 0
        self.patience = patience

    def hash(self, data: bytes) -> Vectors:
        if self.hashed == self.patience:
            raise KeyboardInterrupt
        self.hashed += 1
        return super().hash(data)


def test_what_an_interrupted_run_has_embedded_is_not_embedded_again(tmp_path: Path) -> None:
    files, cache = [], tmp_path / "cache" / "a.npy"
    for number in range(4):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(drawn_art.draw(number, (64, 64))).save(files[-1])
    views, others = VIEWS["mean2"], VIEWS["max2"]
    shown = len(views.variants)
    told: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        embed_views(Interrupted(2 * shown + 1), files, views, cache, told.append)

    rest = Interrupted(99)
    found = embed_views(rest, files, views, cache, told.append)

    assert rest.hashed == 2 * shown
    assert told[-1] == 1
    assert np.array_equal(found, embed_views(rest, files, views, tmp_path / "b.npy", told.append))
    # Averaged or not, the vectors are the same ones.
    assert views.file_name("poor") == others.file_name("poor") != VIEWS["full"].file_name("poor")
    each = embed_views(Interrupted(0), files[:3], others, cache, told.append)
    assert each.shape == (3, shown, 256)
    assert np.allclose(
        each.mean(axis=1) / np.linalg.norm(each.mean(axis=1), axis=1)[:, None], found[:3, 0]
    )


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["retrieval", *map(str, arguments)])


def test_the_whole_benchmark(model: Path, art: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "retrieval.json"
    what = ("--art", art, "--cache", cache, "--out", tmp_path, "--json", out, "-m", model)
    sizes = ("--maps", 8, "--distractors", 5, "--seed", 3, "--workers", 1, "--failures", 3)
    views = ("--views", "full", "--views", "max2", "--views", "looks")
    done = run(*what, *sizes, "--baseline", "phash", *views)

    # The tiny model reaches no target.
    assert done.exit_code == 1, done.output
    assert "MISSED" in done.output
    found = json.loads(out.read_text())
    runs = {one["name"]: one for one in found["data"]["runs"]}
    assert len(runs) == 4
    assert [name for name in runs if name.startswith("phash")] == ["phash 16x16"]
    for one in runs.values():
        for task, crowded in zip(one["tasks"], one["with_distractors"], strict=True):
            assert task["queries"] == 8
            assert task["recall@1"]["low"] <= task["recall@1"]["value"] <= task["recall@3"]["value"]
            assert crowded["recall@10"]["value"] <= task["recall@10"]["value"]
    assert len(found["data"]["unseen"]) == len(runs) * (1 + len(unseen.Family))
    assert [row[2] for row in found["data"]["unseen"][:: len(runs)]] == [8, 2, 2, 1, 1, 1, 1]
    assert runs["phash 16x16"]["tasks"][0]["recall@1"]["value"] > 1 / 8
    assert {"recall.png", "similarities.png", "examples.png"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert len(list((tmp_path / "failures").glob("poor-*.jpg"))) == 1
    # The second time nothing is drawn or embedded anew, and the figures are the same.
    again = run(*what, *sizes, "--baseline", "phash")
    repeated = json.loads(out.read_text())["data"]["runs"]
    assert again.exit_code == 1
    assert [one["tasks"] for one in repeated] == [runs[one["name"]]["tasks"] for one in repeated]


def test_a_running_server_gives_the_same_figures(
    model: Path, art: Path, cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "retrieval.json"
    sizes = ("--half", "validation", "--maps", 3, "--workers", 1, "--failures", 0)
    with run_server(model) as server:
        # The cache is not shared: the server has to embed by itself.
        where = ("--art", art, "--cache", tmp_path / "cache", "--out", tmp_path, "--json", out)
        done = run(*where, *sizes, "--server", server.address)
    assert done.exit_code == 0, done.output
    served = json.loads(out.read_text())["data"]["runs"]
    local = run("--art", art, "--cache", tmp_path / "local", "--out", tmp_path, "--json", out,
                "-m", model, *sizes)  # fmt: skip
    assert local.exit_code == 0, local.output
    assert [one["tasks"] for one in served] == [
        one["tasks"] for one in json.loads(out.read_text())["data"]["runs"]
    ]


def test_no_threshold_is_written_for_a_model_that_cannot_be_trusted(
    model: Path, art: Path, cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    before = (folder / "manifest.json").read_bytes()
    what = ("--art", art, "--cache", cache, "--out", tmp_path, "-m", folder, "--failures", 0)

    done = run(*what, "--maps", 8, "--seed", 3, "--workers", 1, "--calibrate")

    assert isinstance(done.exception, StartupError)
    assert "left as it is" in str(done.exception)
    assert (folder / "manifest.json").read_bytes() == before


def test_thresholds_enter_the_manifest_and_change_no_id(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    artifact = Artifact.load(folder)
    measured = Calibration(
        same_precision=0.99, similar_precision=0.7, nothing_precision=None,
        same_false_match_rate=0.01, similar_false_match_rate=0.1, same_found=0.6,
        queries=100, archive=50, pictures="a test",
    )  # fmt: skip
    found = Thresholds(same=0.8, similar=0.6, measured=measured)

    replace_manifest(artifact, artifact.manifest.model_copy(update={"thresholds": found}))

    read = Artifact.load(folder)
    assert read.manifest.thresholds == found
    assert read.manifest.model_id == artifact.manifest.model_id
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.onnx"]


@pytest.mark.parametrize(
    "mistake", [("--views", "sideways"), ("-m", "/nowhere"), ("--art", "/nowhere")]
)
def test_mistakes_are_told_at_once(art: Path, tmp_path: Path, mistake: tuple[str, str]) -> None:
    done = run("--art", art, "--out", tmp_path, "--cache", tmp_path / "cache", *mistake)
    assert done.exit_code != 0
    assert not (tmp_path / "cache").exists()


def test_what_is_fetched_is_artwork() -> None:
    source = fetch_art.Source("p", "", "", frozenset({"units"}), animated=True)
    wanted = {
        "usr/units/elf.png": True,
        "usr/units/elf-attack-1.png": True,
        "usr/units/elf-attack-2.png": False,
        "usr/units/elf12.png": False,
        "usr/icons/elf.png": False,
        "usr/units/gui/elf.png": False,
        "usr/units/elf.txt": False,
    }
    assert {name: source.wants(Path(name), 5000) for name in wanted} == wanted
    assert not source.wants(Path("usr/units/elf.png"), 100)
    assert len({one.package for one in fetch_art.SOURCES}) == len(fetch_art.SOURCES)
