import asyncio
from collections.abc import Callable, Coroutine, Sequence

import pytest

from inference.batcher import Batched, Batcher
from inference.lanes import Lane

Submit = Callable[..., "asyncio.Task[Batched[str]]"]


async def quiet() -> None:
    """Lets every task run until it waits for something that only the test can give it."""
    for _ in range(20):
        await asyncio.sleep(0)


class GatedRun:
    """An engine whose runs wait at a gate; by default it answers every item with itself."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self._running: list[list[str]] = []
        self._gate: asyncio.Queue[Sequence[str] | BaseException | None] = asyncio.Queue()

    @property
    def running(self) -> list[str]:
        """What is being run."""
        return [item for batch in self._running for item in batch]

    async def __call__(self, items: Sequence[str]) -> Sequence[str]:
        batch = list(items)
        self.batches.append(batch)
        self._running.append(batch)
        try:
            answer = await self._gate.get()
        finally:
            self._running = [other for other in self._running if other is not batch]
        if isinstance(answer, BaseException):
            raise answer
        return list(items) if answer is None else answer

    def open(self, answer: Sequence[str] | BaseException | None = None) -> None:
        """Lets one run through, now or when it comes."""
        self._gate.put_nowait(answer)

    async def finish(self, answer: Sequence[str] | BaseException | None = None) -> None:
        """Lets one run through and waits for what follows from it."""
        self.open(answer)
        await quiet()


@pytest.fixture
def run() -> GatedRun:
    return GatedRun()


@pytest.fixture
def submit_to() -> Callable[[Batcher[str, str]], Submit]:
    def bound(batcher: Batcher[str, str]) -> Submit:
        def submit(item: str, lane: Lane = Lane.INTERACTIVE) -> "asyncio.Task[Batched[str]]":
            call: Coroutine[None, None, Batched[str]] = batcher.submit(item, lane)
            return asyncio.create_task(call)

        return submit

    return bound
