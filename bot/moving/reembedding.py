"""Embedding every picture of an archive again, with another model: `mapseek archive reembed`.

    entries of other models ▶ not embedded yet ▶ bytes ▶ embed (bulk lane) ▶ store in batches

Searches go on on the current model all the while. What is stored stays, so a run may be stopped at
any moment; passes are repeated until one finds nothing new, for what is posted meanwhile.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from opentelemetry import trace

from bot.archive.port import EntriesRefusedError, Entry, ImageArchive, PictureKey, Selection, Vector
from bot.importer.found import SetAside
from bot.moving.copying import batches
from bot.moving.sources import MissingError, Sources
from inference.client import Embedded, EmbeddingClient, ModelInfo
from inference.errors import EmbeddingError, ModelChangedError

_tracer = trace.get_tracer("mapseek.bot")

# Pictures that are fetched together, and held in memory.
_BATCH = 16
_STORE = 64
# So many of those that could not be embedded are kept for the report; all are counted.
_MOST_NAMES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reembedded:
    """How far it has come, in pictures.

    Attributes:
        looked_at: Entries of other models that were looked at in this pass.
        known: Of those, with a vector of the new model already.
        stored: Stored by this run.
        embedded: Embedded by this run; of the others, the bytes were known already.
        missing: Not embedded in this pass.
    """

    looked_at: int = 0
    known: int = 0
    stored: int = 0
    embedded: int = 0
    missing: int = 0


@dataclass(slots=True)
class _UnderWay:
    """What a pass has begun with.

    Attributes:
        keys: The pictures of all that follows.
        sent: What the server has not answered, by the number that it was sent with.
        ready: What waits to be stored, with the model that the picture was read with.
    """

    keys: set[PictureKey] = field(default_factory=set)
    sent: dict[int, Entry] = field(default_factory=dict)
    ready: list[tuple[Entry, str]] = field(default_factory=list)


class Reembedder:
    """One run.

    Args:
        archive: Whose pictures.
        client: Calls the server that serves the new model.
        model: What that is.
        sources: Where the bytes are.
        report: Is told of every step.

    Attributes:
        progress: How far it came, however it ended.
        set_aside: What could not be embedded in the last pass, and why; the first of them.
        reasons: How many could not be embedded, by reason.
    """

    def __init__(
        self,
        *,
        archive: ImageArchive,
        client: EmbeddingClient,
        model: ModelInfo,
        sources: Sources,
        report: Callable[[Reembedded], None] = lambda _: None,
    ) -> None:
        self.progress = Reembedded()
        self.set_aside: list[SetAside] = []
        self.reasons: Counter[str] = Counter()
        self._archive = archive
        self._client = client
        self._model = model
        self._sources = sources
        self._report = report
        self._under_way = _UnderWay()
        self._storing = asyncio.Lock()

    async def run(self) -> bool:
        """Makes passes until one stores nothing; whether every picture has its vector then.

        Cancelling it stores what is embedded, and then stops.

        Raises:
            ArchiveError: The archive cannot be read or written.
            EmbeddingError: The server stayed away, refuses this client or changed its model.
        """
        while await self._pass():
            pass
        return self.progress.missing == 0

    async def _pass(self) -> bool:
        """Goes through the archive once; whether anything was stored."""
        before = self.progress.stored
        self.set_aside, self.reasons, self._under_way = [], Counter(), _UnderWay()
        self._tell(looked_at=0, known=0, missing=0)
        with _tracer.start_as_current_span("mapseek.reembed") as span:
            try:
                async with aclosing(self._client.embed_many(self._to_embed())) as items:
                    async for item in items:
                        self._settle(self._under_way.sent.pop(item.id), item.outcome)
                        await self._store(at_least=_STORE)
            finally:
                await self._store(at_least=1)
                span.set_attribute("mapseek.stored", self.progress.stored - before)
                span.set_attribute("mapseek.missing", self.progress.missing)
        return self.progress.stored > before

    async def _to_embed(self) -> AsyncIterator[tuple[int, bytes]]:
        """What the server has to look at; everything else is dealt with on the way."""
        number = 0
        async for batch in batches(self._archive.entries(), _BATCH):
            new = await self._new([one for one in batch if one.model_id != self._model.id])
            for entry, data in zip(
                new, await asyncio.gather(*map(self._bytes_of, new)), strict=True
            ):
                if data is not None:
                    self._under_way.sent[number] = entry
                    yield number, data
                    number += 1
            await self._store(at_least=_STORE)

    async def _new(self, batch: list[Entry]) -> list[Entry]:
        """Those of a batch that have no vector of the new model, and whose bytes have none."""
        if not batch:
            return []
        keys = {entry.picture.key for entry in batch}
        # Asked first: what is stored while the archive answers was under way before.
        under_way = self._under_way.keys & keys
        known = await self._archive.seen(keys - under_way, self._model.id) | under_way
        new = {entry.picture.key: entry for entry in batch if entry.picture.key not in known}
        self._under_way.keys.update(new)
        self._tell(
            looked_at=self.progress.looked_at + len(batch),
            known=self.progress.known + len(batch) - len(new),
        )
        hashes = {entry.picture.content_hash for entry in new.values()} - {""}
        vectors = await self._archive.embeddings(hashes, self._model.id) if hashes else {}
        for entry in list(new.values()):
            vector = vectors.get(entry.picture.content_hash)
            if vector is not None:
                self._ready(new.pop(entry.picture.key), vector)
        return list(new.values())

    async def _bytes_of(self, entry: Entry) -> bytes | None:
        try:
            return await self._sources.fetch(entry.picture)
        except MissingError as error:
            self._put_aside(entry, str(error))
            return None

    def _settle(self, entry: Entry, outcome: Embedded | EmbeddingError) -> None:
        """Takes the server's answer about a picture."""
        if isinstance(outcome, EmbeddingError):
            self._put_aside(entry, str(outcome).rstrip("."))
            return
        if outcome.model_id != self._model.id:
            raise ModelChangedError(
                f"The server now serves {outcome.model_id}, and this run began with "
                f"{self._model.id}: run the command again."
            )
        self._ready(entry, outcome.embedding)
        self._tell(embedded=self.progress.embedded + 1)

    def _ready(self, entry: Entry, vector: Vector) -> None:
        made = replace(entry, model_id=self._model.id, embedding=vector)
        self._under_way.ready.append((made, entry.model_id))

    def _put_aside(self, entry: Entry, reason: str) -> None:
        self._under_way.keys.discard(entry.picture.key)
        self.reasons[reason] += 1
        if len(self.set_aside) < _MOST_NAMES:
            name = entry.picture.message_link or entry.picture.image_url
            self.set_aside.append(SetAside(name=name, reason=reason))
        self._tell(missing=self.progress.missing + 1)

    async def _store(self, *, at_least: int) -> None:
        """Stores what is ready, if it is worth it.

        A picture that was deleted since it was read must not come back. So they are looked for
        before they are stored, and once more afterwards.
        """
        async with self._storing:
            batch = self._under_way.ready[:]
            if len(batch) < at_least:
                return
            there = await self._still_there(batch)
            wanted = [made for made, _ in batch if made.picture.key in there]
            if wanted:
                refused = await self._upsert(wanted)
                gone = there - await self._still_there(batch)
                for key in gone:
                    await self._archive.delete(
                        Selection(
                            message_ids=frozenset({key.message_id}),
                            attachment_ids=frozenset({key.attachment_id}),
                        )
                    )
                self._tell(stored=self.progress.stored + len(wanted) - len(gone | refused))
            del self._under_way.ready[: len(batch)]
            self._under_way.keys.difference_update(made.picture.key for made, _ in batch)

    async def _upsert(self, entries: list[Entry]) -> set[PictureKey]:
        """Stores entries; returns those that the archive refused for good."""
        try:
            await self._archive.upsert_many(entries)
        except EntriesRefusedError as error:
            refused = error.by_picture
            for entry in entries:
                if entry.picture.key in refused:
                    self._put_aside(entry, f"the archive refused it: {refused[entry.picture.key]}")
            return set(refused)
        return set()

    async def _still_there(self, batch: Sequence[tuple[Entry, str]]) -> set[PictureKey]:
        """The pictures that still have the vector of the model that they were read with."""
        there: set[PictureKey] = set()
        for model_id in {old for _, old in batch}:
            keys = [made.picture.key for made, old in batch if old == model_id]
            there |= await self._archive.seen(keys, model_id)
        return there

    def _tell(self, **changes: Any) -> None:
        self.progress = replace(self.progress, **changes)
        self._report(self.progress)
