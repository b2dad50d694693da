"""The search of the embedded archive: every vector compared, or those that codes propose."""
# ruff: noqa: S608 - SQL is put together from constants and numbers of ours; values are parameters

import json
from collections.abc import Sequence
from typing import Any

import apsw

from bot.archive import codes
from bot.archive.database import Space, rows, snapshot, space_of, vectors
from bot.archive.port import ArchiveError, Match, Query
from bot.archive.rows import PICTURE_COLUMNS, microseconds, packed, picture

# sqlite-vec's own limit on the number of nearest neighbours in one query.
_MOST_NEIGHBOURS = 4096

# How many vectors are compared exactly where codes propose them, and at least how many for each
# match that is asked for. Measured: see docs/adr/0011-codes-propose.md.
PROPOSALS = 2000
_PER_MATCH = 50

_Ranked = list[tuple[int, float]]


def search(connection: apsw.Connection, query: Query, *, proposals: int = PROPOSALS) -> list[Match]:
    """See `ImageArchive.search`.

    Args:
        connection: A reader's.
        query: What to look for.
        proposals: How many vectors to compare where the model has codes.
    """
    if query.limit < 1:
        raise ArchiveError(f"A search for {query.limit} pictures finds nothing: ask for 1 or more.")
    with snapshot(connection):
        space = space_of(connection, query.model_id)
        blob = packed(query.embedding, space.dimensions if space else None, what="the query")
        bounds = _bounds(query)
        if space is None:
            return []
        if space.centre is None:
            nearest = _exact(connection, space, blob, query, bounds)
        else:
            nearest = _proposed(connection, space, blob, query, bounds, proposals=proposals)
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


def _exact(
    connection: apsw.Connection, space: Space, blob: bytes, query: Query, bounds: dict[str, Any]
) -> _Ranked:
    """Ids and cosine distances of the nearest pictures, with all that tie with the last of them."""
    excluded = _pictures_of(connection, query.exclude_message_id)
    neighbours = query.limit + len(excluded) + 1
    while neighbours <= _MOST_NEIGHBOURS:
        found = rows(
            connection,
            f"SELECT v.picture, v.distance FROM {vectors(space.id)} AS v WHERE v.embedding MATCH "
            f":embedding AND v.k = :k {_inside(query)} ORDER BY v.distance",
            {"embedding": blob, "k": neighbours, **bounds},
        )
        kept = [(id_, distance) for id_, distance in found if id_ not in excluded]
        # Of pictures that tie, the oldest count; so the answer stands only when it is certain that
        # nothing beyond these neighbours ties with the last match.
        if len(found) < neighbours or found[-1][1] > kept[query.limit - 1][1]:
            return kept
        neighbours = _grown(neighbours)
    # Thousands of equal scores: SQLite sorts all of them.
    everything = f"{vectors(space.id)} AS v JOIN picture AS p ON p.id = v.picture"
    return _ranked(connection, everything, blob, query, bounds)


def _grown(neighbours: int) -> int:
    """The next number of neighbours to ask for: quickly up to the limit, then past it."""
    if neighbours == _MOST_NEIGHBOURS:
        return neighbours + 1
    return min(neighbours * 8, _MOST_NEIGHBOURS)


def _proposed(
    connection: apsw.Connection,
    space: Space,
    blob: bytes,
    query: Query,
    bounds: dict[str, Any],
    *,
    proposals: int,
) -> _Ranked:
    """The nearest of those that the codes propose."""
    visible = codes.Visible(
        channels=_channels(connection, query, bounds),
        spoilers=query.include_spoilers,
        from_us=bounds.get("posted_from"),
        before_us=bounds.get("posted_before"),
        excluded=frozenset(_pictures_of(connection, query.exclude_message_id)),
    )
    count = max(proposals, query.limit * _PER_MATCH)
    ids = codes.nearest(connection, space, query.embedding, visible, count)
    chosen = (
        "json_each(:ids) AS wanted CROSS JOIN picture AS p ON p.id = wanted.value "
        f"CROSS JOIN {vectors(space.id)} AS v ON v.picture = p.id"
    )
    return _ranked(connection, chosen, blob, query, {"ids": json.dumps(ids), **bounds})


def _ranked(
    connection: apsw.Connection, source: str, blob: bytes, query: Query, bounds: dict[str, Any]
) -> _Ranked:
    """The nearest of the pictures `p` with vectors `v` that a query's filter lets through."""
    conditions = "p.message_id IS NOT :excluded "
    if _in_channels(query):
        conditions += f"AND p.channel IN ({_CHANNELS}) "
    if query.posted_from is not None:
        conditions += "AND p.posted_at_us >= :posted_from "
    if query.posted_before is not None:
        conditions += "AND p.posted_at_us < :posted_before "
    if not query.include_spoilers:
        conditions += "AND p.spoiler = 0 "
    return [
        (id_, distance)
        for id_, distance in rows(
            connection,
            "SELECT p.id, vec_distance_cosine(v.embedding, :embedding) AS distance "
            f"FROM {source} WHERE {conditions} "
            "ORDER BY distance, p.posted_at_us, p.message_id, p.attachment_id LIMIT :limit",
            {
                "embedding": blob,
                "excluded": query.exclude_message_id,
                "limit": query.limit,
                **bounds,
            },
        )
    ]


# The numbers of the channels that a query is bound to.
_CHANNELS = (
    "SELECT id FROM channel WHERE guild_id = ifnull(:guild, guild_id) "
    "AND (:channels IS NULL OR channel_id IN (SELECT value FROM json_each(:channels)))"
)


def _bounds(query: Query) -> dict[str, Any]:
    """The values of a query's filter."""
    bounds: dict[str, Any] = {}
    if _in_channels(query):
        bounds["guild"] = query.guild_id
        bounds["channels"] = (
            None if query.channel_ids is None else json.dumps(sorted(query.channel_ids))
        )
    for name in ("posted_from", "posted_before"):
        bound = getattr(query, name)
        if bound is not None:
            bounds[name] = microseconds(bound)
    return bounds


def _in_channels(query: Query) -> bool:
    return query.guild_id is not None or query.channel_ids is not None


def _inside(query: Query) -> str:
    """A query's filter on a vector table `v` itself, so that it works inside the search."""
    conditions = ""
    if _in_channels(query):
        conditions += f"AND v.channel IN ({_CHANNELS}) "
    dates = [
        condition
        for bound, condition in (
            (query.posted_from, "posted_at_us >= :posted_from"),
            (query.posted_before, "posted_at_us < :posted_before"),
        )
        if bound is not None
    ]
    if dates:
        conditions += f"AND v.picture IN (SELECT id FROM picture WHERE {' AND '.join(dates)}) "
    if not query.include_spoilers:
        conditions += "AND v.spoiler = 0 "
    return conditions


def _channels(
    connection: apsw.Connection, query: Query, bounds: dict[str, Any]
) -> frozenset[int] | None:
    if not _in_channels(query):
        return None
    return frozenset(row[0] for row in rows(connection, _CHANNELS, bounds))


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
