"""What is found by one look and by several, when there are several, and what scores are called."""

import io
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from PIL import Image

from bot import looks
from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import ArchiveError, Entry, Match, Picture, PictureKey, Query, Vector
from bot.cli import commandline
from bot.importer.source import Kind
from bot.looks import DISCOUNT, SHARPNESS, VARIANTS, agreed
from bot.search import (
    EVERYWHERE,
    Look,
    Scope,
    Verdict,
    find,
    find_text,
    judge,
    nearest,
    nearest_or_again,
)
from inference.client import ClientSettings, Embedded, EmbeddingClient, Thresholds, Timings
from tests.bot.cli.toy import ToyProcess, ToyServer

THRESHOLDS = Thresholds(same=0.9, similar=0.6)
MODEL = "toy@000000000000"


class Watched(EmbeddedArchive):
    """An archive that notes what it is asked, and what it answered."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.queries: list[Query] = []
        self.answers: list[list[Match]] = []
        self.refuses: Callable[[Query], bool] = lambda query: False

    async def search(self, query: Query) -> list[Match]:
        self.queries.append(query)
        if self.refuses(query):
            raise ArchiveError("Not this one.")
        self.answers.append(await super().search(query))
        return self.answers[-1]


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Watched]:
    async with Watched(tmp_path / "a.db") as archive:
        yield archive


def entry(number: int, vector: Vector, *, day: int = 1, model_id: str = MODEL) -> Entry:
    picture = Picture(
        key=PictureKey(message_id=str(number), attachment_id="1"),
        guild_id="1",
        channel_id="10",
        user_id="42",
        message_link="",
        image_url="map.png",
        posted_at=datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=day),
        width=1,
        height=1,
        file_size=1,
        content_hash=f"{number:064x}",
    )
    return Entry(picture=picture, model_id=model_id, embedding=vector)


def unit(*values: float) -> Vector:
    vector = np.array(values, np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def look(vector: Vector, discount: float = 0.0) -> Look:
    timings = Timings(decode_ms=0, queue_ms=0, inference_ms=0, batch_size=1)
    return Look(Embedded(embedding=vector, model_id=MODEL, timings=timings), discount)


def ids(matches: Sequence[Match]) -> list[int]:
    return [int(match.picture.key.message_id) for match in matches]


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (1.0, Verdict.SAME),
        (0.9, Verdict.SAME),
        (0.8999, Verdict.SIMILAR),
        (0.6, Verdict.SIMILAR),
        (0.5999, Verdict.NOTHING),
        (-1.0, Verdict.NOTHING),
    ],
)
def test_scores_in_words(score: float, verdict: Verdict) -> None:
    assert judge(score, THRESHOLDS) is verdict
    assert judge(score, None) is None


async def test_one_look_is_one_search(archive: Watched) -> None:
    await archive.upsert_many([entry(n, unit(1, n, 0)) for n in range(5)])
    scope = Scope(limit=3, guild_id="1", channel_ids=frozenset({"10"}), exclude_message_id="2")
    found = await nearest(archive, [look(unit(1, 1, 0))], scope)
    assert found is archive.answers[0]
    assert ids(found) == [1, 3, 4]
    assert len(archive.queries) == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limit", [1, 4, 60])
async def test_what_several_looks_agree_on_counts_less_their_discounts(
    archive: Watched, seed: int, limit: int
) -> None:
    rng = np.random.default_rng(seed)
    # Every vector three times, so that much ties.
    vectors = [unit(*rng.normal(size=4)) for _ in range(15)] * 3
    days = rng.permutation(len(vectors)).tolist()
    await archive.upsert_many(
        [entry(n, v, day=day) for n, (v, day) in enumerate(zip(vectors, days, strict=True))]
    )
    asked = [look(unit(*rng.normal(size=4)), discount) for discount in (0.0, 0.2, 0.2)]

    found = await nearest(archive, asked, Scope(limit=limit))

    def first(scores: Vector) -> list[int]:
        # Of equal vectors the scores may differ in their last digits here.
        order = sorted(range(len(vectors)), key=lambda n: (-round(float(scores[n]), 5), days[n]))
        return order[:limit]

    total = np.zeros(len(vectors))
    for one in asked:
        seen = np.stack(vectors) @ one.embedded.embedding - one.discount
        total[first(seen)] += np.exp(SHARPNESS * seen[first(seen)])
    scores = np.minimum(np.log(total, where=total > 0, out=np.full_like(total, -9)) / SHARPNESS, 1)
    assert ids(found) == first(scores)
    assert [match.score for match in found] == pytest.approx(scores[first(scores)], abs=1e-5)


async def test_what_two_looks_find_comes_before_what_one_finds_as_well(archive: Watched) -> None:
    await archive.upsert_many([entry(1, unit(1, 0, 0)), entry(2, unit(0, 1, 1))])
    asked = [look(unit(0.9, 0, 0.4)), look(unit(0, 0.6, 0.8)), look(unit(0, 0.8, 0.6))]
    best = max(float(unit(0, 1, 1) @ one.embedded.embedding) for one in asked)
    (agreed, lonely), together = await nearest(archive, asked, EVERYWHERE), math.log(2) / SHARPNESS
    assert (ids([agreed]), ids([lonely])) == ([2], [1])
    assert agreed.score == pytest.approx(min(1, best + together), abs=1e-3)


def test_no_look_says_more_than_the_same() -> None:
    for count in range(1, 10):
        same = float(agreed(np.full(count, 0.5)))
        assert same == pytest.approx(0.5 + math.log(count) / SHARPNESS)
    assert float(agreed(np.array([0.8, 0.3, 0.1]))) == pytest.approx(0.8, abs=1e-6)


async def test_among_equal_scores_of_different_looks_the_oldest_post_is_first(
    archive: Watched,
) -> None:
    await archive.upsert_many([entry(1, unit(1, 0), day=5), entry(2, unit(0, 1), day=4)])
    found = await nearest(archive, [look(unit(1, 0)), look(unit(0, 1))], EVERYWHERE)
    assert ids(found) == [2, 1]
    assert [match.score for match in found] == [1, 1]


async def test_a_discount_is_no_gain_for_what_the_first_look_sees_better(archive: Watched) -> None:
    await archive.upsert_many([entry(1, unit(1, 0)), entry(2, unit(0, 1))])
    asked = [look(unit(1, 0)), look(unit(1, 0), 0.05), look(unit(0, 1), 0.05)]
    found = await nearest(archive, asked, EVERYWHERE)
    assert ids(found) == [1, 2]
    assert [match.score for match in found] == pytest.approx([1, 0.95])


async def test_a_search_that_fails_is_told(archive: Watched) -> None:
    await archive.upsert_many([entry(1, unit(1, 0))])
    archive.refuses = lambda query: bool(query.embedding[0] == 0)
    with pytest.raises(ArchiveError, match=r"Not this one\."):
        await nearest(archive, [look(unit(1, 0)), look(unit(0, 1))], EVERYWHERE)


async def test_a_trace_tells_how_many_looks_there_were(archive: Watched) -> None:
    await archive.upsert_many([entry(1, unit(1, 0))])
    tracer = TracerProvider(sampler=ALWAYS_ON).get_tracer("test")
    for more in (0, 3):
        again = Again(*[look(unit(1, 0))] * more)
        with tracer.start_as_current_span("find") as span:
            await nearest_or_again(
                archive, look(unit(0, 1)), EVERYWHERE, thresholds=THRESHOLDS, again=again
            )
        assert isinstance(span, ReadableSpan)
        assert span.attributes == {"mapseek.looks": 1 + more}


class Again:
    """Looks again, and counts how often."""

    def __init__(self, *more: Look) -> None:
        self.times = 0
        self.more = more

    async def __call__(self) -> Sequence[Look]:
        self.times += 1
        return self.more


async def test_where_the_first_look_leaves_doubt_there_are_more(archive: Watched) -> None:
    await archive.upsert_many([entry(1, unit(1, 0)), entry(2, unit(0.2, 1))])
    first, again = look(unit(1, 0.9)), Again(look(unit(0.2, 1), 0.05))
    taken, found = await nearest_or_again(
        archive, first, EVERYWHERE, thresholds=Thresholds(same=0.95, similar=0.5), again=again
    )
    assert taken == (first, *again.more)
    assert ids(found) == [2, 1]
    assert found[0].score == pytest.approx(0.95, abs=1e-3)
    assert len(archive.queries) == 2
    assert found == await nearest(archive, taken, EVERYWHERE)


@pytest.mark.parametrize(
    ("same", "asked"), [(0.9, unit(1, 0)), (None, unit(0, 1)), (0.9, unit(1, 0.1))]
)
async def test_without_doubt_there_is_one_look(
    archive: Watched, same: float | None, asked: Vector
) -> None:
    await archive.upsert_many([entry(1, unit(1, 0))])
    again = Again(look(unit(1, 0)))
    thresholds = None if same is None else Thresholds(same=same, similar=0.5)
    taken, found = await nearest_or_again(
        archive, look(asked), EVERYWHERE, thresholds=thresholds, again=again
    )
    assert (len(taken), again.times, len(archive.queries)) == (1, 0, 1)
    assert found is archive.answers[0]


async def test_where_nothing_is_to_be_found_there_is_one_look(archive: Watched) -> None:
    again = Again(look(unit(1, 0)))
    taken, found = await nearest_or_again(
        archive, look(unit(1, 0)), EVERYWHERE, thresholds=THRESHOLDS, again=again
    )
    assert (len(taken), again.times, found) == (1, 0, [])


async def test_where_no_variant_could_be_embedded_the_first_look_stands(archive: Watched) -> None:
    await archive.upsert_many([entry(1, unit(1, 0))])
    again = Again()
    taken, found = await nearest_or_again(
        archive, look(unit(0, 1)), EVERYWHERE, thresholds=THRESHOLDS, again=again
    )
    assert (len(taken), again.times, len(archive.queries)) == (1, 1, 1)
    assert found is archive.answers[0]


def squares(seed: int) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((120, 120), Image.Resampling.NEAREST)


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def beside(seed: int) -> bytes:
    """A map at the left, as in a screenshot that shows something else as well."""
    screenshot = Image.new("RGB", (200, 120), "orange")
    screenshot.paste(squares(seed), (0, 0))
    return encoded(screenshot)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, nothing comes too late."""
    monkeypatch.setattr(looks, "_PATIENCE_S", 60.0)


@pytest.mark.usefixtures("patient")
async def test_find_looks_at_a_picture_again_where_in_doubt(
    archive: Watched, server: ToyServer
) -> None:
    settings = ClientSettings(server=server.address, timeout_s=60)
    async with EmbeddingClient(settings) as client:
        thresholds = (await client.model()).thresholds
        vectors = [(await client.embed(encoded(squares(n)))).embedding for n in range(6)]
        await archive.upsert_many(
            [entry(n, v, model_id=server.model_id) for n, v in enumerate(vectors)]
        )
        embedded = server.engine.pictures
        once, looks = await find(client, archive, beside(3)), 1 + len(VARIANTS)
        assert server.engine.pictures == embedded + 1

        again = await find(client, archive, beside(3), thresholds=thresholds)
        assert server.engine.pictures == embedded + 1 + looks
        assert len(archive.queries) == 1 + looks
        assert ids(again)[0] == 3
        assert again[0].score == pytest.approx(1 - DISCOUNT, abs=2e-3)  # JPEG
        assert once[0].score < again[0].score

        known = await find(client, archive, encoded(squares(3)), thresholds=thresholds)
        assert known[0].score == pytest.approx(1)
        assert server.engine.pictures == embedded + 1 + looks + 1

        await find_text(client, archive, "something red")
        assert server.engine.pictures == embedded + 1 + looks + 1
        assert len(archive.queries) == 1 + looks + 1 + 1


@pytest.mark.usefixtures("patient")
def test_the_command_looks_again(
    process: ToyProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "maps").mkdir()
    for number in range(6):
        (tmp_path / "maps" / f"{number}.png").write_bytes(encoded(squares(number)))
    (tmp_path / "query.png").write_bytes(beside(3))
    archive, server = tmp_path / "maps.db", process.address
    commandline.index(
        tmp_path / "maps", kind=Kind.AUTO, media=None, guild=None, archive=archive, server=server
    )
    capsys.readouterr()
    commandline.find(
        tmp_path / "query.png",
        scope=Scope(limit=2),
        sheet=None,
        as_json=True,
        archive=archive,
        server=server,
    )
    first, second = json.loads(capsys.readouterr().out)["matches"]
    assert Path(first["image"]).name == "3.png"
    assert first["score"] == pytest.approx(1 - DISCOUNT, abs=2e-3)
    assert first["verdict"] == "similar"
    assert second["score"] < first["score"]
