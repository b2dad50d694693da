import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.batcher import Batched, Batcher
from inference.errors import (
    EmbeddingError,
    EngineMemoryError,
    InferenceError,
    InvalidInputError,
    ShuttingDownError,
    UnavailableError,
)
from inference.lanes import Lane
from tests.inference.core.conftest import GatedRun, Submit, quiet

INTERACTIVE, BULK = Lane.INTERACTIVE, Lane.BULK


def taking(
    run: Callable[[Sequence[str]], Awaitable[Sequence[str]]], turn: asyncio.Semaphore | None = None
) -> Callable[[Callable[[], Sequence[str]]], Awaitable[Sequence[str]]]:
    """An engine that takes its items when it has the turn."""

    async def taken(take: Callable[[], Sequence[str]]) -> Sequence[str]:
        async with turn or nullcontext():
            items = list(take())
            return await run(items) if items else []

    return taken


@asynccontextmanager
async def serving(
    batcher: Batcher[Any, Any], *, loops: int = 1
) -> AsyncIterator[asyncio.Task[None]]:
    tasks = [asyncio.create_task(batcher.serve()) for _ in range(loops)]
    await quiet()
    yield tasks[0]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_a_lone_item_starts_at_once(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    batcher = Batcher(taking(run), max_batch=4)
    async with serving(batcher):
        call = submit_to(batcher)("a")
        await quiet()
        assert run.batches == [["a"]]
        run.open()

        assert (await call).value == "a"


async def test_what_arrives_during_a_run_forms_the_next_batch_up_to_the_maximum(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    batcher = Batcher(taking(run), max_batch=3)
    submit = submit_to(batcher)
    async with serving(batcher):
        calls = [submit("a")]
        await quiet()
        calls += [submit(item) for item in "bcde"]
        await quiet()
        assert run.batches == [["a"]]
        assert batcher.waiting == 4
        await run.finish()
        assert run.batches[1:] == [["b", "c", "d"]]
        await run.finish()
        assert run.batches[2:] == [["e"]]
        run.open()

        assert [answer.value for answer in await asyncio.gather(*calls)] == list("abcde")
        assert [call.result().batch_size for call in calls] == [1, 3, 3, 3, 1]


async def test_a_batch_grows_until_the_engine_is_free(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    turn = asyncio.Semaphore()
    batcher = Batcher(taking(run, turn), max_batch=4)
    submit = submit_to(batcher)
    async with serving(batcher):
        await turn.acquire()
        calls = [submit("a")]
        await quiet()
        calls.append(submit("b"))
        await quiet()
        assert run.batches == []
        turn.release()
        run.open()
        await asyncio.gather(*calls)

        assert run.batches == [["a", "b"]]


async def test_two_batchers_take_turns_on_one_engine(
    submit_to: Callable[[Batcher[str, str]], Submit],
) -> None:
    turn = asyncio.Semaphore()
    pictures, texts = GatedRun(), GatedRun()
    one = Batcher(taking(pictures, turn), max_batch=4)
    other = Batcher(taking(texts, turn), max_batch=4)
    async with serving(one), serving(other):
        calls = [submit_to(one)("p0")]
        await quiet()
        calls += [submit_to(one)("p1"), submit_to(other)("t0")]
        await quiet()
        assert (pictures.batches, texts.batches) == ([["p0"]], [])
        await pictures.finish()
        assert texts.batches == [["t0"]]
        assert pictures.batches == [["p0"]]
        await texts.finish()
        assert pictures.batches == [["p0"], ["p1"]]
        pictures.open()
        await asyncio.gather(*calls)


async def test_each_of_several_loops_takes_its_part_of_what_is_usually_inside(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    batcher = Batcher(taking(run), max_batch=8, at_once=2)
    submit = submit_to(batcher)
    async with serving(batcher, loops=2):
        calls = [submit(item) for item in "ab"]
        await quiet()
        assert run.batches == [["a"], ["b"]]
        calls += [submit(item) for item in "cdefghijkl"]
        await quiet()
        for number in range(30):  # who is answered asks again
            await run.finish()
            calls += [submit("again") for _ in run.batches[number]]
            await quiet()
        assert {len(batch) for batch in run.batches[20:]} == {3}  # two run, and as many wait

        await run.finish()
        await run.finish()  # six have been answered and do not ask again yet
        assert [len(batch) for batch in run.batches[-2:]] == [3, 3]
        assert batcher.waiting == 0
        for _ in range(2):
            await run.finish()
        answers = [answer.value for answer in await asyncio.gather(*calls)]
        assert answers[:12] == list("abcdefghijkl")
        assert set(answers[12:]) == {"again"}


async def test_a_loop_that_ends_leaves_the_run_of_another_to_its_callers(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    batcher = Batcher(taking(run), max_batch=4, at_once=2)
    async with serving(batcher, loops=2) as first, asyncio.timeout(30):
        call = submit_to(batcher)("a")
        await quiet()
        batcher.close()
        await quiet()
        assert not call.done()
        await run.finish()
        assert (await call).value == "a"
        await first


async def test_interactive_goes_before_bulk_and_bulk_keeps_its_share(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    batcher = Batcher(taking(run), max_batch=4, bulk_share=0.25)
    submit = submit_to(batcher)
    async with serving(batcher):
        calls = [submit("first")]
        await quiet()
        calls += [submit(f"b{number}", BULK) for number in range(6)]
        calls += [submit(f"i{number}") for number in range(6)]
        await quiet()
        for _ in range(5):
            await run.finish()
        await asyncio.gather(*calls)

    assert run.batches[1] == ["i0", "i1", "i2", "b0"]
    assert run.batches[2] == ["i3", "i4", "i5", "b1"]


async def test_times_and_batch_size_are_told(
    submit_to: Callable[[Batcher[str, str]], Submit],
) -> None:
    now = 0.0

    async def run(items: Sequence[str]) -> Sequence[str]:
        nonlocal now
        now += 3.0
        return items

    turn = asyncio.Semaphore()
    batcher = Batcher(taking(run, turn), max_batch=4, clock=lambda: now)
    async with serving(batcher):
        await turn.acquire()
        early = submit_to(batcher)("early")
        await quiet()
        now = 2.0
        late = submit_to(batcher)("late")
        await quiet()
        turn.release()

        assert await early == Batched(value="early", queue_s=2.0, run_s=3.0, batch_size=2)
        assert await late == Batched(value="late", queue_s=0.0, run_s=3.0, batch_size=2)


async def test_a_caller_that_leaves_while_waiting_is_never_run(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    batcher = Batcher(taking(run), max_batch=4)
    submit = submit_to(batcher)
    async with serving(batcher):
        first = submit("first")
        await quiet()
        gone, stays = submit("gone"), submit("stays")
        await quiet()
        gone.cancel()
        await quiet()
        assert batcher.waiting == 1
        await run.finish()
        run.open()
        await asyncio.gather(first, stays)

    assert run.batches == [["first"], ["stays"]]


async def test_a_caller_that_leaves_in_the_instant_of_the_choice_is_never_run(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    turn = asyncio.Semaphore()
    batcher = Batcher(taking(run, turn), max_batch=4)
    submit = submit_to(batcher)
    async with serving(batcher):
        await turn.acquire()
        gone = submit("gone")
        await quiet()
        turn.release()  # the loop wakes before the cancelled caller does
        gone.cancel()
        await quiet()
        assert run.batches == []
        call = submit("next")
        run.open()
        await call

    assert run.batches == [["next"]]


async def test_a_caller_that_leaves_during_the_run_breaks_nothing(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    batcher = Batcher(taking(run), max_batch=4)
    submit = submit_to(batcher)
    async with serving(batcher):
        first = submit("first")
        await quiet()
        gone, stays = submit("gone"), submit("stays")
        await run.finish()
        gone.cancel()
        await run.finish()
        assert (await stays).value == "stays"
        assert gone.cancelled()
        call = submit("after")
        run.open()

        assert (await call).value == "after"
        assert (await first).value == "first"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError("secret"), InferenceError),
        (InferenceError("no"), InferenceError),
        (InvalidInputError("bad"), InvalidInputError),
    ],
)
async def test_a_failing_run_fails_who_is_alone_in_it_and_the_loop_goes_on(
    run: GatedRun,
    submit_to: Callable[[Batcher[str, str]], Submit],
    raised: Exception,
    expected: type[Exception],
) -> None:
    batcher = Batcher(taking(run), max_batch=1)
    submit = submit_to(batcher)
    async with serving(batcher):
        calls = [submit(item) for item in "ab"]
        await quiet()
        await run.finish(raised)
        await run.finish()
        error = calls[0].exception()
        assert type(error) is expected
        assert "secret" not in str(error)

        assert (await calls[1]).value == "b"


class Poisoned:
    """An engine that fails on every batch with one of the poisoned items in it."""

    def __init__(self, poison: str) -> None:
        self.poison = poison
        self.batches: list[list[str]] = []

    async def __call__(self, items: Sequence[str]) -> Sequence[str]:
        self.batches.append(list(items))
        await asyncio.sleep(0)
        if set(items) & set(self.poison):
            raise ValueError("poisoned")
        return items


@pytest.mark.parametrize("poison", ["a", "h", "d", "ch", "bcd"])
async def test_poisoned_items_fail_alone(poison: str) -> None:
    engine = Poisoned(poison)
    turn = asyncio.Semaphore()
    batcher = Batcher(taking(engine, turn), max_batch=8)
    async with serving(batcher), turn:
        calls = {
            item: asyncio.create_task(batcher.submit(item, INTERACTIVE)) for item in "abcdefgh"
        }
        await quiet()
        turn.release()
        await asyncio.wait(calls.values())
        await turn.acquire()
    assert engine.batches[0] == list("abcdefgh")
    failed = {item for item, call in calls.items() if call.exception() is not None}
    assert failed == set(poison)
    assert all(call.result().value == item for item, call in calls.items() if item not in failed)


async def test_an_engine_that_always_fails_is_asked_a_bounded_number_of_times() -> None:
    items = [str(number) for number in range(64)]
    engine = Poisoned("")
    engine.poison = items  # type: ignore[assignment]  # any container of items will do
    turn = asyncio.Semaphore()
    batcher = Batcher(taking(engine, turn), max_batch=64)
    async with serving(batcher):
        await turn.acquire()
        calls = [asyncio.create_task(batcher.submit(item, INTERACTIVE)) for item in items]
        await quiet()
        turn.release()
        await asyncio.wait(calls)
    errors = [call.exception() for call in calls]
    assert all(isinstance(error, InferenceError) for error in errors)
    assert len({id(error) for error in errors}) == 64  # no two callers share one
    # A whole halving would take 127 runs; past 28, what is left fails as it is popped.
    assert len(engine.batches) < 50


async def test_those_who_are_abandoned_are_answered_while_the_run_goes_on(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    batcher = Batcher(taking(run), max_batch=2)
    submit = submit_to(batcher)
    async with serving(batcher):
        calls = [submit(item) for item in "abc"]
        await quiet()
        batcher.abandon(UnavailableError("gone"))
        await asyncio.wait(calls)
        errors = [call.exception() for call in calls]
        assert [type(error) for error in errors] == [UnavailableError] * 3
        assert len({id(error) for error in errors}) == 3
        await run.finish(ValueError("too late"))
        call = submit("next")
        run.open()
        assert (await call).value == "next"
    assert run.batches == [["a", "b"], ["next"]]


@pytest.mark.parametrize("answer", [[], ["a", "b", "c"]])
async def test_a_wrong_number_of_results_is_a_failure(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit], answer: list[str]
) -> None:
    batcher = Batcher(taking(run), max_batch=2)
    submit = submit_to(batcher)
    async with serving(batcher):
        calls = [submit(item) for item in "ab"]
        await quiet()
        for _ in range(3):  # the two together, then each alone
            await run.finish(answer)
        assert all(isinstance(call.exception(), InferenceError) for call in calls)
        call = submit("next")
        run.open()

        assert (await call).value == "next"


async def test_out_of_memory_splits_the_batch_and_lowers_the_ceiling(
    run: GatedRun,
    submit_to: Callable[[Batcher[str, str]], Submit],
    caplog: pytest.LogCaptureFixture,
) -> None:
    batcher = Batcher(taking(run), max_batch=5)
    submit = submit_to(batcher)
    async with serving(batcher):
        calls = [submit(item) for item in "abcde"]
        await quiet()
        with caplog.at_level(logging.WARNING):
            await run.finish(EngineMemoryError("full"))
        for _ in range(3):
            run.open()

        assert [answer.value for answer in await asyncio.gather(*calls)] == list("abcde")
        assert batcher.max_batch == 2
    assert run.batches == [list("abcde"), ["a", "b"], ["c", "d"], ["e"]]
    assert "at most 2" in caplog.text


async def test_out_of_memory_on_a_single_item_fails_it(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    batcher = Batcher(taking(run), max_batch=4)
    async with serving(batcher):
        call = submit_to(batcher)("a")
        await quiet()
        await run.finish(EngineMemoryError("full"))

        assert isinstance(call.exception(), EngineMemoryError)
        assert batcher.max_batch == 4


async def test_the_ceiling_rises_again_when_much_has_fitted(
    run: GatedRun,
    submit_to: Callable[[Batcher[str, str]], Submit],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inference.batcher._FULL_RUNS_BEFORE_GROWING", 2)
    batcher = Batcher(taking(run), max_batch=3)
    submit = submit_to(batcher)
    async with serving(batcher):
        calls = [submit(item) for item in "abc"]
        await quiet()
        await run.finish(MemoryError())
        assert batcher.max_batch == 1
        for ceiling in (1, 2, 2):
            await run.finish()
            assert batcher.max_batch == ceiling
        calls += [submit(item) for item in "dea"]
        for _ in range(9):
            run.open()
        await asyncio.gather(*calls)


async def test_a_split_batch_loses_those_who_left_meanwhile(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    batcher = Batcher(taking(run), max_batch=4)
    submit = submit_to(batcher)
    async with serving(batcher):
        calls = [submit(item) for item in "abcd"]
        await quiet()
        calls[1].cancel()
        await run.finish(EngineMemoryError("full"))
        for _ in range(2):
            run.open()
        await asyncio.wait(calls)

    assert run.batches == [list("abcd"), ["a", "c"], ["d"]]


async def test_close_drains_then_refuses(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    batcher = Batcher(taking(run), max_batch=1)
    submit = submit_to(batcher)
    serve = asyncio.create_task(batcher.serve())
    calls = [submit(item) for item in "ab"]
    await quiet()
    batcher.close()
    with pytest.raises(ShuttingDownError):
        await batcher.submit("late", INTERACTIVE)
    run.open()
    run.open()

    assert [answer.value for answer in await asyncio.gather(*calls)] == ["a", "b"]
    await serve
    with pytest.raises(ShuttingDownError):
        await batcher.submit("later", INTERACTIVE)


async def test_close_ends_an_idle_loop(run: GatedRun) -> None:
    batcher = Batcher(taking(run), max_batch=1)
    serve = asyncio.create_task(batcher.serve())
    await quiet()
    batcher.close()

    await serve


async def test_a_cancelled_loop_fails_all_who_wait(
    run: GatedRun, submit_to: Callable[[Batcher[str, str]], Submit]
) -> None:
    batcher = Batcher(taking(run), max_batch=1)
    submit = submit_to(batcher)
    async with serving(batcher) as serve:
        calls = [submit(item) for item in "ab"]
        await quiet()
        serve.cancel()
        await asyncio.wait(calls)

        assert all(isinstance(call.exception(), ShuttingDownError) for call in calls)


async def test_a_broken_loop_fails_all_who_wait_and_says_so_afterwards(
    submit_to: Callable[[Batcher[str, str]], Submit],
) -> None:
    broken = False

    async def run(items: Sequence[str]) -> Sequence[str]:
        return items

    def clock() -> float:
        if broken:
            raise RuntimeError("a bug")
        return 0.0

    turn = asyncio.Semaphore()
    batcher = Batcher(taking(run, turn), max_batch=1, clock=clock)
    submit = submit_to(batcher)
    serve = asyncio.create_task(batcher.serve())
    await turn.acquire()
    calls = [submit(item) for item in "ab"]
    await quiet()
    broken = True
    turn.release()
    await asyncio.wait([serve, *calls])

    assert isinstance(serve.exception(), RuntimeError)
    assert all(type(call.exception()) is InferenceError for call in calls)
    with pytest.raises(InferenceError, match="restarted"):
        await batcher.submit("late", INTERACTIVE)


def test_a_batch_holds_at_least_one(run: GatedRun) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Batcher(taking(run), max_batch=0)


OPERATIONS = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(list(Lane))),
    st.tuples(st.just("cancel"), st.integers(0, 50)),
    st.tuples(
        st.just("answer"), st.sampled_from(["well", "well", "well", "error", "memory", "short"])
    ),
    st.tuples(st.just("quiet"), st.none()),
)


@settings(max_examples=200, deadline=None)
@given(
    operations=st.lists(OPERATIONS, max_size=80),
    max_batch=st.integers(1, 5),
    loops=st.integers(1, 3),
    ending=st.sampled_from(["close", "cancel"]),
)
def test_every_caller_is_answered_once_in_order_whatever_happens(
    operations: list[tuple[str, Any]], max_batch: int, loops: int, ending: str
) -> None:
    async def play() -> None:
        game = _Game(max_batch, loops)
        for name, value in operations:
            await getattr(game, name)(value)
        await game.end(ending)
        game.check()

    asyncio.run(play())


class _Game:
    """A batcher, an engine at a gate, and callers that come and go."""

    def __init__(self, max_batch: int, loops: int) -> None:
        self.max_batch = max_batch
        self.run = GatedRun()
        self.batcher = Batcher(
            taking(self.run), max_batch=max_batch, bulk_share=0.25, at_once=loops
        )
        self.serves = [asyncio.create_task(self.batcher.serve()) for _ in range(loops)]
        self.calls: list[asyncio.Task[Batched[str]]] = []
        self.cancelled: set[int] = set()
        self.left_in_time: set[int] = set()

    @property
    def chosen(self) -> set[int]:
        return {_number(item) for batch in self.run.batches for item in batch}

    async def submit(self, lane: Lane) -> None:
        call = self.batcher.submit(f"{lane}:{len(self.calls)}", lane)
        self.calls.append(asyncio.create_task(call))

    async def cancel(self, which: int) -> None:
        if self.calls:
            victim = which % len(self.calls)
            if self.calls[victim].cancel():
                self.cancelled.add(victim)
            if victim not in self.chosen:
                self.left_in_time.add(victim)

    async def answer(self, how: str) -> None:
        await quiet()
        if self.run.running:
            failures: dict[str, Any] = {
                "error": ValueError("no"),
                "memory": EngineMemoryError("full"),
                "short": [],
            }
            await self.run.finish(failures.get(how))

    async def quiet(self, _: None) -> None:
        await quiet()
        pending = {number for number, call in enumerate(self.calls) if not call.done()}
        running = {_number(item) for item in self.run.running}
        # The halves of a batch that failed wait for their turn beside the queue.
        taken = {_number(one.item) for batch in self.batcher._running for one in batch}
        assert self.batcher.waiting == len(pending - taken)  # who left freed a place
        assert running or not pending  # the engine never rests while somebody waits

    async def end(self, ending: str) -> None:
        await quiet()
        if ending == "close":
            self.batcher.close()
            for _ in range(len(self.calls) + 1):
                self.run.open()
        else:
            for serve in self.serves:
                serve.cancel()
        await asyncio.wait([*self.serves, *self.calls])

    def check(self) -> None:
        for number, call in enumerate(self.calls):
            if call.cancelled():
                assert number in self.cancelled
            elif (error := call.exception()) is not None:
                assert isinstance(error, EmbeddingError)
            else:
                assert _number(call.result().value) == number
        assert all(1 <= len(batch) <= self.max_batch for batch in self.run.batches)
        assert not self.chosen & self.left_in_time
        for lane in Lane:
            self._check_order(lane)

    def _check_order(self, lane: Lane) -> None:
        # Items that are tried again after running out of memory keep their place: the numbers
        # only ever start over from the batch that was split.
        first_runs: list[int] = []
        for batch in self.run.batches:
            numbers = [_number(item) for item in batch if item.startswith(f"{lane}:")]
            assert numbers == sorted(numbers)
            first_runs += [number for number in numbers if number not in first_runs]
        assert first_runs == sorted(first_runs)


def _number(item: str) -> int:
    return int(item.split(":")[1])


@settings(max_examples=60, deadline=None)
@given(
    max_batch=st.integers(1, 6),
    bulk_share=st.floats(0.1, 0.9),
    bulk=st.integers(1, 8),
)
def test_bulk_comes_through_under_endless_interactive_work(
    max_batch: int, bulk_share: float, bulk: int
) -> None:
    asyncio.run(_besiege(max_batch, bulk_share, bulk))


async def _besiege(max_batch: int, bulk_share: float, bulk: int) -> None:
    run = GatedRun()
    batcher = Batcher(taking(run), max_batch=max_batch, bulk_share=bulk_share)
    async with serving(batcher):
        patient = [asyncio.create_task(batcher.submit("b", BULK)) for _ in range(bulk)]
        endless: list[asyncio.Task[Batched[str]]] = []
        runs = 0
        while not all(call.done() for call in patient):
            endless += [
                asyncio.create_task(batcher.submit("i", INTERACTIVE)) for _ in range(max_batch)
            ]
            await run.finish()
            runs += 1
            # Its share of all places, and one more run for what was chosen before it came.
            assert runs <= bulk / (bulk_share * max_batch) + 2
        for call in endless:
            call.cancel()
