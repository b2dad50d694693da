"""The archive in one file: SQLite with sqlite-vec, for one machine.

Every vector of the model that the filter lets through is compared; in large archives only those
that short codes propose. SQLite works in threads (one that writes, a few that read, a connection
each), so the event loop never waits for it. Another process may use the same file meanwhile.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import apsw

from bot.archive import reading, searching, writing
from bot.archive.database import connect, sentences
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

_P = ParamSpec("_P")
_T = TypeVar("_T")

# `entries` reads this many at a time, so that a slow consumer holds no transaction open.
_PAGE = 256


class EmbeddedArchive:
    """An `ImageArchive` in one SQLite file.

    While it is open, the newest changes lie in two files beside it (`-wal` and `-shm`); closing
    brings them home.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = True,
        readers: int = 2,
        busy_timeout_s: float = 10.0,
        exact_limit: int = writing.EXACT_LIMIT,
        proposals: int = searching.PROPOSALS,
    ) -> None:
        """Names the file; entering the context opens it.

        Args:
            path: The file.
            create: Whether to make it where it is missing.
            readers: How many reads may run at once.
            busy_timeout_s: How long to wait for other processes that write to the file.
            exact_limit: Up to so many vectors of a model a search compares all of them.
            proposals: Past that, how many vectors it compares.
        """
        self._path = path
        self._exact_limit = exact_limit
        self._proposals = proposals
        self._create = create
        self._busy_timeout_s = busy_timeout_s
        self._local = threading.local()
        self._connections: list[apsw.Connection] = []
        self._open = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="archive-write")
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="archive-read")

    async def __aenter__(self) -> Self:
        """Opens the file.

        Raises:
            ArchiveError: The file is missing, no archive, of a newer mapseek, locked or damaged.
        """
        self._open = True
        try:
            await self._run(self._writer, "open", writing.make_codes, exact_limit=self._exact_limit)
        except BaseException:
            await asyncio.to_thread(self._close)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file, after what is running."""
        await asyncio.to_thread(self._close)

    async def upsert_many(self, entries: Sequence[Entry]) -> None:
        """See `ImageArchive.upsert_many`."""
        fit, refused = sort_out(entries)
        await self._run(self._writer, "upsert", writing.upsert, fit, exact_limit=self._exact_limit)
        if refused:
            raise EntriesRefusedError(refused)

    async def search(self, query: Query) -> list[Match]:
        """See `ImageArchive.search`."""
        return await self._run(
            self._readers, "search", searching.search, query, proposals=self._proposals
        )

    async def delete(self, selection: Selection) -> int:
        """See `ImageArchive.delete`."""
        return await self._run(self._writer, "delete", writing.delete, selection)

    async def seen(self, keys: Iterable[PictureKey], model_id: str | None) -> set[PictureKey]:
        """See `ImageArchive.seen`."""
        return await self._run(self._readers, "seen", reading.seen, list(keys), model_id)

    async def embeddings(self, content_hashes: Iterable[str], model_id: str) -> dict[str, Vector]:
        """See `ImageArchive.embeddings`."""
        return await self._run(
            self._readers, "embeddings", reading.embeddings, list(content_hashes), model_id
        )

    async def stats(self) -> Stats:
        """See `ImageArchive.stats`."""
        return await self._run(self._readers, "stats", reading.stats, self._path)

    async def entries(
        self, model_id: str | None = None, *, after: EntryKey | None = None
    ) -> AsyncIterator[Entry]:
        """See `ImageArchive.entries`."""
        full = True
        while full:
            page = await self._run(self._readers, "entries", reading.page, model_id, after, _PAGE)
            full = len(page) == _PAGE
            for entry in page:
                yield entry
                after = entry.key

    async def current_model(self) -> str | None:
        """See `ImageArchive.current_model`."""
        return await self._run(self._readers, "current_model", reading.current_model)

    async def choose_model(self, model_id: str) -> None:
        """See `ImageArchive.choose_model`."""
        await self._run(self._writer, "choose_model", writing.choose_model, model_id)

    async def drop_model(self, model_id: str) -> int:
        """See `ImageArchive.drop_model`."""
        dropped = 0
        while some := await self._run(self._writer, "drop_model", writing.drop_some, model_id):
            dropped += some
        return dropped

    async def _run(
        self,
        executor: ThreadPoolExecutor,
        operation: str,
        work: Callable[Concatenate[apsw.Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        def run() -> _T:
            with sentences(self._path):
                return work(self._connection(), *args, **kwargs)

        if not self._open:
            raise ArchiveError(f"The archive {self._path} is not open.")
        with observed(operation):
            return await asyncio.get_running_loop().run_in_executor(executor, run)

    def _connection(self) -> apsw.Connection:
        """This thread's connection: apsw's must not be used by two threads at once."""
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = connect(
                self._path, create=self._create, busy_timeout_s=self._busy_timeout_s
            )
            self._local.connection = connection
            self._connections.append(connection)
        return connection

    def _close(self) -> None:
        self._open = False
        self._writer.shutdown()
        self._readers.shutdown()
        while self._connections:
            self._connections.pop().close()
