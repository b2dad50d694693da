"""Answers to repeated searches from memory: the same picture, looked for in the same place."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import fields
from types import TracebackType
from typing import Any, Self

from opentelemetry import metrics

from bot.archive.port import (
    Entry,
    EntryKey,
    ImageArchive,
    Match,
    PictureKey,
    Query,
    Selection,
    Stats,
    Vector,
)

_searches = metrics.get_meter("mapseek.archive").create_counter(
    "mapseek.archive.cache", description="Searches by how the cache answered: hit or miss."
)

# Every write of this process clears the cache; other processes write as well.
_KEEP_S = 30.0


class CachedArchive:
    """An `ImageArchive` before another one, which answers repeated searches itself.

    Args:
        archive: The other one. Entering and leaving this one enters and leaves it.
        most: How many answers are kept.
        clock: The time, in seconds.
    """

    def __init__(
        self, archive: ImageArchive, *, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._archive = archive
        self._most = most
        self._clock = clock
        self._answers: OrderedDict[bytes, tuple[float, tuple[Match, ...]]] = OrderedDict()
        # Counts writes, so that an answer from before a write is not kept after it.
        self._generation = 0

    async def __aenter__(self) -> Self:
        """Opens the archive."""
        await self._archive.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the archive."""
        self._forget()
        await self._archive.__aexit__(kind, error, trace)

    async def search(self, query: Query) -> list[Match]:
        """See `ImageArchive.search`."""
        key = _key(query)
        kept = self._answers.get(key)
        if kept is not None and self._clock() < kept[0]:
            self._answers.move_to_end(key)
            _searches.add(1, {"outcome": "hit"})
            return list(kept[1])
        _searches.add(1, {"outcome": "miss"})
        generation = self._generation
        matches = await self._archive.search(query)
        if generation == self._generation:
            self._answers[key] = (self._clock() + _KEEP_S, tuple(matches))
            self._answers.move_to_end(key)
            if len(self._answers) > self._most:
                self._answers.popitem(last=False)
        return matches

    async def upsert_many(self, entries: Sequence[Entry]) -> None:
        """See `ImageArchive.upsert_many`."""
        try:
            await self._archive.upsert_many(entries)
        finally:
            self._forget()

    async def delete(self, selection: Selection) -> int:
        """See `ImageArchive.delete`."""
        try:
            return await self._archive.delete(selection)
        finally:
            self._forget()

    async def seen(self, keys: Iterable[PictureKey], model_id: str | None) -> set[PictureKey]:
        """See `ImageArchive.seen`."""
        return await self._archive.seen(keys, model_id)

    async def embeddings(self, content_hashes: Iterable[str], model_id: str) -> dict[str, Vector]:
        """See `ImageArchive.embeddings`."""
        return await self._archive.embeddings(content_hashes, model_id)

    async def stats(self) -> Stats:
        """See `ImageArchive.stats`."""
        return await self._archive.stats()

    def entries(
        self, model_id: str | None = None, *, after: EntryKey | None = None
    ) -> AsyncIterator[Entry]:
        """See `ImageArchive.entries`."""
        return self._archive.entries(model_id, after=after)

    async def current_model(self) -> str | None:
        """See `ImageArchive.current_model`."""
        return await self._archive.current_model()

    async def choose_model(self, model_id: str) -> None:
        """See `ImageArchive.choose_model`."""
        await self._archive.choose_model(model_id)

    async def drop_model(self, model_id: str) -> int:
        """See `ImageArchive.drop_model`."""
        try:
            return await self._archive.drop_model(model_id)
        finally:
            self._forget()

    def _forget(self) -> None:
        self._generation += 1
        self._answers.clear()


def _key(query: Query) -> bytes:
    """Everything that a query asks, in 32 bytes: vectors are long, and so are lists of channels."""
    digest = hashlib.blake2b(query.embedding.tobytes(), digest_size=32)
    for field in fields(query):
        value: Any = getattr(query, field.name)
        if field.name != "embedding":
            value = sorted(value) if isinstance(value, frozenset) else value
            digest.update(f"{field.name}={value!r};".encode(errors="surrogatepass"))
    return digest.digest()
