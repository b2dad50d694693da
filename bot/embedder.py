"""Vectors of pictures: what the archive has one of is not sent to the server again.

Most of what members look up stands in a channel that is indexed, and the same files are posted
again and again.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Literal

from opentelemetry import metrics

from bot.archive.port import ImageArchive
from inference.client import Embedded, EmbeddingClient, ModelInfo, Timings

Lane = Literal["interactive", "bulk"]

_vectors = metrics.get_meter("mapseek.bot").create_counter(
    "mapseek.bot.vectors",
    description="Vectors of pictures, by lane and by who had them: the archive or the server.",
)

# For so long a server is believed to serve what it served.
_KEEP_S = 5.0
# Of a vector that no server made just now.
_NOTHING = Timings(decode_ms=0, queue_ms=0, inference_ms=0, batch_size=0)


def is_known(embedded: Embedded) -> bool:
    """Whether a vector of an `Embedder` came from the archive: then the file is in there."""
    return embedded.timings is _NOTHING


class Embedder:
    """Embeds pictures by their bytes, each file once for all who want it at a time.

    Args:
        client: Embeds what is not known.
        archive: Knows the vectors of the pictures in it.
        keep_s: How long the model that is served is believed to stay, in seconds.
        clock: The time, in seconds.
    """

    def __init__(
        self,
        client: EmbeddingClient,
        archive: ImageArchive,
        *,
        keep_s: float = _KEEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._archive = archive
        self._keep_s = keep_s
        self._clock = clock
        self._model: ModelInfo | None = None
        self._ends_at_s = 0.0
        self._under_way: dict[tuple[str, str, Lane], asyncio.Task[Embedded]] = {}

    async def model(self) -> ModelInfo:
        """What is served, as it was a moment ago.

        Raises:
            EmbeddingError: See `EmbeddingClient.model`.
        """
        if self._model is None or self._clock() >= self._ends_at_s:
            self._model = await self._client.model()
            self._ends_at_s = self._clock() + self._keep_s
        return self._model

    async def embed(self, data: bytes, *, content_hash: str, model_id: str, lane: Lane) -> Embedded:
        """The vector of a file.

        Args:
            data: The file.
            content_hash: Its hex SHA-256.
            model_id: Whose vector is looked for in the archive. The server may have another model
                by now; the answer says which.
            lane: See `EmbeddingClient.embed`.

        Returns:
            The vector; the timings are zeros where the archive had it.

        Raises:
            EmbeddingError: See `EmbeddingClient.embed`.
            ArchiveError: The archive does not answer.
        """
        key = (content_hash, model_id, lane)
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._embed(data, *key))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        # Who gives up, gives up for himself.
        return await asyncio.shield(task)

    async def _embed(self, data: bytes, content_hash: str, model_id: str, lane: Lane) -> Embedded:
        known = await self._archive.embeddings([content_hash], model_id)
        who = "archive" if content_hash in known else "server"
        _vectors.add(1, {"lane": lane, "from": who})
        if content_hash in known:
            return Embedded(embedding=known[content_hash], model_id=model_id, timings=_NOTHING)
        return await self._client.embed(data, lane=lane)

    def _ended(self, key: tuple[str, str, Lane], task: "asyncio.Task[Embedded]") -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # looked at, should nobody wait for it any more
