"""Many images over one EmbedStream, across restarts of the server, each answered exactly once."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from dataclasses import dataclass

import grpc.aio
from mapseek.v1 import embedding_pb2 as pb

from inference.client.backoff import Backoff, is_worth_retrying
from inference.client.messages import embedded, failure, model_changed
from inference.client.results import Embedded, ModelInfo, StreamItem
from inference.errors import (
    DeadlineError,
    EmbeddingError,
    InvalidInputError,
    UnavailableError,
)
from inference.status import error_of_number

# One message is a handful of images: enough to share its cost, little enough to start early.
_MESSAGE_IMAGES = 16
_MESSAGE_BYTES = 1024 * 1024
# Most bytes that a call holds unanswered; a single image may always go.
_WINDOW_BYTES = 64 * 1024 * 1024

Call = grpc.aio.StreamStreamCall[pb.EmbedStreamRequest, pb.EmbedStreamResponse]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """An image between its source and its answer. `number` is its id on the wire."""

    number: int
    id: int
    image: bytes


class BulkCall:
    """One `embed_many`.

    Three things run side by side: `_feed` reads the source while there is room, `_converse` sends
    and receives over one stream after the other, and the caller takes items. An image takes up
    room until its item is taken, so a slow server and a slow caller both hold the source back.

    Args:
        open_call: Opens a stream to the server.
        model: What the server served at the beginning.
        images: The caller's (id, encoded file) pairs.
        window: Most images that take up room.
        outage_s: How long to wait for the next answer, in seconds, whatever stands in its way.
        server: The server's name, for messages.
    """

    def __init__(
        self,
        *,
        open_call: Callable[[], Call],
        model: ModelInfo,
        images: AsyncIterable[tuple[int, bytes]],
        window: int,
        outage_s: float,
        server: str,
    ) -> None:
        self._open_call = open_call
        self._model = model
        self._images = images
        self._window = window
        self._outage_s = outage_s
        self._server = server

        # In the order of the source. What is unsent is unanswered, too.
        self._unanswered: dict[int, _Entry] = {}
        self._unsent: deque[_Entry] = deque()
        self._exhausted = False
        self._fed = asyncio.Event()
        self._room = asyncio.Event()
        self._held_images = 0
        self._held_bytes = 0
        # Each with the bytes that it held; None says that there will be no more.
        self._items: asyncio.Queue[tuple[StreamItem, int] | None] = asyncio.Queue()
        self._backoff = Backoff()
        self._last_failure: EmbeddingError | None = None
        self._patience: asyncio.Timeout | None = None

    async def items(self) -> AsyncGenerator[StreamItem, None]:
        """The answers as they come."""
        work = asyncio.create_task(self._work())
        try:
            while (answer := await self._items.get()) is not None:
                item, held_bytes = answer
                self._held_images -= 1
                self._held_bytes -= held_bytes
                self._room.set()
                yield item
            await work
        finally:
            work.cancel()
            await asyncio.wait({work})

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._converse())
                group.create_task(self._feed())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._items.put_nowait(None)

    async def _feed(self) -> None:
        number = 0
        longest = self._model.limits.max_image_bytes
        async for image_id, image in self._images:
            while not self._has_room(len(image)):
                self._room.clear()
                await self._room.wait()
            self._held_images += 1
            self._held_bytes += len(image)
            entry = _Entry(number=number, id=image_id, image=image)
            number += 1
            if len(image) > longest:
                self._deliver(entry, too_long(image, longest))
                continue
            self._unanswered[entry.number] = entry
            if len(self._unanswered) == 1:
                self._be_patient()
            self._unsent.append(entry)
            self._fed.set()
        self._exhausted = True
        self._fed.set()

    def _has_room(self, image_bytes: int) -> bool:
        return not self._held_images or (
            self._held_images < self._window and self._held_bytes + image_bytes <= _WINDOW_BYTES
        )

    async def _converse(self) -> None:
        """Opens one stream after the other until everything is answered."""
        try:
            async with asyncio.timeout(None) as self._patience:
                while await self._something_to_send():
                    try:
                        await self._one_stream()
                    except EmbeddingError as error:
                        if not is_worth_retrying(error):
                            raise
                        self._last_failure = error
                        self._unsent = deque(self._unanswered.values())
                        if self._unanswered:
                            await asyncio.sleep(self._backoff.pause_s(error))
        except TimeoutError:
            raise self._last_failure or DeadlineError(
                f"No answer from {self._server} for {self._outage_s:g} s."
            ) from None

    async def _something_to_send(self) -> bool:
        while not self._unsent:
            if self._exhausted:
                return False
            self._fed.clear()
            await self._fed.wait()
        return True

    async def _one_stream(self) -> None:
        """Sends and receives until everything is answered or the stream breaks.

        Raises:
            EmbeddingError: It broke.
        """
        call = self._open_call()
        sending = asyncio.create_task(self._send(call))
        try:
            async for response in call:
                for result in response.results:
                    self._receive(result)
        except grpc.aio.AioRpcError as error:
            raise failure(error, self._server) from error
        finally:
            call.cancel()
            sending.cancel()
            await asyncio.wait({sending})
        if self._unanswered:
            raise UnavailableError(f"{self._server} ended the stream before everything was done.")

    async def _send(self, call: Call) -> None:
        try:
            while await self._something_to_send():
                await call.write(self._next_message())
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The stream is over. Reading tells why.
            return

    def _next_message(self) -> pb.EmbedStreamRequest:
        message = pb.EmbedStreamRequest()
        total_bytes = 0
        while self._unsent and len(message.images) < _MESSAGE_IMAGES:
            entry = self._unsent[0]
            total_bytes += len(entry.image)
            if message.images and total_bytes > _MESSAGE_BYTES:
                break
            self._unsent.popleft()
            message.images.add(id=entry.number, image=entry.image)
        return message

    def _receive(self, result: pb.StreamResult) -> None:
        """Takes one result.

        Raises:
            EmbeddingError: It says something about the server, not about its image.
        """
        outcome: Embedded | EmbeddingError
        if result.WhichOneof("outcome") == "error":
            outcome = error_of_number(result.error.code, result.error.message)
            if is_worth_retrying(outcome):
                raise outcome
        else:
            outcome = embedded(result.embedding, result.timings)
            if outcome.model_id != self._model.id:
                raise model_changed(self._server, before=self._model.id, now=outcome.model_id)
        entry = self._unanswered.pop(result.id, None)
        if entry is None:  # the answer to nothing that was asked
            return
        self._backoff.reset()
        self._last_failure = None
        self._be_patient()
        self._deliver(entry, outcome)

    def _deliver(self, entry: _Entry, outcome: Embedded | EmbeddingError) -> None:
        item = StreamItem(id=entry.id, outcome=outcome)
        self._items.put_nowait((item, len(entry.image)))

    def _be_patient(self) -> None:
        """Waits anew for the next answer, or for ever while none is due."""
        if self._patience is None or self._patience.expired():
            return
        now = asyncio.get_running_loop().time()
        self._patience.reschedule(now + self._outage_s if self._unanswered else None)


def too_long(image: bytes, longest: int) -> InvalidInputError:
    """What to say of an image that the server would refuse for its length."""
    return InvalidInputError(
        f"The image is {len(image)} bytes long; the server takes at most {longest}."
    )
