"""One ModelStreamInfer call: several requests in flight, answered in their order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from mapseek.oip import open_inference_pb2 as oip

from inference.errors import EmbeddingError, ShuttingDownError, UnavailableError
from inference.oip.wire import Request

Requests = AsyncIterator[Request]
Answer = Callable[[Request], Awaitable[oip.ModelStreamInferResponse]]


class Writer(Protocol):
    """The part of a gRPC context that a stream needs."""

    async def write(self, message: oip.ModelStreamInferResponse, /) -> None:
        """Sends a message, waiting while flow control holds it back."""
        ...


class InferStream:
    """Reads requests while fewer than `window` elements are unanswered, and answers them in order.

    Args:
        answer: Answers one request; what is wrong with it is in the answer, never raised.
        window: Most elements in flight; a request of more than that goes alone.
        idle_s: How long the caller may neither send nor read, in seconds.
    """

    def __init__(self, answer: Answer, *, window: int, idle_s: float) -> None:
        self._answer = answer
        self._idle_s = idle_s
        # Each with its number of elements; None says that there will be no more.
        self._tasks: asyncio.Queue[
            tuple[asyncio.Task[oip.ModelStreamInferResponse], int] | None
        ] = asyncio.Queue()
        self._window = window
        self._inside = 0
        self._answered = asyncio.Event()
        self._running: set[asyncio.Task[oip.ModelStreamInferResponse]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._refusal: EmbeddingError | None = None

    async def run(self, requests: Requests, writer: Writer) -> None:
        """Answers until the caller has finished sending.

        Raises:
            ShuttingDownError: `close` was called; what had been taken up has been answered.
            UnavailableError: The caller was idle for too long.
        """
        reader = self._reader = asyncio.create_task(self._read(requests))
        reader.add_done_callback(lambda _: self._tasks.put_nowait(None))
        try:
            while (taken := await self._tasks.get()) is not None:
                task, elements = taken
                response = await task
                async with asyncio.timeout(self._idle_s):
                    await writer.write(response)
                self._inside -= elements
                self._answered.set()
        except TimeoutError:
            raise self._idle() from None
        finally:
            for one in (reader, *self._running):
                one.cancel()
            await asyncio.gather(reader, *self._running, return_exceptions=True)
        if self._refusal is not None:
            raise self._refusal
        reader.result()

    def close(self) -> None:
        """Stops reading; `run` answers what it has read and then raises."""
        self._refusal = self._refusal or ShuttingDownError()
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self, requests: Requests) -> None:
        while True:
            await self._room_for(1)
            try:
                async with asyncio.timeout(self._idle_s):
                    request = await anext(requests, None)
            except TimeoutError:
                self._refusal = self._idle()
                return
            if request is None:
                return
            elements = _elements(request)
            await self._room_for(elements)
            self._inside += elements
            task = asyncio.ensure_future(self._answer(request))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            self._tasks.put_nowait((task, elements))

    async def _room_for(self, elements: int) -> None:
        while self._inside and self._inside + elements > self._window:
            self._answered.clear()
            await self._answered.wait()

    def _idle(self) -> UnavailableError:
        return UnavailableError(
            f"The stream was idle for {self._idle_s:g} s: open a new one when needed."
        )


def _elements(request: Request) -> int:
    """How many places a request takes up; what is wrong with its shape is told by its answer."""
    batch: int = max((1, *(size for one in request.inputs[:1] for size in one.shape[:1])))
    return batch
