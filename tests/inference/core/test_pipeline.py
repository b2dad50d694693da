import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inference import heap, providers
from inference.artifact import Artifact
from inference.engine import (
    Cores,
    Embeddings,
    EngineOptions,
    Pixels,
    load_image_engine,
    load_text_engine,
)
from inference.errors import (
    EngineLostError,
    EngineMemoryError,
    InferenceError,
    InvalidInputError,
    OverloadedError,
    ShuttingDownError,
    UnavailableError,
    UnsupportedError,
)
from inference.health import Health
from inference.lanes import Lane
from inference.pipeline import Limits, Pipeline
from inference.preprocess import Preprocessor
from inference.recovery import Pace
from inference.runs import Watch
from inference.threads import LaneThreads
from tests.inference.core.models import IMAGE_WEIGHTS, TEXT_WEIGHTS, expected, save_model
from tests.inference.core.pictures import encoded, preprocessor, scene
from tests.inference.server.fakes import GatedEngine, LetterCounter, decode, picture, until

INTERACTIVE, BULK = Lane.INTERACTIVE, Lane.BULK
ON_CPU = EngineOptions(provider="cpu", threads=1, max_batch=4)


@pytest.fixture
def engine() -> Iterator[GatedEngine]:
    engine = GatedEngine()
    yield engine
    engine.gate.set()  # no thread outlives its test


@asynccontextmanager
async def running(pipeline: Pipeline) -> AsyncIterator[asyncio.Task[None]]:
    serve = asyncio.create_task(pipeline.serve())
    yield serve
    await pipeline.close(grace_s=0.0)
    await serve


def around(engine: Any, *, preprocess: Any = decode, **options: Any) -> Pipeline:
    limits = Limits(**({"slots": 16, "reserved_slots": 4} | options.pop("limits", {})))
    return Pipeline(images=engine, preprocess=preprocess, limits=limits, **options)


def real(folder: Path) -> tuple[Pipeline, Preprocessor]:
    artifact = Artifact.load(folder)
    preprocess = preprocessor(artifact.manifest.preprocessing)
    engine = load_image_engine(artifact, ON_CPU)
    texts = load_text_engine(artifact, ON_CPU)
    return around(engine, preprocess=preprocess, texts=texts, limits={"slots": 64}), preprocess


class CoreEngine(GatedEngine):
    """An engine that can run a batch on each of its cores, each picture as its gate opens."""

    def __init__(self, cores: int) -> None:
        super().__init__()
        self.cores = Cores(cores, self._on_a_core)
        self.on_a_core: list[int] = []
        self.gates: dict[int, threading.Event] = {}

    def _on_a_core(self, pixels: Sequence[Pixels]) -> Embeddings:
        self.on_a_core += [int(one[0, 0, 0]) for one in pixels]
        return self.embed(pixels)

    def embed(self, pixels: Sequence[Pixels] | Pixels) -> Embeddings:
        embeddings = super().embed(pixels)
        for one in pixels:
            assert self.gates.get(int(one[0, 0, 0]), self.gate).wait(timeout=30)
        return embeddings


async def hold(engine: GatedEngine, pipeline: Pipeline) -> "asyncio.Task[Any]":
    """Closes the gate with one picture, number 1, in the engine."""
    engine.gate.clear()
    call = asyncio.create_task(pipeline.embed(picture(1), INTERACTIVE))
    await until(lambda: engine.seen != [])
    return call


def waiting(pipeline: Pipeline) -> int:
    return sum(batcher.waiting for batcher in pipeline._batchers())


@pytest.fixture(params=["each core", "one engine"])
def arranged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has real models share the cores by batches of their own, as small ones do, or not."""
    if request.param == "one engine":
        monkeypatch.setattr(providers, "_SMALL_MODEL_S", 0.0)


@pytest.mark.usefixtures("arranged")
async def test_pictures_and_texts_of_many_callers_each_get_their_own_embedding(
    tmp_path: Path,
) -> None:
    pipeline, preprocess = real(save_model(tmp_path, text=True))
    files = [encoded(scene(20 + n, 40 - n), kind) for n in range(8) for kind in ("PNG", "JPEG")]
    texts = ["a map", "b", "map map b"]
    async with running(pipeline):
        await pipeline.warm_up()
        found = await asyncio.gather(
            *(pipeline.embed(data, list(Lane)[n % 2]) for n, data in enumerate(files))
        )
        said = await asyncio.gather(*(pipeline.embed_text(text, INTERACTIVE) for text in texts))

    wanted = expected(np.stack([preprocess(data) for data in files]), IMAGE_WEIGHTS)
    np.testing.assert_allclose([one.embedding for one in found], wanted, atol=1e-5)
    ids = [[1, 3, 5, 2, 0, 0], [1, 4, 2, 0, 0, 0], [1, 5, 5, 4, 2, 0]]
    wanted = expected(np.array(ids), TEXT_WEIGHTS)
    np.testing.assert_allclose([one.embedding for one in said], wanted, atol=1e-5)
    assert all(1 <= one.batch_size <= 4 for one in (*found, *said))
    assert all(min(one.decode_s, one.queue_s, one.inference_s) >= 0 for one in (*found, *said))
    assert pipeline.inside == 0


@pytest.mark.usefixtures("arranged")
async def test_a_bad_picture_fails_alone_and_leaves_its_slot(tmp_path: Path) -> None:
    pipeline, _ = real(save_model(tmp_path))
    good = encoded(scene(30, 30), "PNG")
    async with running(pipeline):
        found = await asyncio.gather(
            *(pipeline.embed(data, BULK) for data in (good, good[:99], b"", good)),
            return_exceptions=True,
        )

    assert [type(one).__name__ for one in found] == [
        "Embedded",
        "InvalidInputError",
        "InvalidInputError",
        "Embedded",
    ]
    assert pipeline.inside == 0
    assert pipeline.healthy


async def test_a_picture_that_the_model_cannot_embed_spoils_no_other(tmp_path: Path) -> None:
    pipeline, _ = real(save_model(tmp_path))
    good, black = encoded(scene(30, 30), "PNG"), encoded(Image.new("RGB", (9, 9)), "PNG")
    async with running(pipeline):
        found = await asyncio.gather(
            *(pipeline.embed(data, BULK) for data in (good, black, good)), return_exceptions=True
        )

    assert isinstance(found[1], InferenceError)
    assert "no numbers" in str(found[1])
    assert not any(isinstance(one, BaseException) for one in (found[0], found[2]))


async def test_a_batch_that_does_not_fit_is_split_until_it_does(tmp_path: Path) -> None:
    tower = load_image_engine(Artifact.load(save_model(tmp_path, hungry=True)), ON_CPU)

    class Held(GatedEngine):
        def embed(self, pixels: Sequence[Pixels] | Pixels) -> Embeddings:
            super().embed(pixels)
            return tower.embed(pixels)

    held, told = Held(), []
    pipeline = around(
        held,
        preprocess=preprocessor(Artifact.load(tmp_path).manifest.preprocessing),
        limits={"failures_allowed": 0},
        on_health=lambda *flip: told.append(flip),
    )
    data = encoded(scene(30, 30), "PNG")
    held.gate.clear()
    async with running(pipeline):
        calls = [asyncio.create_task(pipeline.embed(data, INTERACTIVE)) for _ in range(5)]
        await until(lambda: len(held.computed) + waiting(pipeline) == 5)
        held.gate.set()
        found = await asyncio.gather(*calls)

    assert [len(batch) for batch in held.seen[-2:]] == [1, 1]
    assert max(len(batch) for batch in held.seen) > 1
    assert {one.batch_size for one in found} == {1}
    assert told == []  # that is no failure


@pytest.mark.usefixtures("arranged", "no_collector")
@pytest.mark.parametrize("way", ["alone", "of a stream", "in a batch"])
async def test_nothing_holds_a_picture_that_was_answered(tmp_path: Path, way: str) -> None:
    pipeline, _ = real(save_model(tmp_path))

    async def answer(files: list[bytes]) -> None:
        if way == "in a batch":
            await pipeline.embed_all(files, INTERACTIVE, name="images")
        else:
            for file in files:
                await pipeline.embed(file, BULK, wait=way == "of a stream")

    sound, damaged = encoded(scene(200, 90), "PNG"), b"no picture" * 10
    async with running(pipeline):
        held = sys.getrefcount(sound), sys.getrefcount(damaged)
        await answer([sound, sound])
        with pytest.raises(InvalidInputError):
            await answer([sound, damaged])
        # Threads and loops let go of it when they are done, which is after the answer.
        await until(lambda: (sys.getrefcount(sound), sys.getrefcount(damaged)) == held)


async def test_a_full_server_refuses_at_once_and_lets_streams_wait(
    engine: GatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = around(engine, limits={"slots": 3, "reserved_slots": 1})
    tidied: list[int] = []
    monkeypatch.setattr(heap, "give_back_free_pieces", lambda: tidied.append(pipeline.inside))
    async with running(pipeline):
        first = await hold(engine, pipeline)
        calls = [first, asyncio.create_task(pipeline.embed(picture(2), BULK))]
        await until(lambda: pipeline.inside == 2)
        calls.append(asyncio.create_task(pipeline.embed(picture(3), BULK)))
        await until(lambda: pipeline.inside == 3)
        with pytest.raises(OverloadedError) as refused:
            await pipeline.embed(picture(4), INTERACTIVE)
        assert refused.value.retry_after_ms > 0
        calls.append(asyncio.create_task(pipeline.embed(picture(5), BULK, wait=True)))
        engine.gate.set()
        answers = await asyncio.gather(*calls)
        await until(lambda: bool(tidied))

    assert [int(one.embedding.argmax()) for one in answers] == [1, 2, 3, 5]
    assert 4 not in engine.computed
    assert tidied == [0], "the memory of a crowd is given back when the crowd is gone"


async def test_a_caller_that_leaves_gives_its_slot_back_and_is_not_computed(
    engine: GatedEngine,
) -> None:
    pipeline = around(engine)
    async with running(pipeline):
        first = await hold(engine, pipeline)
        gone, stays = (asyncio.create_task(pipeline.embed(picture(n), BULK)) for n in (2, 3))
        await until(lambda: waiting(pipeline) == 2)
        gone.cancel()
        first.cancel()  # even while it is being computed
        await until(lambda: pipeline.inside == 1)
        engine.gate.set()
        assert int((await stays).embedding.argmax()) == 3

    assert engine.computed == [1, 3]
    assert gone.cancelled()
    assert first.cancelled()


async def test_a_caller_that_leaves_before_a_decode_thread_is_free_is_not_decoded(
    engine: GatedEngine,
) -> None:
    gate, decoded = threading.Event(), []

    def slow(data: bytes) -> Pixels:
        decoded.append(data[0])
        assert gate.wait(timeout=30)
        return decode(data)

    pipeline = around(engine, preprocess=slow, limits={"decode_threads": 1})
    decoders = pipeline._decoders
    assert decoders is not None
    async with running(pipeline):
        calls = [asyncio.create_task(pipeline.embed(picture(n), BULK)) for n in (1, 2, 3)]
        await until(lambda: decoded == [1] and decoders.waiting == 2)
        calls[1].cancel()
        await until(lambda: pipeline.inside == 2)
        calls[0].cancel()
        await asyncio.sleep(0)
        assert pipeline.inside == 2  # its thread is still at work
        gate.set()
        await calls[2]

    assert decoded == [1, 3]
    assert engine.computed == [3]


async def test_an_engine_that_fails_on_what_it_could_do_before_is_unhealthy_until_it_can(
    engine: GatedEngine,
) -> None:
    told: list[tuple[bool, str]] = []
    pipeline = around(
        engine,
        limits={"failures_allowed": 1},
        on_health=lambda healthy, reason: told.append((healthy, reason)),
    )
    async with running(pipeline):
        await pipeline.embed(picture(5), INTERACTIVE)
        failure = ValueError("a driver's words")
        engine.failures = [failure, EngineMemoryError("full"), failure, MemoryError()]
        with pytest.raises(InferenceError, match=r"^The model failed on this batch\.$"):
            await pipeline.embed(picture(1), INTERACTIVE)
        assert pipeline.healthy
        with pytest.raises(EngineMemoryError):
            await pipeline.embed(picture(2), INTERACTIVE)
        await until(lambda: not pipeline.healthy)
        with pytest.raises(UnavailableError, match="does not answer at present"):
            await pipeline.embed(picture(3), INTERACTIVE)
        await until(lambda: pipeline.healthy)
        await pipeline.embed(picture(4), INTERACTIVE)

    assert [healthy for healthy, _ in told] == [False, True]
    assert "2 runs in a row failed, and then one that should not: a driver's words" in told[0][1]
    assert engine.computed == [5, 1, 2, 5, 5, 5, 4]  # callers are not needed to find out


async def test_pictures_that_make_the_engine_fail_do_not_make_it_unhealthy(
    engine: GatedEngine,
) -> None:
    told: list[bool] = []
    pipeline = around(
        engine,
        limits={"failures_allowed": 1},
        on_health=lambda healthy, _: told.append(healthy),
    )
    async with running(pipeline):
        await pipeline.embed(picture(5), INTERACTIVE)
        for _ in range(4):
            for _ in range(2):
                engine.failures.append(ValueError("poisoned"))
                with pytest.raises(InferenceError):
                    await pipeline.embed(picture(1), INTERACTIVE)
            await pipeline.embed(picture(2), INTERACTIVE)

    assert told == []
    assert engine.computed.count(5) == 5


async def test_a_run_that_hangs_fails_those_who_wait_and_heals_when_it_ends(
    engine: GatedEngine,
) -> None:
    pipeline = around(engine, limits={"watchdog_s": 0.2})
    async with running(pipeline):
        calls = [await hold(engine, pipeline)]
        calls += [asyncio.create_task(pipeline.embed(picture(n), BULK)) for n in (2, 3)]
        await asyncio.wait(calls)
        assert {type(call.exception()) for call in calls} == {UnavailableError}
        assert not pipeline.healthy
        with pytest.raises(UnavailableError):
            await pipeline.embed(picture(4), INTERACTIVE)
        engine.gate.set()
        await until(lambda: pipeline.healthy)
        await pipeline.embed(picture(5), INTERACTIVE)

    assert engine.computed == [1, 5]


async def test_an_engine_that_does_not_come_back_is_given_up(engine: GatedEngine) -> None:
    pipeline = around(engine, limits={"watchdog_s": 0.1, "grace_s": 0.1})
    serve = asyncio.create_task(pipeline.serve())
    await hold(engine, pipeline)
    await asyncio.wait([serve])
    lost = serve.exception()
    assert isinstance(lost, ExceptionGroup)
    assert isinstance(lost.exceptions[0], EngineLostError)
    assert lost.exceptions[0].hung
    assert not pipeline.healthy
    await pipeline.close(grace_s=0.0)


def test_what_counts_as_hung_follows_from_how_long_runs_take() -> None:
    pace = Pace(most_s=60.0, max_batch=32)
    for _ in range(19):
        pace.ran(0.01, 1)
    assert pace.limit_s == 60.0
    pace.ran(0.01, 1)
    assert pace.limit_s == 5.0  # ten times 0.32 s is less than a machine may stand still
    pace.ran(1.2, 12)
    assert pace.limit_s == pytest.approx(32.0)
    pace.ran(1.0, 1)
    assert pace.limit_s == 60.0


async def test_pictures_and_texts_never_run_at_the_same_time(engine: GatedEngine) -> None:
    lengths: list[int] = []

    class Texts(LetterCounter):
        def embed(self, token_ids: Any) -> Embeddings:
            lengths.append(len(token_ids))
            return super().embed(token_ids)

    pipeline = around(engine, texts=Texts())
    async with running(pipeline):
        pictured = await hold(engine, pipeline)
        said = [asyncio.create_task(pipeline.embed_text("abc", BULK)) for _ in range(3)]
        assert pipeline._texts is not None
        texts = pipeline._texts[BULK]
        await until(lambda: texts.waiting == 3)
        assert lengths == []
        engine.gate.set()
        await asyncio.gather(pictured, *said)

    assert lengths == [3]


async def test_a_decode_that_hangs_holds_up_neither_its_caller_nor_closing(
    engine: GatedEngine,
) -> None:
    entered, gate = threading.Event(), threading.Event()

    def hang(data: bytes) -> Pixels:
        entered.set()
        assert gate.wait(30)
        return decode(data)

    pipeline = around(engine, preprocess=hang)
    async with running(pipeline):
        call = asyncio.create_task(pipeline.embed(picture(1), INTERACTIVE))
        await until(entered.is_set)
        async with asyncio.timeout(30):
            await pipeline.close(grace_s=0.0)
            with pytest.raises(ShuttingDownError):
                await call
    gate.set()


async def test_a_model_without_a_text_tower_says_so(engine: GatedEngine) -> None:
    pipeline = around(engine)
    async with running(pipeline):
        with pytest.raises(UnsupportedError, match="has no text tower"):
            await pipeline.embed_text("a map", INTERACTIVE)
        assert pipeline.inside == 0


async def test_closing_answers_what_was_accepted_and_refuses_what_comes(
    engine: GatedEngine,
) -> None:
    pipeline = around(engine)
    async with running(pipeline):
        calls = [await hold(engine, pipeline)]
        calls += [asyncio.create_task(pipeline.embed(picture(n), BULK)) for n in (2, 3)]
        await until(lambda: waiting(pipeline) == 2)
        closing = asyncio.create_task(pipeline.close(grace_s=30.0))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDownError):
            await pipeline.embed(picture(4), INTERACTIVE)
        engine.gate.set()

        answers = await asyncio.gather(*calls)
        assert [int(one.embedding.argmax()) for one in answers] == [1, 2, 3]
        await closing


async def test_when_the_grace_is_over_those_who_wait_are_refused(engine: GatedEngine) -> None:
    pipeline = around(engine)
    async with running(pipeline):
        calls = [await hold(engine, pipeline)]
        calls.append(asyncio.create_task(pipeline.embed(picture(2), BULK)))
        await until(lambda: waiting(pipeline) == 1)
        await pipeline.close(grace_s=0.0)

        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [ShuttingDownError, ShuttingDownError]


async def test_a_run_that_hangs_does_not_hold_up_closing_when_its_callers_are_gone(
    engine: GatedEngine,
) -> None:
    pipeline = around(engine)
    async with running(pipeline):
        call = await hold(engine, pipeline)
        call.cancel()
        await until(lambda: pipeline.inside == 0)
        async with asyncio.timeout(30):
            await pipeline.close(grace_s=0.0)

    assert not engine.gate.is_set()


async def test_where_cores_run_batches_of_their_own_interactive_work_passes_bulk() -> None:
    entered, gate = threading.Event(), threading.Event()

    def slow(data: bytes) -> Pixels:
        if data[0] == 1:
            entered.set()
            assert gate.wait(timeout=30)
        return decode(data)

    engine = CoreEngine(1)
    pipeline = around(engine, preprocess=slow)
    async with running(pipeline):
        bulk = asyncio.create_task(pipeline.embed(picture(1), BULK))
        await until(entered.is_set)
        assert int((await pipeline.embed(picture(2), INTERACTIVE)).embedding.argmax()) == 2
        gate.set()
        assert int((await bulk).embedding.argmax()) == 1

    assert engine.computed == [2, 1]


async def test_a_run_has_all_cores_only_while_no_other_goes_on() -> None:
    engine = CoreEngine(2)
    engine.gates = {1: threading.Event()}
    pipeline = around(engine)
    async with running(pipeline):
        first = asyncio.create_task(pipeline.embed(picture(1), BULK))
        await until(lambda: engine.computed == [1])
        await pipeline.embed(picture(2), INTERACTIVE)
        engine.gates[1].set()
        await first
        await pipeline.embed(picture(3), INTERACTIVE)

    assert engine.computed == [1, 2, 3]
    assert engine.on_a_core == [2]


async def test_what_a_core_cannot_decode_spoils_nothing_else_of_its_batch() -> None:
    engine = CoreEngine(1)
    pipeline = around(engine)
    async with running(pipeline):
        first = await hold(engine, pipeline)
        calls = [
            asyncio.create_task(pipeline.embed(data, INTERACTIVE))
            for data in (picture(2), b"bad", picture(3))
        ]
        await until(lambda: waiting(pipeline) == 3)
        engine.gate.set()
        await first
        answers = await asyncio.gather(*calls, return_exceptions=True)

    assert engine.seen == [[1], [2, 3]]
    assert isinstance(answers[1], InvalidInputError)
    good = [one for one in answers if not isinstance(one, BaseException)]
    assert [int(one.embedding.argmax()) for one in good] == [2, 3]
    assert all(min(one.decode_s, one.queue_s, one.inference_s) >= 0 for one in good)


async def test_the_engine_is_healthy_again_when_the_last_run_that_hung_is_back() -> None:
    engine = CoreEngine(2)
    engine.gates = {1: threading.Event(), 2: threading.Event()}
    pipeline = around(engine, limits={"watchdog_s": 0.2})
    async with running(pipeline):
        await pipeline.embed(picture(3), INTERACTIVE)
        calls = [asyncio.create_task(pipeline.embed(picture(n), INTERACTIVE)) for n in (1, 2)]
        await asyncio.wait(calls)
        assert {type(call.exception()) for call in calls} == {UnavailableError}
        await until(lambda: pipeline._health.hanging == 2)
        engine.gates[1].set()
        await until(lambda: pipeline._health.hanging == 1)
        assert not pipeline.healthy
        engine.gates[2].set()
        await until(lambda: pipeline.healthy)
        await pipeline.embed(picture(4), INTERACTIVE)


async def test_decoding_for_long_is_not_hanging() -> None:
    health, gate = Health(), threading.Event()
    watch, threads = Watch(health, Pace(most_s=0.01, max_batch=1)), LaneThreads(1, name="test")
    long_ago = time.perf_counter() - 1
    asked: list[float | None] = []

    def began() -> float | None:
        asked.append(None if len(asked) < 3 else long_ago)
        return asked[-1]

    call = asyncio.create_task(watch.over(threads, gate.wait, began=began))
    await until(lambda: health.hanging == 1)
    assert asked == [None, None, None, long_ago]
    gate.set()
    await call
    assert health.hanging == 0
    threads.stop()
