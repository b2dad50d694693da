"""One EmbedStream call: several images in flight, answers as they are ready, bounded throughout."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from mapseek.v1 import embedding_pb2 as pb

from inference.errors import EmbeddingError, ShuttingDownError, UnavailableError
from inference.status import UNFORESEEN, code_of, number_of

# Keeps a message of results well under gRPC's usual 4 MiB, even at thousands of dimensions.
MAX_RESULTS_PER_MESSAGE = 64

_log = logging.getLogger(__name__)

Requests = AsyncIterator[pb.EmbedStreamRequest]
Embed = Callable[[int, bytes], Awaitable[pb.StreamResult]]


class Writer(Protocol):
    """The part of a gRPC context that a stream needs."""

    async def write(self, message: pb.EmbedStreamResponse, /) -> None:
        """Sends a message, waiting while flow control holds it back."""
        ...


class BulkStream:
    """Moves images from a caller to the model and results back.

    An image holds one of `window` places from the moment it is taken up until its result is
    written. No place free means no reading, and then HTTP/2 flow control holds the sender back;
    so neither a fast sender nor a caller that does not read makes the server gather anything.

    Args:
        embed: Embeds an image, given its id and its bytes.
        window: Most images in flight.
        idle_s: How long the caller may neither send nor read, in seconds.
    """

    def __init__(self, embed: Embed, *, window: int, idle_s: float) -> None:
        self._embed = embed
        self._window = window
        self._idle_s = idle_s
        self._places = asyncio.Semaphore(window)
        # None says that there will be no more.
        self._results: asyncio.Queue[pb.StreamResult | None] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._refusal: EmbeddingError | None = None

    async def run(self, requests: Requests, writer: Writer) -> None:
        """Answers the stream until the caller has finished sending and everything is answered.

        Raises:
            ShuttingDownError: `close` was called; what had been taken up has been answered.
            UnavailableError: The caller was idle for too long.
        """
        reader = self._reader = asyncio.create_task(self._read(requests))
        reader.add_done_callback(self._check_end)
        try:
            await self._write(writer)
        finally:
            # If the call was cut off, what is queued leaves the queue before it is over.
            for task in (reader, *self._tasks):
                task.cancel()
            await asyncio.gather(reader, *self._tasks, return_exceptions=True)
        if self._refusal is not None:
            raise self._refusal
        reader.result()

    def close(self) -> None:
        """Stops reading; `run` answers what it has taken up and then raises."""
        self._refuse(ShuttingDownError())

    async def _read(self, requests: Requests) -> None:
        while (request := await self._next(requests)) is not None:
            for image in request.images:
                await self._places.acquire()
                # The bytes are copied out here, so that one slow image does not hold its whole
                # message in memory.
                task = asyncio.create_task(self._answer(image.id, image.image))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                task.add_done_callback(self._check_end)

    async def _next(self, requests: Requests) -> pb.EmbedStreamRequest | None:
        """The next message, or None at the end of the stream."""
        try:
            async with asyncio.timeout(self._idle_s):
                return await anext(requests, None)
        except TimeoutError:
            self._refusal = _idle(self._idle_s)
            return None

    async def _answer(self, image_id: int, image: bytes) -> None:
        try:
            result = await self._embed(image_id, image)
        except UnavailableError as error:
            # About the server, not the image: the caller shall send it again elsewhere.
            self._refuse(error)
            self._places.release()
            return
        except EmbeddingError as error:
            _log.debug("refused an image of a stream: %s", error)
            result = _error_result(image_id, error, str(error))
        except asyncio.CancelledError as error:
            if being_cancelled():
                raise
            _log.exception("an image of a stream was lost")
            result = _error_result(image_id, error, UNFORESEEN)
        except Exception as error:  # noqa: BLE001  one bad image must not end the stream
            _log.exception("an image of a stream failed")
            result = _error_result(image_id, error, UNFORESEEN)
        self._results.put_nowait(result)

    def _check_end(self, _: asyncio.Task[None]) -> None:
        if self._reader is not None and self._reader.done() and not self._tasks:
            self._results.put_nowait(None)

    async def _write(self, writer: Writer) -> None:
        more = True
        while more:
            batch = []
            result = await self._results.get()
            while result is not None:
                batch.append(result)
                if self._results.empty() or len(batch) == MAX_RESULTS_PER_MESSAGE:
                    break
                result = self._results.get_nowait()
            more = result is not None
            if not batch:
                continue
            try:
                async with asyncio.timeout(self._idle_s):
                    await writer.write(pb.EmbedStreamResponse(results=batch))
            except TimeoutError:
                raise _idle(self._idle_s) from None
            for _ in batch:
                self._places.release()

    def _refuse(self, error: EmbeddingError) -> None:
        if self._refusal is None:
            self._refusal = error
            if self._reader is not None:
                self._reader.cancel()


def _idle(idle_s: float) -> UnavailableError:
    return UnavailableError(f"The stream was idle for {idle_s:g} s: open a new one when needed.")


def being_cancelled() -> bool:
    """Whether a `CancelledError` is meant for this task, or comes from a future that it awaited.

    The difference matters: a call that ends with the second kind never gets its status.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _error_result(image_id: int, error: BaseException, message: str) -> pb.StreamResult:
    code = number_of(code_of(error))
    return pb.StreamResult(id=image_id, error=pb.StreamError(code=code, message=message))
