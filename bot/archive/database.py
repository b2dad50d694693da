"""The archive's file: opening it, its tables, and SQLite's errors in words.

A picture's row says who posted what and where. Each model has a `vec0` table (sqlite-vec) of its
own with the vectors and, beside them, the two columns that searches filter by, so that the filter
runs inside the vector query; where it has many, a table of short codes, too (`bot.archive.codes`).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import sqlite_vec

from bot.archive.port import ArchiveError, Vector
from bot.archive.rows import unpacked

# "mseek" in SQLite's header: tells our files from other programs'.
APPLICATION_ID = 0x6D73656B
# Small chunks keep a small archive small; past a few thousand vectors their size makes no
# difference to the time of a search (measured from 64 to 4096).
_CHUNK_SIZE = 64
# Searching reads every vector of the model: mapped pages spare a copy of each.
_MAPPED_BYTES = 1 << 30
# How often a file that somebody else is making is tried again, in seconds.
_BUSY_S = 0.01

# How a file of each version becomes one of the next; a new file takes all the steps.
_STEPS = (
    """
CREATE TABLE space (
    id INTEGER PRIMARY KEY,
    model_id TEXT NOT NULL UNIQUE,
    dimensions INTEGER NOT NULL
) STRICT;
CREATE TABLE channel (
    id INTEGER PRIMARY KEY,
    guild_id TEXT NOT NULL,
    channel_id TEXT NOT NULL,
    UNIQUE (guild_id, channel_id)
) STRICT;
CREATE TABLE picture (
    id INTEGER PRIMARY KEY,
    message_id TEXT NOT NULL,
    attachment_id TEXT NOT NULL,
    channel INTEGER NOT NULL REFERENCES channel (id),
    user_id TEXT NOT NULL,
    message_link TEXT NOT NULL,
    image_url TEXT NOT NULL,
    posted_at_us INTEGER NOT NULL, -- since 1970 in UTC
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    file_size INTEGER NOT NULL,
    content_hash TEXT NOT NULL,
    spoiler INTEGER NOT NULL,
    author TEXT NOT NULL,
    channel_name TEXT NOT NULL,
    UNIQUE (message_id, attachment_id)
) STRICT;
CREATE INDEX picture_by_channel ON picture (channel, posted_at_us);
CREATE INDEX picture_by_author ON picture (user_id);
CREATE INDEX picture_by_content ON picture (content_hash);
CREATE INDEX picture_by_date ON picture (posted_at_us);
""",
    """
ALTER TABLE space ADD COLUMN centre BLOB; -- float32: codes are made with it; NULL without codes
CREATE TABLE stale (picture INTEGER PRIMARY KEY) STRICT; -- pictures whose codes may be wrong
CREATE TRIGGER picture_added AFTER INSERT ON picture BEGIN
    INSERT OR IGNORE INTO stale VALUES (new.id);
END;
CREATE TRIGGER picture_changed AFTER UPDATE ON picture BEGIN
    INSERT OR IGNORE INTO stale VALUES (new.id);
END;
CREATE TRIGGER picture_gone AFTER DELETE ON picture BEGIN
    INSERT OR IGNORE INTO stale VALUES (old.id);
END;
CREATE TABLE serving (only INTEGER PRIMARY KEY CHECK (only = 1), model_id TEXT NOT NULL) STRICT;
""",
)
SCHEMA_VERSION = len(_STEPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Where the vectors of one model lie.

    Attributes:
        id: The number of its table.
        model_id: The model.
        dimensions: Length of its vectors.
        centre: float32 [D], what its codes are made with; None while it has no codes.
    """

    id: int
    model_id: str
    dimensions: int
    centre: Vector | None


def connect(path: Path, *, create: bool, busy_timeout_s: float) -> apsw.Connection:
    """Opens an archive; makes its tables where there are none, and brings old ones up to date.

    Args:
        path: The file.
        create: Whether to make it where it is missing.
        busy_timeout_s: How long to wait for other processes that write.

    Raises:
        ArchiveError: The file is missing, no archive, of a newer mapseek, locked or damaged.
    """
    if not create and not path.exists():
        raise ArchiveError(f"There is no archive at {path}: make one with `mapseek index PATH`.")
    if path.is_dir():
        raise ArchiveError(
            f"{path} is a folder, and the archive is a file: name one, such as "
            f"{path / 'mapseek.db'}."
        )
    with sentences(path):
        # An absolute path: SQLite takes names such as ":memory:" for something else.
        connection = apsw.Connection(str(path.absolute()))
        try:
            connection.set_busy_timeout(int(busy_timeout_s * 1000))
            connection.enable_load_extension(True)
            connection.load_extension(sqlite_vec.loadable_path())
            connection.enable_load_extension(False)
            # Checked before anything is changed in a file that may not be ours.
            version = _version(connection, path)
            write_ahead(connection, busy_timeout_s)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
            if version < SCHEMA_VERSION:
                _bring_up_to_date(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection


def write_ahead(connection: apsw.Connection, patience_s: float) -> None:
    """Turns the write-ahead log on. SQLite itself does not wait for others who do so, too.

    Raises:
        apsw.BusyError: They were not done in time.
    """
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except apsw.BusyError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_BUSY_S)
        else:
            return


def _bring_up_to_date(connection: apsw.Connection, path: Path) -> None:
    with immediate(connection):
        version = _version(connection, path)  # another process may have been quicker
        for step in _STEPS[version:]:
            connection.execute(step)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def spaces(connection: apsw.Connection) -> list[Space]:
    """The spaces of all models, oldest first."""
    found = rows(connection, "SELECT id, model_id, dimensions, centre FROM space ORDER BY id")
    return [
        Space(
            id=id_,
            model_id=model_id,
            dimensions=dimensions,
            centre=None if centre is None else unpacked(centre),
        )
        for id_, model_id, dimensions, centre in found
    ]


def space_of(connection: apsw.Connection, model_id: str) -> Space | None:
    """The space of a model; None where nothing of it is stored."""
    return next((space for space in spaces(connection) if space.model_id == model_id), None)


def make_space(connection: apsw.Connection, model_id: str, dimensions: int) -> Space:
    """Makes room for the vectors of one more model."""
    connection.execute(
        "INSERT INTO space (model_id, dimensions) VALUES (?, ?)", (model_id, dimensions)
    )
    space = connection.last_insert_rowid()
    connection.execute(
        f"CREATE VIRTUAL TABLE {vectors(space)} USING vec0("
        f"picture INTEGER PRIMARY KEY, embedding FLOAT[{dimensions}] distance_metric=cosine, "
        f"channel INTEGER, spoiler INTEGER, chunk_size={_CHUNK_SIZE})"
    )
    return Space(id=space, model_id=model_id, dimensions=dimensions, centre=None)


def vectors(space: int) -> str:
    """The name of a space's `vec0` table."""
    return f"vectors_{space:d}"


def rows(
    connection: apsw.Connection, query: str, values: Sequence[Any] | Mapping[str, Any] = ()
) -> list[tuple[Any, ...]]:
    """All rows of a query. Their types are those of the tables, which SQLite enforces."""
    return connection.execute(query, values).fetchall()


@contextmanager
def immediate(connection: apsw.Connection) -> Iterator[None]:
    """A transaction that takes the write lock at once, so that it cannot fail half-way for it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has already rolled back by itself after some errors (a full disk, for one).
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def snapshot(connection: apsw.Connection) -> Iterator[None]:
    """A transaction in which all reads see the archive at one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


@contextmanager
def sentences(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into `ArchiveError` sentences about the file."""
    try:
        yield
    except apsw.Error as error:
        raise ArchiveError(_sentence(error, path)) from error
    except (OverflowError, UnicodeEncodeError) as error:
        raise ArchiveError(f"{path} cannot store a value that it was given: {error}.") from error


def _version(connection: apsw.Connection, path: Path) -> int:
    """The version of the file's tables; 0 while it is empty."""
    if rows(connection, "PRAGMA schema_version") == [(0,)]:
        return 0
    ((application_id,),) = rows(connection, "PRAGMA application_id")
    if application_id != APPLICATION_ID:
        raise ArchiveError(
            f"{path} is the database of another program: name another file with --archive or "
            "MAPSEEK_ARCHIVE."
        )
    ((version,),) = rows(connection, "PRAGMA user_version")
    if version > SCHEMA_VERSION:
        raise ArchiveError(
            f"{path} was written by a newer mapseek (schema {version}, this one knows "
            f"{SCHEMA_VERSION}): update mapseek."
        )
    return int(version)


# Each with the file's path put in; the first that fits counts.
_SENTENCES: dict[type[apsw.Error] | tuple[type[apsw.Error], ...], str] = {
    (apsw.BusyError, apsw.LockedError): (
        "{} is locked by another process that writes: try again when it is done."
    ),
    apsw.NotADBError: "{} is no mapseek archive: name another file with --archive.",
    apsw.CorruptError: (
        "{} is damaged: bring back a copy, or move it away and index the pictures again."
    ),
    apsw.FullError: "There is no room left for {}: what was stored before is safe.",
    (apsw.ReadOnlyError, apsw.PermissionsError): (
        "{} may not be written to: give this user the right to it and its folder, or name another "
        "file."
    ),
    apsw.CantOpenError: (
        "{} cannot be opened: is its folder there, and may this user write to it?"
    ),
}


def _sentence(error: apsw.Error, path: Path) -> str:
    # sqlite-vec tells some of SQLite's errors only in words.
    if "disk is full" in str(error):
        error = apsw.FullError()
    for kinds, sentence in _SENTENCES.items():
        if isinstance(error, kinds):
            return sentence.format(path)
    return f"{path} failed: {error}."
