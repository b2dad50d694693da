"""Putting a source's pictures into the archive: the use case behind `mapseek index`.

    source ▶ not stored yet ▶ read ▶ bytes not embedded yet ▶ embed (bulk lane) ▶ store in batches

Everything between is bounded, and what is stored twice is stored once: a run may be stopped at any
moment, and the next one goes on from there.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from opentelemetry import trace

from bot.archive.port import (
    EntriesRefusedError,
    Entry,
    ImageArchive,
    Picture,
    PictureKey,
    Selection,
    Vector,
)
from bot.importer.files import UnreadableError, read
from bot.importer.found import Found, SetAside, Source
from bot.links import MEDIA
from inference.client import Embedded, EmbeddingClient, ModelInfo
from inference.errors import EmbeddingError, ModelChangedError

_tracer = trace.get_tracer("mapseek.bot")

# Pictures that are looked up in the archive, and stored, together.
_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come, in pictures.

    Attributes:
        total: How many the source has; None while they are still being counted.
        known: Stored by an earlier run.
        stored: Stored by this run.
        embedded: Embedded by this run; the bytes of the others were known already.
        set_aside: Not usable.
    """

    total: int | None = None
    known: int = 0
    stored: int = 0
    embedded: int = 0
    set_aside: int = 0

    @property
    def done(self) -> int:
        """Pictures that are dealt with, well or badly."""
        return self.known + self.stored + self.set_aside


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """A picture that was read, and what it will be in the archive."""

    found: Found
    picture: Picture


class Indexer:
    """One run over one source.

    Args:
        source: Where the pictures come from.
        client: Embeds them.
        archive: Stores them.
        model: What the client's server serves.
        report: Is told of every step.

    Attributes:
        progress: How far it came, however it ended.
        set_aside: What could not be used, and why.
    """

    def __init__(
        self,
        *,
        source: Source,
        client: EmbeddingClient,
        archive: ImageArchive,
        model: ModelInfo,
        report: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self.progress = Progress()
        self.set_aside: list[SetAside] = []
        self._source = source
        self._client = client
        self._archive = archive
        self._model = model
        self._report = report
        self._under_way: set[PictureKey] = set()
        # Pictures that wait for the embedding of their bytes, by content hash; the first of them
        # was sent, the others share its answer.
        self._waiting: dict[str, list[_Read]] = {}
        self._hash_of: dict[int, str] = {}
        self._ready: list[tuple[_Read, Vector]] = []
        self._storing = asyncio.Lock()
        self._held: set[tuple[str, str]] | None = None
        self._stopping = False

    async def run(self) -> None:
        """Indexes everything that is not in the archive yet.

        Cancelling it stores what is embedded, and then stops.

        Raises:
            ArchiveError: The archive cannot be read or written.
            EmbeddingError: The server stayed away, refuses this client or changed its model.
        """
        with _tracer.start_as_current_span("mapseek.index") as span:
            counting = asyncio.create_task(self._count())
            try:
                async with aclosing(self._client.embed_many(self._to_embed())) as items:
                    async for item in items:
                        self._settle(self._hash_of.pop(item.id), item.outcome)
                        await self._store(at_least=_BATCH)
                await counting
            finally:
                self._stopping = True
                counting.cancel()
                await self._store(at_least=1)
                span.set_attribute("mapseek.stored", self.progress.stored)
                span.set_attribute("mapseek.set_aside", self.progress.set_aside)

    async def _count(self) -> None:
        """Walks through the source ahead of the work, to know its length."""

        def walk() -> int:
            total = 0
            for _ in self._source():
                if self._stopping:
                    break
                total += 1
            return total

        self._tell(total=await asyncio.to_thread(walk))

    async def _to_embed(self) -> AsyncIterator[tuple[int, bytes]]:
        """What the server has to look at; everything else is dealt with on the way."""
        items = self._source()
        number = 0
        while batch := await asyncio.to_thread(_take, items):
            for found in await self._new(batch):
                try:
                    contents = await asyncio.to_thread(
                        read, found.path, max_bytes=self._model.limits.max_image_bytes
                    )
                except UnreadableError as error:
                    self._put_aside(found, str(error))
                    continue
                content_hash = contents.content_hash
                if found.by_file and await self._is_held(found, content_hash):
                    self._under_way.discard(found.key)
                    self._tell(known=self.progress.known + 1)
                    continue
                picture = found.picture(
                    width=contents.width,
                    height=contents.height,
                    file_size=len(contents.data),
                    content_hash=content_hash,
                )
                one = _Read(found=found, picture=picture)
                if self._held is not None and not found.by_file:
                    self._held.add((found.key.message_id, content_hash))
                if content_hash in self._waiting:
                    self._waiting[content_hash].append(one)
                elif (vector := await self._known_vector(content_hash)) is not None:
                    self._ready.append((one, vector))
                    await self._store(at_least=_BATCH)
                else:
                    self._waiting[content_hash] = [one]
                    self._hash_of[number] = content_hash
                    yield number, contents.data
                    number += 1

    async def _new(self, batch: list[Found | SetAside]) -> list[Found]:
        """The pictures of a batch that are neither stored nor under way."""
        aside = [item for item in batch if isinstance(item, SetAside)]
        found = {item.key: item for item in batch if isinstance(item, Found)}
        # Asked first: what is stored while the archive answers was under way before.
        under_way = self._under_way & found.keys()
        known = await self._archive.seen(found.keys() - under_way, self._model.id)
        new = [one for key, one in found.items() if key not in known and key not in under_way]
        self._under_way.update(one.key for one in new)
        await self._forget_file_names([found[key] for key in known])
        self.set_aside += aside
        self._tell(
            known=self.progress.known + len(batch) - len(aside) - len(new),
            set_aside=len(self.set_aside),
        )
        return new

    async def _is_held(self, found: Found, content_hash: str) -> bool:
        """Whether a picture without an id in its export is stored, or under way, by its own id."""
        if self._held is None:
            waiting = [
                *chain.from_iterable(self._waiting.values()),
                *(one for one, _ in self._ready),
            ]
            self._held = {
                (one.found.key.message_id, one.picture.content_hash)
                for one in waiting
                if not one.found.by_file
            }
            # Nothing else tells what a message holds: everything is read through, once.
            async for entry in self._archive.entries(self._model.id):
                if not entry.picture.key.attachment_id.startswith(MEDIA):
                    self._held.add((entry.picture.key.message_id, entry.picture.content_hash))
        return (found.key.message_id, content_hash) in self._held

    async def _forget_file_names(self, stored: list[Found]) -> None:
        """Deletes what was imported by the name of its file and is now there by its own id."""
        names = {
            PictureKey(message_id=one.key.message_id, attachment_id=one.also)
            for one in stored
            if one.also and not one.by_file
        }
        for key in await self._archive.seen(names, None) if names else ():
            await self._archive.delete(
                Selection(
                    message_ids=frozenset({key.message_id}),
                    attachment_ids=frozenset({key.attachment_id}),
                )
            )

    async def _known_vector(self, content_hash: str) -> Vector | None:
        for one, vector in self._ready:
            if one.picture.content_hash == content_hash:
                return vector
        stored = await self._archive.embeddings([content_hash], self._model.id)
        return stored.get(content_hash)

    def _settle(self, content_hash: str, outcome: Embedded | EmbeddingError) -> None:
        """Takes the server's answer about some bytes."""
        waiting = self._waiting.pop(content_hash)
        if isinstance(outcome, EmbeddingError):
            for one in waiting:
                self._put_aside(one.found, str(outcome))
            return
        if outcome.model_id != self._model.id:
            raise ModelChangedError(
                f"The server now serves {outcome.model_id}, and this run began with "
                f"{self._model.id}: run the command again."
            )
        self._ready += [(one, outcome.embedding) for one in waiting]
        self._tell(embedded=self.progress.embedded + 1)

    def _put_aside(self, found: Found, reason: str) -> None:
        self._under_way.discard(found.key)
        self.set_aside.append(SetAside(name=str(found.path), reason=reason))
        self._tell(set_aside=len(self.set_aside))

    async def _store(self, *, at_least: int) -> None:
        """Stores what is ready, if it is worth it.

        What was interrupted stays ready: storing it twice does no harm.
        """
        async with self._storing:
            if len(self._ready) < at_least:
                return
            batch = self._ready[:]
            await self._forget_old_versions([one.found for one, _ in batch])
            refused: dict[PictureKey, str] = {}
            try:
                await self._archive.upsert_many(
                    [
                        Entry(picture=one.picture, model_id=self._model.id, embedding=vector)
                        for one, vector in batch
                    ]
                )
            except EntriesRefusedError as error:
                refused = error.by_picture
            await self._forget_file_names([one.found for one, _ in batch])
            del self._ready[: len(batch)]
            self._under_way.difference_update(one.found.key for one, _ in batch)
            for one, _ in batch:
                if one.found.key in refused:
                    self._put_aside(one.found, f"is refused: {refused[one.found.key]}")
            self._tell(stored=self.progress.stored + len(batch) - len(refused))

    async def _forget_old_versions(self, batch: list[Found]) -> None:
        """Deletes pictures whose file was changed in its place; other models' of the same stay."""
        replacing = {found.key: found for found in batch if found.replaces_message}
        if not replacing:
            return
        same = await self._archive.seen(replacing, None)
        changed = frozenset(key.message_id for key in replacing.keys() - same)
        await self._archive.delete(Selection(message_ids=changed))

    def _tell(self, **changes: Any) -> None:
        self.progress = replace(self.progress, **changes)
        self._report(self.progress)


def _take(items: Iterator[Found | SetAside]) -> list[Found | SetAside]:
    return list(islice(items, _BATCH))
