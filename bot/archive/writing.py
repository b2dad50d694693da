"""What the embedded archive writes: each function is one transaction on one connection."""
# ruff: noqa: S608 - SQL is put together from constants and numbers of ours; values are parameters

import json
from collections.abc import Sequence
from typing import Any

import apsw

from bot.archive import codes
from bot.archive.database import Space, immediate, make_space, rows, space_of, spaces, vectors
from bot.archive.port import ArchiveError, Entry, Picture, Selection
from bot.archive.rows import microseconds, packed

# Up to so many vectors a search compares all of them: as fast as with codes, and it misses
# nothing. Measured: see docs/adr/0011-codes-propose.md.
EXACT_LIMIT = 20_000

# Vectors that one transaction deletes with their model.
_DROP = 5000


def upsert(
    connection: apsw.Connection, entries: Sequence[Entry], *, exact_limit: int = EXACT_LIMIT
) -> None:
    """See `ImageArchive.upsert_many`. Makes codes for a model that has outgrown the limit."""
    with immediate(connection):
        known = {space.model_id: space for space in spaces(connection)}
        for entry in entries:
            _upsert(connection, entry, known)
        codes.refresh(connection)
        _make_codes(connection, exact_limit)


def make_codes(connection: apsw.Connection, *, exact_limit: int = EXACT_LIMIT) -> None:
    """Makes the codes that an archive of an older mapseek lacks."""
    if _lacking(connection, exact_limit):
        with immediate(connection):
            _make_codes(connection, exact_limit)


def _make_codes(connection: apsw.Connection, exact_limit: int) -> None:
    for space in _lacking(connection, exact_limit):
        codes.make(connection, space)


def _lacking(connection: apsw.Connection, exact_limit: int) -> list[Space]:
    """The spaces that have outgrown the limit and have no codes yet."""
    # Counting takes time, and most archives are small: the last number bounds every count.
    ((last,),) = rows(connection, "SELECT ifnull(max(id), 0) FROM picture")
    if last <= exact_limit:
        return []
    return [
        space
        for space in spaces(connection)
        if space.centre is None
        and rows(connection, f"SELECT count(*) FROM {vectors(space.id)}")[0][0] > exact_limit
    ]


def _upsert(connection: apsw.Connection, entry: Entry, known: dict[str, Space]) -> None:
    what = f"picture {entry.picture.key.message_id}/{entry.picture.key.attachment_id}"
    space = known.get(entry.model_id)
    blob = packed(entry.embedding, space.dimensions if space else None, what=what)
    if space is None:
        space = make_space(connection, entry.model_id, entry.embedding.size)
        known[entry.model_id] = space
    table = vectors(space.id)
    channel = _channel(connection, entry.picture)
    picture = _picture(connection, entry.picture, channel)
    connection.execute(f"DELETE FROM {table} WHERE picture = ?", (picture,))
    connection.execute(
        f"INSERT INTO {table} (picture, embedding, channel, spoiler) VALUES (?, ?, ?, ?)",
        (picture, blob, channel, int(entry.picture.spoiler)),
    )


def _channel(connection: apsw.Connection, picture: Picture) -> int:
    place = (picture.guild_id, picture.channel_id)
    connection.execute(
        "INSERT INTO channel (guild_id, channel_id) VALUES (?, ?) ON CONFLICT DO NOTHING", place
    )
    ((channel,),) = rows(
        connection, "SELECT id FROM channel WHERE guild_id = ? AND channel_id = ?", place
    )
    return int(channel)


def _picture(connection: apsw.Connection, picture: Picture, channel: int) -> int:
    """Stores what is known about a picture, and returns its number."""
    key = (picture.key.message_id, picture.key.attachment_id)
    before = rows(
        connection,
        "SELECT id, channel, spoiler, content_hash FROM picture "
        "WHERE message_id = ? AND attachment_id = ?",
        key,
    )
    values = (
        channel,
        picture.user_id,
        picture.message_link,
        picture.image_url,
        microseconds(picture.posted_at),
        picture.width,
        picture.height,
        picture.file_size,
        picture.content_hash,
        int(picture.spoiler),
        picture.author,
        picture.channel,
    )
    if not before:
        connection.execute(
            "INSERT INTO picture (channel, user_id, message_link, image_url, posted_at_us, width, "
            "height, file_size, content_hash, spoiler, author, channel_name, message_id, "
            "attachment_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            values + key,
        )
        return connection.last_insert_rowid()
    ((id_, old_channel, old_spoiler, old_hash),) = before
    connection.execute(
        "UPDATE picture SET channel = ?, user_id = ?, message_link = ?, image_url = ?, "
        "posted_at_us = ?, width = ?, height = ?, file_size = ?, content_hash = ?, spoiler = ?, "
        "author = ?, channel_name = ? WHERE id = ?",
        (*values, id_),
    )
    if old_hash not in ("", picture.content_hash):
        _forget_vectors(connection, [id_])
    elif (old_channel, old_spoiler) != (channel, picture.spoiler):
        for table in _tables(connection):
            connection.execute(
                f"UPDATE {table} SET channel = ?, spoiler = ? WHERE picture = ?",
                (channel, int(picture.spoiler), id_),
            )
    return int(id_)


def delete(connection: apsw.Connection, selection: Selection) -> int:
    """See `ImageArchive.delete`."""
    conditions = {
        "c.guild_id = ?": selection.guild_id,
        "c.channel_id = ?": selection.channel_id,
        "p.user_id = ?": selection.user_id,
        "p.message_id IN (SELECT value FROM json_each(?))": _json(selection.message_ids),
        "p.attachment_id IN (SELECT value FROM json_each(?))": _json(selection.attachment_ids),
    }
    chosen = {condition: value for condition, value in conditions.items() if value is not None}
    if not chosen:
        raise ArchiveError("Deleting needs a guild, a channel, an author or messages to delete.")
    with immediate(connection):
        chosen_rows = rows(
            connection,
            "SELECT p.id FROM picture AS p JOIN channel AS c ON c.id = p.channel WHERE "
            + " AND ".join(chosen),
            tuple(chosen.values()),
        )
        pictures = [row[0] for row in chosen_rows]
        _forget_vectors(connection, pictures)
        connection.executemany("DELETE FROM picture WHERE id = ?", ((id_,) for id_ in pictures))
        _drop_empty_channels(connection)
        codes.refresh(connection)
    return len(pictures)


def choose_model(connection: apsw.Connection, model_id: str) -> None:
    """See `ImageArchive.choose_model`."""
    with immediate(connection):
        connection.execute("INSERT OR REPLACE INTO serving VALUES (1, ?)", (model_id,))


def drop_some(connection: apsw.Connection, model_id: str) -> int:
    """Deletes some of a model's vectors, and pictures that are left with none; returns how many.

    Not all in one transaction: other writers have their turn in between.
    """
    with immediate(connection):
        space = space_of(connection, model_id)
        if space is None:
            return 0
        pictures = [
            row[0]
            for row in rows(
                connection, f"SELECT picture FROM {vectors(space.id)} LIMIT ?", (_DROP,)
            )
        ]
        connection.executemany(
            f"DELETE FROM {vectors(space.id)} WHERE picture = ?", ((id_,) for id_ in pictures)
        )
        others = [vectors(other.id) for other in spaces(connection) if other.id != space.id]
        bare = " AND ".join(
            f"NOT EXISTS (SELECT 1 FROM {other} WHERE picture = :id)" for other in others
        )
        connection.executemany(
            f"DELETE FROM picture WHERE id = :id {f'AND {bare}' if bare else ''}",
            ({"id": id_} for id_ in pictures),
        )
        if len(pictures) < _DROP:
            connection.execute(f"DROP TABLE {vectors(space.id)}")
            codes.drop(connection, space)
            connection.execute("DELETE FROM space WHERE id = ?", (space.id,))
            _drop_empty_channels(connection)
        connection.executemany(
            "INSERT OR IGNORE INTO stale VALUES (?)", ((id_,) for id_ in pictures)
        )
        codes.refresh(connection)
    return len(pictures)


def _drop_empty_channels(connection: apsw.Connection) -> None:
    connection.execute(
        "DELETE FROM channel WHERE NOT EXISTS "
        "(SELECT 1 FROM picture WHERE picture.channel = channel.id)"
    )


def _forget_vectors(connection: apsw.Connection, pictures: list[int]) -> None:
    for table in _tables(connection):
        connection.executemany(
            f"DELETE FROM {table} WHERE picture = ?",
            ((id_,) for id_ in pictures),
        )


def _tables(connection: apsw.Connection) -> list[str]:
    return [vectors(space.id) for space in spaces(connection)]


def _json(ids: frozenset[str] | None) -> Any:
    return None if ids is None else json.dumps(sorted(ids))
