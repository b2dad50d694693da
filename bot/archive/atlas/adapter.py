"""The `ImageArchive` in MongoDB Atlas."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from bson import ObjectId

from bot.archive.atlas import counting, documents, ranking, writing
from bot.archive.atlas.driver import Driver
from bot.archive.atlas.recent import Recent
from bot.archive.atlas.serving import Serving
from bot.archive.fitting import sort_out
from bot.archive.observation import observed
from bot.archive.port import (
    ArchiveError,
    EntriesRefusedError,
    Entry,
    EntryKey,
    Match,
    PictureKey,
    Query,
    Selection,
    Stats,
    Vector,
)
from bot.settings import BotSettings

_T = TypeVar("_T")

_log = logging.getLogger("mapseek.archive")

# `entries` reads this many at a time: a stream may take days, a cursor lives ten minutes.
_PAGE = 256
# Ids that one query names.
_IDS = 1000
# Some of what is found may be turned down: the message that is asked about, what was deleted.
_SPARE = 10
_GROWTH = 8
# The newest entries that are taken into memory at the start, 1 MB of vectors.
_RECALLED = 512


class AtlasArchive:
    """An `ImageArchive` in one collection of MongoDB Atlas.

    What this process has just written is found at once, and so is what was new when it began; what
    another writes later, as soon as Atlas's search index has followed, in a second or so.
    """

    def __init__(self, settings: BotSettings) -> None:
        """Names the collection; entering the context opens it.

        Args:
            settings: The connection string and all that begins with `atlas_`.
        """
        self._settings = settings
        self._driver: Driver | None = None
        self._recent = Recent(keep_s=settings.atlas_lag_s)
        self._dimensions: dict[str, int] = {}
        self._preparing = asyncio.Lock()
        self._prepared = False

    async def __aenter__(self) -> Self:
        """Connects. A server that is away is waited for by the first call, not here.

        Raises:
            StartupError: There is no connection string.
            ArchiveError: It leads nowhere, or the password is wrong.
        """
        driver = Driver(self._settings)
        self._serving = Serving(driver, self._settings)
        trouble = await driver.ping()
        if trouble is not None and not trouble.passing:
            await driver.close()
            raise trouble.error()
        if trouble is not None:
            _log.warning("The archive is away at the start: %s", trouble.sentence)
        else:
            await self._recall(driver)
        self._driver = driver
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes every connection."""
        driver, self._driver = self._driver, None
        if driver is not None:
            await driver.close()

    async def upsert_many(self, entries: Sequence[Entry]) -> None:
        """See `ImageArchive.upsert_many`."""
        driver = self._opened()
        with observed("upsert"):
            fit, refused = sort_out(entries)
            left = writing.settle(fit)
            models = sorted({entry.model_id for entry in left})
            known = {model: await self._dimensions_of(model) for model in models}
            # All are looked at, the ones that later ones of the same key replace as well.
            writing.upserts(fit, known)
            writes = writing.upserts(left, known)
            await self._prepare(driver)
            refused |= await writing.store(driver, left, writes)
            stored = [entry for entry in left if entry.key not in refused]
            self._dimensions.update({one.model_id: one.embedding.size for one in stored})
            self._recent.stored(stored)
            changed, gone = await writing.align(driver, stored)
            self._recent.forget(gone)
            self._recent.stored(changed)
            if refused:
                raise EntriesRefusedError(refused)

    async def search(self, query: Query) -> list[Match]:
        """See `ImageArchive.search`."""
        driver = self._opened()
        if query.limit < 1:
            raise ArchiveError(
                f"A search for {query.limit} pictures finds nothing: ask for 1 or more."
            )
        ranking.dated(query)
        with observed("search"):
            dimensions = await self._dimensions_of(query.model_id)
            vector = documents.stored_vector(query.embedding, dimensions, what="the query")
            if dimensions is None or query.channel_ids == frozenset():
                return []
            return (await self._nearest(driver, query, vector, dimensions))[: query.limit]

    async def _nearest(
        self, driver: Driver, query: Query, vector: Any, dimensions: int
    ) -> list[Match]:
        """At least the best matches, best first."""
        index = await self._serving.index_for(dimensions)
        limit = min(ranking.MOST, 2 * query.limit + _SPARE)
        while True:
            candidates = await self._serving.candidates(index, limit)
            # Taken before: what is stored while the question travels may be in the answer or not.
            recent = self._recent.entries(query.model_id)
            changes = self._recent.changes
            answer = await driver.aggregate(
                ranking.pipeline(query, vector, index, limit=limit, candidates=candidates)
            )
            if not answer and not await self._serving.still_serves(index, dimensions):
                index = await self._serving.index_for(dimensions)
                continue
            fresh = {entry.picture.key for entry in recent}
            matches = ranking.best(
                [
                    *ranking.compared(query, recent),
                    *(
                        match
                        for match in ranking.found(query, answer)
                        if match.picture.key not in fresh
                    ),
                ]
            )
            # Atlas drops what was deleted after it has counted, so its answers may be short.
            exhausted = len(answer) + changes < limit
            last = ranking.last_score(query, answer)
            if exhausted or limit == ranking.MOST or ranking.settled(matches, query.limit, last):
                return matches
            limit = min(ranking.MOST, max(limit * _GROWTH, len(answer) + changes + 1))

    async def delete(self, selection: Selection) -> int:
        """See `ImageArchive.delete`."""
        driver = self._opened()
        where = _selected(selection)
        if not where:
            raise ArchiveError(
                "Deleting needs a guild, a channel, an author or messages to delete."
            )
        with observed("delete"):
            # Counted first: a delete that is tried again no longer finds what the first try did.
            documents_, pictures = await counting.selected(driver, where)
            try:
                await driver.delete(where)
            finally:
                self._recent.deleted(selection, documents_)
            return pictures

    async def seen(self, keys: Iterable[PictureKey], model_id: str | None) -> set[PictureKey]:
        """See `ImageArchive.seen`."""
        driver = self._opened()
        wanted = set(keys)
        with observed("seen"):
            found: set[PictureKey] = set()
            for some in _pieces(sorted(wanted, key=lambda key: key.message_id)):
                found |= {
                    documents.picture_key(document)
                    for document in await driver.find(
                        documents.of_model(model_id) | documents.of_messages(some),
                        (documents.MESSAGE, documents.ATTACHMENT),
                    )
                }
            return found & wanted

    async def embeddings(self, content_hashes: Iterable[str], model_id: str) -> dict[str, Vector]:
        """See `ImageArchive.embeddings`."""
        driver = self._opened()
        with observed("embeddings"):
            known: dict[str, Vector] = {}
            for some in _pieces(sorted({*content_hashes} - {""})):
                found = await driver.aggregate(
                    [
                        {
                            "$match": {
                                documents.HASH: {"$in": some},
                                documents.MODEL: model_id,
                            }
                        },
                        {
                            "$group": {
                                "_id": f"${documents.HASH}",
                                documents.VECTOR: {"$first": f"${documents.VECTOR}"},
                            }
                        },
                    ]
                )
                known |= {one["_id"]: documents.vector_of(one) for one in found}
            return known

    async def stats(self) -> Stats:
        """See `ImageArchive.stats`."""
        driver = self._opened()
        with observed("stats"):
            return await counting.count(driver)

    async def entries(
        self, model_id: str | None = None, *, after: EntryKey | None = None
    ) -> AsyncIterator[Entry]:
        """See `ImageArchive.entries`."""
        of_model = documents.of_model(model_id)
        full = True
        while full:
            driver = self._opened()
            where = of_model if after is None else {"$and": [of_model, documents.behind(after)]}
            with observed("entries"):
                page = await driver.find(where, sort=documents.KEY, limit=_PAGE)
            full = len(page) == _PAGE
            for document in page:
                entry = documents.entry_of(document)
                yield entry
                after = entry.key

    async def current_model(self) -> str | None:
        """See `ImageArchive.current_model`."""
        driver = self._opened()
        with observed("current_model"):
            chosen = (await driver.state()).get("current_model")
            if isinstance(chosen, str):
                return chosen
            # The ends of the index: nothing in between need be read.
            ends = [
                await driver.aggregate(
                    [
                        {"$match": documents.OURS},
                        {"$sort": dict.fromkeys(documents.KEY, way)},
                        {"$limit": 1},
                        {"$project": {documents.MODEL: 1}},
                    ]
                )
                for way in (1, -1)
            ]
            models = {one[documents.MODEL] for end in ends for one in end}
            return models.pop() if len(models) == 1 else None

    async def choose_model(self, model_id: str) -> None:
        """See `ImageArchive.choose_model`."""
        driver = self._opened()
        with observed("choose_model"):
            await driver.remember({"current_model": model_id})

    async def drop_model(self, model_id: str) -> int:
        """See `ImageArchive.drop_model`."""
        driver = self._opened()
        with observed("drop_model"):
            self._recent.forget([entry.key for entry in self._recent.entries(model_id)])
            self._dimensions.pop(model_id, None)
            return await driver.delete(documents.of_model(model_id))

    def _opened(self) -> Driver:
        if self._driver is None:
            raise ArchiveError("The archive in Atlas is not open.")
        return self._driver

    async def _recall(self, driver: Driver) -> None:
        """Takes in what was stored just before: by this bot in its last life, or by a command."""
        if not self._settings.atlas_lag_s:
            return
        since = datetime.now(UTC) - timedelta(seconds=self._settings.atlas_lag_s)
        try:
            found = await driver.aggregate(
                [
                    {"$match": documents.OURS | {"_id": {"$gte": ObjectId.from_datetime(since)}}},
                    {"$sort": {"_id": -1}},
                    {"$limit": _RECALLED},
                ]
            )
        except ArchiveError as error:
            _log.warning("The archive is away at the start: %s", error)
            return
        for document in reversed(found):
            with suppress(ArchiveError):  # whoever reads it as an entry is told
                self._recent.stored([documents.entry_of(document)])

    async def _prepare(self, driver: Driver) -> None:
        """Sees to the unique key before the first write, so that nothing is ever stored twice."""
        async with self._preparing:
            if not self._prepared:
                await driver.create_indexes(documents.INDEXES)
                self._prepared = True

    async def _dimensions_of(self, model_id: str) -> int | None:
        """The length of a model's vectors; None where nothing of it is stored."""
        if model_id not in self._dimensions:
            found = await self._opened().find(
                documents.of_model(model_id), (documents.VECTOR,), limit=1
            )
            if not found:
                return None
            # An id names one export of one model: its length never changes.
            self._dimensions[model_id] = documents.vector_of(found[0]).size
        return self._dimensions[model_id]


def _selected(selection: Selection) -> dict[str, Any]:
    wanted = {
        documents.GUILD: selection.guild_id,
        documents.CHANNEL: selection.channel_id,
        documents.USER: selection.user_id,
        documents.MESSAGE: _any_of(selection.message_ids),
        documents.ATTACHMENT: _any_of(selection.attachment_ids),
    }
    return {path: value for path, value in wanted.items() if value is not None}


def _any_of(ids: frozenset[str] | None) -> dict[str, list[str]] | None:
    return None if ids is None else {"$in": sorted(ids)}


def _pieces(items: Sequence[_T]) -> list[Sequence[_T]]:
    return [items[start : start + _IDS] for start in range(0, len(items), _IDS)]
