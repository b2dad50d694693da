"""Every call to the MongoDB driver: motor today, PyMongo's own async client tomorrow (ADR 0009).

A call that fails for a passing reason is tried again with jittered pauses until its budget is
spent; whatever remains becomes an `ArchiveError` in words. What a call carries is never logged.
"""

import asyncio
import inspect
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pymongo
from bson.errors import BSONError
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import DeleteOne, IndexModel, UpdateOne
from pymongo.errors import (
    BulkWriteError,
    CollectionInvalid,
    InvalidURI,
    OperationFailure,
    PyMongoError,
)
from pymongo.operations import SearchIndexModel

from bot.archive.atlas.troubles import (
    Trouble,
    is_passing,
    trouble_of,
    trouble_of_error,
    unconfigured,
)
from bot.archive.port import ArchiveError
from bot.settings import BotSettings

_T = TypeVar("_T")

_log = logging.getLogger("mapseek.archive")

_SELECTION_MS = 5_000
_CONNECT_MS = 10_000
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 3.0

_DUPLICATE_KEY = 11000
_NAMESPACE_EXISTS = 48
_INDEX_NOT_FOUND = 27

# A build that is cut off begins anew, so it is given its time.
_BUILD_S = 3600.0
# What reads the whole collection may take longer than a search; small clusters allow 300 s.
_PATIENT_S = 290.0

Write = UpdateOne | DeleteOne
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One write of a bulk that the database refused.

    Attributes:
        index: Which of the writes.
        code: MongoDB's error code.
        reason: Its words, without the document.
    """

    index: int
    code: int
    reason: str


class Driver:
    """One collection of one database. Made inside the running loop, which it is bound to."""

    def __init__(self, settings: BotSettings) -> None:
        """Reads the connection string; nothing is connected yet.

        Raises:
            StartupError: There is no connection string.
            ArchiveError: It cannot be read.
        """
        # Below this the driver logs its commands, and with them the documents.
        logging.getLogger("pymongo").setLevel(logging.INFO)
        self._retry_s = settings.atlas_retry_s
        uri = settings.required_atlas_uri()
        # The driver takes anything else for the name of a host.
        if not uri.startswith(("mongodb://", "mongodb+srv://")):
            raise unconfigured(InvalidURI("Its scheme must be mongodb:// or mongodb+srv://"))
        try:
            self._client: Any = AsyncIOMotorClient(
                uri,
                appname="mapseek",
                compressors="zlib",
                connectTimeoutMS=_CONNECT_MS,
                maxIdleTimeMS=300_000,
                maxPoolSize=settings.atlas_connections,
                serverSelectionTimeoutMS=min(_SELECTION_MS, int(settings.atlas_timeout_s * 1000)),
                timeoutMS=int(settings.atlas_timeout_s * 1000),
                tz_aware=True,
                waitQueueTimeoutMS=int(settings.atlas_timeout_s * 1000),
            )
            database = self._client[settings.atlas_database]
            self._database = database
            self._collection = database[settings.atlas_collection]
            self._state = database[f"{settings.atlas_collection}_state"]
        except (PyMongoError, ValueError, TypeError) as error:
            # Not chained: a traceback could quote the connection string.
            raise unconfigured(error) from None
        # What the last call failed with after its whole budget, until one succeeds.
        self._outage: Trouble | None = None
        self._looking = False
        self._name = settings.atlas_collection
        self._open = True

    async def close(self) -> None:
        """Closes every connection."""
        self._open = False
        closing = self._client.close()
        if inspect.isawaitable(closing):
            await closing

    async def ping(self) -> Trouble | None:
        """Asks once whether the server answers and knows this user; None where all is well."""
        try:
            await self._collection.find_one({}, {"_id": 1})
        except PyMongoError as error:
            return trouble_of_error(error)
        return None

    async def find(
        self,
        where: Mapping[str, Any],
        fields: Sequence[str] = (),
        *,
        sort: Sequence[str] = (),
        limit: int = 0,
        patient: bool = False,
    ) -> list[Document]:
        """Documents that fit, with these fields (all if none is named).

        `patient` gives it the time to read the whole collection.
        """

        async def run() -> list[Document]:
            async with self._time(_PATIENT_S if patient else None):
                cursor = self._collection.find(where, dict.fromkeys(fields, 1) or None, limit=limit)
                if sort:
                    cursor = cursor.sort([(name, 1) for name in sort])
                found: list[Document] = await cursor.to_list(None)
                return found

        return await self._call(run)

    async def aggregate(
        self, pipeline: Sequence[Mapping[str, Any]], *, patient: bool = False
    ) -> list[Document]:
        """What an aggregation gives; `patient` as for `find`."""

        async def run() -> list[Document]:
            async with self._time(_PATIENT_S if patient else None):
                cursor = self._collection.aggregate(list(pipeline))
                if inspect.isawaitable(cursor):
                    cursor = await cursor
                found: list[Document] = await cursor.to_list(None)
                return found

        return await self._call(run)

    async def bulk(self, writes: Sequence[Write]) -> list[Failure]:
        """Carries out writes in any order; each must be one that may be repeated.

        What failed for a passing reason is done again until it succeeds or the budget is spent.

        Returns:
            What the database refused for good, of each write by itself.

        Raises:
            ArchiveError: The whole cannot be done: nobody answers, no room is left, no rights.
        """
        refused: list[Failure] = []
        left = list(range(len(writes)))
        raced = False

        async def run() -> None:
            nonlocal left, raced
            while left:
                writes_left = [writes[index] for index in left]
                try:
                    await self._collection.bulk_write(writes_left, ordered=False)
                except BulkWriteError as error:
                    failures = _failures(error, left)
                else:
                    failures = []
                for failure in failures:
                    trouble = trouble_of(failure.code, failure.reason)
                    if trouble.hopeless:
                        raise _Again(trouble)
                passing = [one for one in failures if is_passing(one.code)]
                # Two upserts of one key can race; the second then finds the first one's document.
                lost = [one for one in failures if one.code == _DUPLICATE_KEY and not raced]
                raced = raced or bool(lost)
                again = [*passing, *lost]
                refused.extend(one for one in failures if one not in again)
                left = [one.index for one in again]
                if passing:
                    raise _Again(trouble_of(passing[0].code, passing[0].reason))

        await self._call(run)
        return refused

    async def delete(self, where: Mapping[str, Any]) -> int:
        """Deletes what fits; returns how many the last try of it deleted."""

        async def run() -> int:
            return int((await self._collection.delete_many(where)).deleted_count)

        return await self._call(run)

    async def count(self) -> int:
        """How many documents there are, from the collection's own book-keeping."""

        async def run() -> int:
            return int(await self._collection.estimated_document_count())

        return await self._call(run)

    async def state(self) -> Document:
        """What is remembered about the collection, in one document of a collection beside it."""

        async def run() -> Document:
            found: Document | None = await self._state.find_one({"_id": "archive"})
            return found or {}

        return await self._call(run)

    async def remember(self, fields: Mapping[str, Any]) -> None:
        """Sets fields of what `state` gives."""
        await self._call(
            lambda: self._state.update_one({"_id": "archive"}, {"$set": fields}, upsert=True)
        )

    async def create_collection(self) -> None:
        """Makes the collection where it is missing."""

        async def run() -> None:
            try:
                await self._database.create_collection(self._name)
            except CollectionInvalid:
                pass
            except OperationFailure as error:
                if error.code != _NAMESPACE_EXISTS:
                    raise

        await self._call(run)

    async def drop_collection(self) -> None:
        """Removes the collection with everything in it, and its indexes."""
        await self._call(self._collection.drop)

    async def create_indexes(self, models: Sequence[IndexModel]) -> None:
        """Makes b-tree indexes where they are missing, however long a large collection takes."""

        async def run() -> None:
            async with self._time(_BUILD_S):
                await self._collection.create_indexes(list(models))

        await self._call(run)

    async def search_indexes(self) -> list[Document]:
        """The collection's search indexes, as `$listSearchIndexes` tells them."""
        return await self.aggregate([{"$listSearchIndexes": {}}])

    async def create_search_index(self, name: str, definition: Document) -> None:
        """Asks for a vector search index; it is built in the background."""
        model = SearchIndexModel(name=name, type="vectorSearch", definition=definition)
        await self._call(lambda: self._collection.create_search_index(model))

    async def update_search_index(self, name: str, definition: Document) -> None:
        """Changes a search index; the old one serves until the new one is built."""
        await self._call(lambda: self._collection.update_search_index(name, definition))

    async def drop_search_index(self, name: str) -> None:
        """Removes a search index, if it is there."""

        async def run() -> None:
            try:
                await self._collection.drop_search_index(name)
            except OperationFailure as error:
                if error.code != _INDEX_NOT_FOUND:
                    raise

        await self._call(run)

    @asynccontextmanager
    async def _time(self, seconds: float | None) -> AsyncIterator[None]:
        """Gives a call more time than the settings do; None gives it no more."""
        if seconds is None:
            yield
            return
        # The driver would look for a server that is away just as long, so one is asked first.
        await self._collection.find_one({}, {"_id": 1})
        with pymongo.timeout(seconds):
            yield

    async def _call(self, run: Callable[[], Awaitable[_T]]) -> _T:
        if not self._open:
            raise ArchiveError("The archive in Atlas is not open.")
        if self._outage is None:
            return await self._insist(run, self._retry_s)
        if self._looking:  # members are told at once, and nobody else knocks meanwhile
            raise self._outage.error()
        self._looking = True
        try:
            return await self._insist(run, 0.0)
        finally:
            self._looking = False

    async def _insist(self, run: Callable[[], Awaitable[_T]], budget_s: float) -> _T:
        loop = asyncio.get_running_loop()
        give_up_at_s = loop.time() + budget_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                done = await run()
            except (_Again, PyMongoError) as error:
                trouble = error.trouble if isinstance(error, _Again) else trouble_of_error(error)
                wait_s = random.uniform(0.5, 1.0) * pause_s
                if not trouble.passing:
                    raise trouble.error() from error
                # Whoever finds out first that this is more than a moment, finds out for all.
                if self._outage is not None or loop.time() + wait_s > give_up_at_s:
                    self._outage = trouble
                    raise trouble.error() from error
            except (BSONError, OverflowError, UnicodeError) as error:
                raise ArchiveError(
                    f"Atlas cannot store a value that it was given: {_short(error)}."
                ) from None
            else:
                self._outage = None
                return done
            _log.info("Trying Atlas again in %.1f s: %s", wait_s, trouble.sentence)
            await asyncio.sleep(wait_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


class _Again(Exception):  # noqa: N818 - a signal of this module's own
    """Part of a bulk failed; the driver's own error holds the documents and must not travel on."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.sentence)
        self.trouble = trouble


def _failures(error: BulkWriteError, indexes: Sequence[int]) -> list[Failure]:
    """What failed, without the documents that the driver's report holds."""
    details = error.details or {}
    failures = [
        Failure(
            index=indexes[one["index"]], code=int(one.get("code", 0)), reason=str(one["errmsg"])
        )
        for one in details.get("writeErrors", [])
    ]
    if failures:
        return failures
    # The writes are done, and a majority has not confirmed them: done again, all are confirmed.
    concern = (details.get("writeConcernErrors") or [{}])[0]
    code = int(concern.get("code", 64))
    reason = str(concern.get("errmsg", "no majority confirmed the write"))
    return [Failure(index=index, code=code, reason=reason) for index in indexes]


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0][:200].rstrip(".")
