"""What the embedded archive reads. Every function runs on one connection, in its thread."""
# ruff: noqa: S608 - SQL is put together from constants and numbers of ours; values are parameters

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from bot.archive.database import rows, snapshot, vectors
from bot.archive.port import (
    ArchiveError,
    Entry,
    EntryKey,
    Match,
    PictureKey,
    Query,
    Stats,
    Vector,
)
from bot.archive.rows import (
    PICTURE_COLUMNS,
    keys_json,
    microseconds,
    moment,
    packed,
    picture,
    unpacked,
)

# sqlite-vec's own limit on the number of nearest neighbours in one query.
_MOST_NEIGHBOURS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Where the vectors of one model lie.

    Attributes:
        id: The number of its table.
        dimensions: Length of its vectors.
    """

    id: int
    dimensions: int


def space_of(connection: apsw.Connection, model_id: str) -> Space | None:
    """The space of a model; None where nothing of it is stored."""
    found = rows(connection, "SELECT id, dimensions FROM space WHERE model_id = ?", (model_id,))
    return Space(id=found[0][0], dimensions=found[0][1]) if found else None


def search(connection: apsw.Connection, query: Query) -> list[Match]:
    """See `ImageArchive.search`."""
    if query.limit < 1:
        raise ArchiveError(f"A search for {query.limit} pictures finds nothing: ask for 1 or more.")
    with snapshot(connection):
        space = space_of(connection, query.model_id)
        blob = packed(query.embedding, space.dimensions if space else None, what="the query")
        if space is None:
            return []
        nearest = _nearest(connection, space, blob, query)
        found = _pictures(connection, [id_ for id_, _ in nearest])
    matches = [
        # Rounding may carry a cosine a hair beyond 1.
        Match(picture=found[id_], score=min(1.0, max(-1.0, 1.0 - distance)))
        for id_, distance in nearest
    ]
    matches.sort(
        key=lambda match: (
            -match.score,
            match.picture.posted_at,
            match.picture.key.message_id,
            match.picture.key.attachment_id,
        )
    )
    return matches[: query.limit]


def _nearest(
    connection: apsw.Connection, space: Space, blob: bytes, query: Query
) -> list[tuple[int, float]]:
    """Ids and cosine distances of the nearest pictures, with all that tie with the last of them."""
    conditions, parameters = _conditions(query)
    excluded = _pictures_of(connection, query.exclude_message_id)
    neighbours = query.limit + len(excluded) + 1
    while neighbours <= _MOST_NEIGHBOURS:
        found = rows(
            connection,
            f"SELECT v.picture, v.distance FROM {vectors(space.id)} AS v "
            f"WHERE v.embedding MATCH :embedding AND v.k = :k {conditions} ORDER BY v.distance",
            {"embedding": blob, "k": neighbours, **parameters},
        )
        kept = [(id_, distance) for id_, distance in found if id_ not in excluded]
        # Of pictures that tie, the oldest count; so the answer stands only when it is certain that
        # nothing beyond these neighbours ties with the last match.
        if len(found) < neighbours or found[-1][1] > kept[query.limit - 1][1]:
            return kept
        neighbours = _grown(neighbours)
    # Thousands of equal scores: SQLite sorts all of them.
    ranked = rows(
        connection,
        "SELECT v.picture, vec_distance_cosine(v.embedding, :embedding) AS distance "
        f"FROM {vectors(space.id)} AS v JOIN picture AS p ON p.id = v.picture "
        f"WHERE p.message_id IS NOT :excluded {conditions} "
        "ORDER BY distance, p.posted_at_us, p.message_id, p.attachment_id LIMIT :limit",
        {
            "embedding": blob,
            "excluded": query.exclude_message_id,
            "limit": query.limit,
            **parameters,
        },
    )
    return [(id_, distance) for id_, distance in ranked]


def _grown(neighbours: int) -> int:
    """The next number of neighbours to ask for: quickly up to the limit, then past it."""
    if neighbours == _MOST_NEIGHBOURS:
        return neighbours + 1
    return min(neighbours * 8, _MOST_NEIGHBOURS)


def _conditions(query: Query) -> tuple[str, dict[str, Any]]:
    """The query's filter as SQL on the own columns of a vector table `v`."""
    conditions = ""
    parameters: dict[str, Any] = {}
    if query.guild_id is not None or query.channel_ids is not None:
        conditions += (
            "AND v.channel IN (SELECT id FROM channel WHERE guild_id = ifnull(:guild, guild_id) "
            "AND (:channels IS NULL OR channel_id IN (SELECT value FROM json_each(:channels)))) "
        )
        parameters["guild"] = query.guild_id
        parameters["channels"] = (
            None if query.channel_ids is None else json.dumps(sorted(query.channel_ids))
        )
    if query.posted_from is not None or query.posted_before is not None:
        conditions += (
            "AND v.picture IN (SELECT id FROM picture WHERE (:posted_from IS NULL "
            "OR posted_at_us >= :posted_from) AND (:posted_before IS NULL "
            "OR posted_at_us < :posted_before)) "
        )
        for name in ("posted_from", "posted_before"):
            bound = getattr(query, name)
            parameters[name] = None if bound is None else microseconds(bound)
    if not query.include_spoilers:
        conditions += "AND v.spoiler = 0 "
    return conditions, parameters


def _pictures_of(connection: apsw.Connection, message_id: str | None) -> set[int]:
    """The pictures of a message."""
    if message_id is None:
        return set()
    found = rows(connection, "SELECT id FROM picture WHERE message_id = ?", (message_id,))
    return {row[0] for row in found}


def _pictures(connection: apsw.Connection, ids: Sequence[int]) -> dict[int, Any]:
    found = rows(
        connection,
        f"SELECT p.id, {PICTURE_COLUMNS} FROM json_each(?) AS wanted "
        "CROSS JOIN picture AS p ON p.id = wanted.value JOIN channel AS c ON c.id = p.channel",
        (json.dumps(ids),),
    )
    return {row[0]: picture(row[1:]) for row in found}


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


def page(
    connection: apsw.Connection, model_id: str | None, after: EntryKey | None, size: int
) -> list[Entry]:
    """The next entries behind one, in the order of `Entry.key`; fewer than `size` at the end."""
    with snapshot(connection):
        spaces = rows(
            connection,
            "SELECT id, model_id FROM space WHERE model_id >= ? AND model_id = ifnull(?, model_id) "
            "ORDER BY model_id",
            (after.model_id if after else "", model_id),
        )
        entries: list[Entry] = []
        for space, its_model in spaces:
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
