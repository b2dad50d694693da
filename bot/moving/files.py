"""Exporting an archive into a file of JSON lines, and importing such files."""

import asyncio
import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from bot.archive.port import EntriesRefusedError, Entry, EntryKey, ImageArchive
from bot.importer.found import SourceError
from bot.moving.copying import batches
from bot.moving.lines import MOST_BYTES, LineError, dump, load

# Standard input or output, as is the custom.
PIPE = Path("-")

_BATCH = 256
# So many bad lines are kept for the report; all are counted.
_MOST_BAD = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line that was not imported.

    Attributes:
        number: Which one, from 1.
        reason: Why not.
    """

    number: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """How far an import has come, in lines.

    Attributes:
        stored: Entries that were stored.
        there: Entries that the archive had.
        bad: Lines that are no entry, or one that the archive refused.
        bad_lines: The first of them.
    """

    stored: int = 0
    there: int = 0
    bad: int = 0
    bad_lines: tuple[BadLine, ...] = ()

    @property
    def done(self) -> int:
        """Lines that are dealt with."""
        return self.stored + self.there + self.bad


async def export_lines(
    archive: ImageArchive,
    file: BinaryIO,
    *,
    model_id: str | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> int:
    """Writes the entries of an archive, in the order of their keys; returns how many.

    Args:
        archive: What is exported.
        file: Where to.
        model_id: Only this model's.
        report: Is told how many were written.

    Raises:
        ArchiveError: The archive cannot be read.
        OSError: The file cannot be written.
    """
    written = 0
    async for batch in batches(archive.entries(model_id)):
        await asyncio.to_thread(file.write, b"".join(map(dump, batch)))
        written += len(batch)
        report(written)
    return written


class Importer:
    """One import. What is stored stays stored, and the next run goes on from there.

    Args:
        archive: Where to.
        replace: Whether entries that are there already are stored again.
        report: Is told how far it has come.

    Attributes:
        imported: How far it came.
    """

    def __init__(
        self,
        archive: ImageArchive,
        *,
        replace: bool = False,
        report: Callable[[Imported], None] = lambda _: None,
    ) -> None:
        self.imported = Imported()
        self._archive = archive
        self._replace = replace
        self._report = report
        self._dimensions: dict[str, int] = {}

    async def run(self, file: BinaryIO) -> None:
        """Imports every line that is an entry, and notes the others.

        Raises:
            ArchiveError: The archive cannot be read or written.
            SourceError: The file is damaged.
        """
        lines = numbered(file)
        while batch := await asyncio.to_thread(_take, lines):
            await self._take_in(batch)
            self._report(self.imported)

    async def _take_in(self, batch: list[tuple[int, bytes | None]]) -> None:
        entries: dict[EntryKey, Entry] = {}
        lines: dict[EntryKey, int] = {}
        twice = 0
        for number, line in batch:
            try:
                entry = load(line)
                await self._check_length(entry)
            except LineError as error:
                self._note(number, str(error))
                continue
            # As over the whole file: what is there stays, or what comes later replaces it.
            twice += entry.key in entries
            if self._replace or entry.key not in entries:
                entries[entry.key], lines[entry.key] = entry, number
        wanted = list(entries.values()) if self._replace else await self._missing(entries)
        try:
            if wanted:
                await self._archive.upsert_many(wanted)
        except EntriesRefusedError as error:
            for key, reason in error.refused.items():
                self._note(lines[key], reason)
            wanted = [entry for entry in wanted if entry.key not in error.refused]
        self.imported = replace(
            self.imported,
            stored=self.imported.stored + len(wanted) + (twice if self._replace else 0),
            there=self.imported.there
            + (0 if self._replace else len(entries) - len(wanted) + twice),
        )

    async def _missing(self, entries: dict[EntryKey, Entry]) -> list[Entry]:
        missing: list[Entry] = []
        for model_id in sorted({key.model_id for key in entries}):
            of_model = [entry for key, entry in entries.items() if key.model_id == model_id]
            seen = await self._archive.seen([one.picture.key for one in of_model], model_id)
            missing += [entry for entry in of_model if entry.picture.key not in seen]
        return missing

    async def _check_length(self, entry: Entry) -> None:
        """Compares a vector's length with that of its model: the archive's, or the first line's."""
        size = entry.embedding.size
        if entry.model_id not in self._dimensions:
            async for stored in self._archive.entries(entry.model_id):
                self._dimensions[entry.model_id] = stored.embedding.size
                break
        wanted = self._dimensions.setdefault(entry.model_id, size)
        if size != wanted:
            raise LineError(f"embedding: has {size} numbers, but its model makes {wanted}")

    def _note(self, number: int, reason: str) -> None:
        kept = self.imported.bad_lines
        if len(kept) < _MOST_BAD:
            kept = (*kept, BadLine(number=number, reason=reason))
        self.imported = replace(self.imported, bad=self.imported.bad + 1, bad_lines=kept)


def numbered(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """The lines that hold anything, with their numbers; None for one that is far too long.

    Raises:
        SourceError: The file cannot be read, or its compression is damaged.
    """
    number = 0
    try:
        while line := file.readline(MOST_BYTES + 1):
            number += 1
            if len(line) > MOST_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MOST_BYTES)
                yield number, None
            elif line.strip():
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(
            f"The file's compression is damaged after line {number}: {error}. What came before is "
            "imported."
        ) from error
    except OSError as error:
        raise SourceError(
            f"The file cannot be read after line {number}: {error.strerror or error}."
        ) from error


def _take(lines: Iterator[tuple[int, bytes | None]]) -> list[tuple[int, bytes | None]]:
    return list(islice(lines, _BATCH))


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Opens a file of lines: compressed if its name ends with .gz, standard input if it is "-".

    Raises:
        SourceError: It cannot be opened.
    """
    if path == PIPE:
        yield sys.stdin.buffer
        return
    try:
        file = _open(path, path, "rb")
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}.") from error
    with file:
        yield file


@contextmanager
def writing(path: Path, *, replace_it: bool) -> Iterator[BinaryIO]:
    """Opens a file to be written; it is there when all of it is, and not before.

    Raises:
        SourceError: It is there already, or cannot be written.
    """
    if path == PIPE:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if path.exists() and not replace_it:
        raise SourceError(f"{path} is there already: name another file, or add --force.")
    part = path.with_name(f"{path.name}.part")
    try:
        with _open(part, path, "wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _open(path: Path, named: Path, mode: str) -> BinaryIO:
    if named.suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, mode, compresslevel=6))
    return cast("BinaryIO", path.open(mode))
