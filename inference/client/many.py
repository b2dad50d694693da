"""Many images over single calls, several at a time, each answered exactly once."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from inference.client.backoff import Backoff, is_worth_retrying
from inference.client.bulk import too_long
from inference.client.messages import model_changed
from inference.client.results import Embedded, ModelInfo, StreamItem
from inference.client.wire import Images
from inference.errors import (
    EmbeddingError,
    InferenceError,
    InvalidInputError,
)

# Enough to fill a batch of the server while the next is on its way.
_CALLS = 32


class ManyCalls:
    """One `embed_many` for protocols without a stream for it.

    Some workers take images from the source, one each, and ask until there is an answer. An image
    takes up room until its item is taken, so a slow server and a slow caller hold the source back.

    Args:
        embed: Embeds an image within so many seconds.
        model: What the server served at the beginning.
        images: The caller's (id, encoded file) pairs.
        window: Most images that take up room.
        outage_s: How long to wait for the next answer, in seconds, whatever stands in its way.
        server: The server's name, for messages.
    """

    def __init__(
        self,
        *,
        embed: Callable[[bytes, float], Awaitable[Embedded]],
        model: ModelInfo,
        images: Images,
        window: int,
        outage_s: float,
        server: str,
    ) -> None:
        self._embed = embed
        self._model = model
        self._images = images
        self._window = window
        self._outage_s = outage_s
        self._server = server
        self._room = asyncio.Semaphore(window)
        self._turn = asyncio.Lock()
        self._heard = 0.0
        # None says that there will be no more.
        self._items: asyncio.Queue[StreamItem | None] = asyncio.Queue()

    async def items(self) -> AsyncGenerator[StreamItem, None]:
        """The answers as they come."""
        work = asyncio.create_task(self._work())
        try:
            while (item := await self._items.get()) is not None:
                self._room.release()
                yield item
            await work
        finally:
            work.cancel()
            await asyncio.wait({work})

    async def _work(self) -> None:
        source = aiter(self._images)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._window, _CALLS)):
                    group.create_task(self._take(source))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._items.put_nowait(None)

    async def _take(self, source: AsyncIterator[tuple[int, bytes]]) -> None:
        while True:
            await self._room.acquire()
            async with self._turn:
                taken = await anext(source, None)
            if taken is None:
                self._room.release()
                return
            image_id, image = taken
            outcome = await self._outcome(image)
            self._items.put_nowait(StreamItem(id=image_id, outcome=outcome))

    async def _outcome(self, image: bytes) -> Embedded | EmbeddingError:
        """What becomes of an image.

        Raises:
            EmbeddingError: It says something about the server, not about the image.
        """
        longest = self._model.limits.max_image_bytes
        if len(image) > longest:
            return too_long(image, longest)
        backoff = Backoff()
        asked = _now()
        while True:
            until = max(asked, self._heard) + self._outage_s
            try:
                embedded = await self._embed(image, until - _now())
            except (InvalidInputError, InferenceError) as error:
                self._heard = _now()
                return error
            except EmbeddingError as error:
                pause_s = backoff.pause_s(error)
                if not is_worth_retrying(error) or _now() + pause_s >= until:
                    raise
            else:
                self._heard = _now()
                if embedded.model_id != self._model.id:
                    raise model_changed(self._server, before=self._model.id, now=embedded.model_id)
                return embedded
            await asyncio.sleep(pause_s)


def _now() -> float:
    return asyncio.get_running_loop().time()
