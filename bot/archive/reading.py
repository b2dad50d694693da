"""What the embedded archive reads. Every function runs on one connection, in its thread."""
# ruff: noqa: S608 - SQL is put together from constants and numbers of ours; values are parameters

import json
from pathlib import Path

import apsw

from bot.archive.database import rows, snapshot, space_of, spaces, vectors
from bot.archive.port import Entry, EntryKey, PictureKey, Stats, Vector
from bot.archive.rows import PICTURE_COLUMNS, keys_json, moment, picture, unpacked


def seen(
    connection: apsw.Connection, keys: list[PictureKey], model_id: str | None
) -> set[PictureKey]:
    """See `ImageArchive.seen`."""
    with snapshot(connection):
        # Every picture has a vector of some model: it goes with the last of them.
        having = ""
        if model_id is not None:
            space = space_of(connection, model_id)
            if space is None:
                return set()
            having = f"CROSS JOIN {vectors(space.id)} AS v ON v.picture = p.id"
        found = rows(
            connection,
            "SELECT p.message_id, p.attachment_id FROM json_each(?) AS wanted "
            "CROSS JOIN picture AS p ON p.message_id = wanted.value ->> 0 "
            f"AND p.attachment_id = wanted.value ->> 1 {having}",
            (keys_json(keys),),
        )
    return {PictureKey(message_id=row[0], attachment_id=row[1]) for row in found}


def embeddings(
    connection: apsw.Connection, content_hashes: list[str], model_id: str
) -> dict[str, Vector]:
    """See `ImageArchive.embeddings`."""
    with snapshot(connection):
        space = space_of(connection, model_id)
        if space is None:
            return {}
        found = rows(
            connection,
            "SELECT p.content_hash, v.embedding FROM json_each(?) AS wanted "
            "CROSS JOIN picture AS p ON p.content_hash = wanted.value "
            f"CROSS JOIN {vectors(space.id)} AS v ON v.picture = p.id",
            (json.dumps(content_hashes),),
        )
    return {content_hash: unpacked(blob) for content_hash, blob in found}


def stats(connection: apsw.Connection, path: Path) -> Stats:
    """See `ImageArchive.stats`."""
    with snapshot(connection):
        ((pictures, newest_us),) = rows(
            connection, "SELECT count(*), max(posted_at_us) FROM picture"
        )
        by_model = {
            model_id: rows(connection, f"SELECT count(*) FROM {vectors(space)}")[0][0]
            for space, model_id in rows(connection, "SELECT id, model_id FROM space ORDER BY id")
        }
        # SQLite takes `channel_name` from the row that has the maximum.
        channels = rows(
            connection,
            "SELECT c.guild_id, c.channel_id, count(*), p.channel_name, max(p.posted_at_us) "
            "FROM picture AS p JOIN channel AS c ON c.id = p.channel "
            "GROUP BY p.channel ORDER BY count(*) DESC, c.guild_id, c.channel_id",
        )
    return Stats(
        pictures=pictures,
        by_model={model_id: count for model_id, count in by_model.items() if count},
        by_channel={(row[0], row[1]): row[2] for row in channels},
        channel_names={(row[0], row[1]): row[3] for row in channels if row[3]},
        newest=None if newest_us is None else moment(newest_us),
        size_bytes=_size_bytes(path),
    )


def _size_bytes(path: Path) -> int:
    """The file and its write-ahead log."""
    files = (path, path.with_name(path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


def current_model(connection: apsw.Connection) -> str | None:
    """See `ImageArchive.current_model`."""
    with snapshot(connection):
        chosen = rows(connection, "SELECT model_id FROM serving")
        if chosen:
            return str(chosen[0][0])
        filled = [
            space.model_id
            for space in spaces(connection)
            if rows(connection, f"SELECT 1 FROM {vectors(space.id)} LIMIT 1")
        ]
    return filled[0] if len(filled) == 1 else None


def page(
    connection: apsw.Connection, model_id: str | None, after: EntryKey | None, size: int
) -> list[Entry]:
    """The next entries behind one, in the order of `Entry.key`; fewer than `size` at the end."""
    with snapshot(connection):
        found_spaces = rows(
            connection,
            "SELECT id, model_id FROM space WHERE model_id >= ? AND model_id = ifnull(?, model_id) "
            "ORDER BY model_id",
            (after.model_id if after else "", model_id),
        )
        entries: list[Entry] = []
        for space, its_model in found_spaces:
            begun = after is not None and after.model_id == its_model
            found = rows(
                connection,
                f"SELECT v.embedding, {PICTURE_COLUMNS} FROM picture AS p "
                f"CROSS JOIN {vectors(space)} AS v ON v.picture = p.id "
                "JOIN channel AS c ON c.id = p.channel "
                "WHERE (p.message_id, p.attachment_id) > (?, ?) "
                "ORDER BY p.message_id, p.attachment_id LIMIT ?",
                (
                    after.message_id if after and begun else "",
                    after.attachment_id if after and begun else "",
                    size - len(entries),
                ),
            )
            entries += [
                Entry(picture=picture(row[1:]), model_id=its_model, embedding=unpacked(row[0]))
                for row in found
            ]
            if len(entries) == size:
                break
    return entries
