"""Asking `$vectorSearch`, and putting what it finds into order."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from bson.binary import Binary

from bot.archive.atlas.documents import (
    CHANNEL,
    GUILD,
    MODEL,
    PICTURE_FIELDS,
    POSTED,
    SPOILER,
    VECTOR,
    picture_of,
    vector_of,
)
from bot.archive.atlas.indexes import SearchIndex
from bot.archive.port import Entry, Match, Picture, Query
from bot.archive.rows import in_utc

# The most that one `$vectorSearch` may look at, and so the most that is asked for.
MOST = 10_000

_SCORE = "vector_search_score"
# Scores travel as float32: what differs by less is a tie.
_DIGITS = 6


def pipeline(
    query: Query, vector: Binary, index: SearchIndex, *, limit: int, candidates: int | None
) -> list[dict[str, Any]]:
    """The aggregation that finds the nearest documents, with their vectors where Atlas rounds.

    An approximate search over a quantized index compares rounded vectors: `found` compares again.

    Args:
        query: What to look for. Conditions that the index has no fields for are left out: see
            `admits`.
        vector: The query's vector.
        index: Which index to ask.
        limit: How many documents.
        candidates: How many an approximate search looks at; None compares all vectors.
    """
    search: dict[str, Any] = {
        "index": index.name,
        "path": VECTOR,
        # Indexes of the old kind are documented to take doubles only.
        "queryVector": query.embedding.astype(float).tolist() if index.legacy else vector,
        "limit": limit,
    }
    if candidates is None:
        search["exact"] = True
    else:
        search["numCandidates"] = min(MOST, max(limit, candidates))
    conditions = _conditions(query)
    inside = {path: wanted for path, wanted in conditions.items() if path in index.filters}
    if inside:
        search["filter"] = inside
    fields = dict.fromkeys(PICTURE_FIELDS, 1)
    if candidates is not None and index.quantization != "none":
        fields[VECTOR] = 1
    return [
        {"$vectorSearch": search},
        {"$project": {**fields, _SCORE: {"$meta": "vectorSearchScore"}}},
    ]


def _conditions(query: Query) -> dict[str, Any]:
    conditions: dict[str, Any] = {MODEL: query.model_id}
    if query.guild_id is not None:
        conditions[GUILD] = query.guild_id
    if query.channel_ids is not None:
        conditions[CHANNEL] = {"$in": sorted(query.channel_ids)}
    if not query.include_spoilers:
        conditions[SPOILER] = False
    posted: dict[str, datetime] = {}
    if query.posted_from is not None:
        posted["$gte"] = _whole_ms(query.posted_from)
    if query.posted_before is not None:
        posted["$lt"] = _whole_ms(query.posted_before) + timedelta(milliseconds=1)
    if posted:
        conditions[POSTED] = posted
    return conditions


def _whole_ms(moment: datetime) -> datetime:
    moment = moment.astimezone(UTC)
    return moment - timedelta(microseconds=moment.microsecond % 1000)


def admits(query: Query, picture: Picture) -> bool:
    """Whether a picture lies in the part of the archive that is asked about.

    Said once more of what an index lets through: it may lack a field, and it may be behind.
    """
    return (
        query.guild_id in (None, picture.guild_id)
        and (query.channel_ids is None or picture.channel_id in query.channel_ids)
        and (query.include_spoilers or not picture.spoiler)
        and picture.key.message_id != query.exclude_message_id
        and (query.posted_from is None or picture.posted_at >= query.posted_from)
        and (query.posted_before is None or picture.posted_at < query.posted_before)
    )


def dated(query: Query) -> None:
    """Raises `ArchiveError` where a date of the query has no timezone."""
    for moment in (query.posted_from, query.posted_before):
        if moment is not None:
            in_utc(moment)


def found(query: Query, documents: Iterable[dict[str, Any]]) -> list[Match]:
    """The matches among the documents that `pipeline` gave."""
    matches = [
        Match(picture=picture_of(document), score=_score(query, document))
        for document in documents
        if document.get(MODEL) == query.model_id
    ]
    return [match for match in matches if admits(query, match.picture)]


def compared(query: Query, entries: Sequence[Entry]) -> list[Match]:
    """The matches among entries in memory."""
    admitted = [entry for entry in entries if admits(query, entry.picture)]
    if not admitted:
        return []
    scores = np.stack([entry.embedding for entry in admitted]) @ query.embedding
    return [
        Match(picture=entry.picture, score=_clamped(float(score)))
        for entry, score in zip(admitted, scores, strict=True)
    ]


def cosine(score: float) -> float:
    """Atlas's score for `cosine`, (1 + cosine) / 2, as the cosine."""
    return _clamped(2.0 * score - 1.0)


def _score(query: Query, document: dict[str, Any]) -> float:
    """The cosine by the document's vector where it came along; else by Atlas's score."""
    if VECTOR in document:
        return _clamped(float(vector_of(document) @ query.embedding))
    return cosine(document[_SCORE])


def _clamped(score: float) -> float:
    return min(1.0, max(-1.0, score))


def best(matches: Iterable[Match]) -> list[Match]:
    """Best first; of equal ones the oldest first."""
    return sorted(
        matches,
        key=lambda match: (
            -round(match.score, _DIGITS),
            match.picture.posted_at,
            match.picture.key.message_id,
            match.picture.key.attachment_id,
        ),
    )


def settled(matches: Sequence[Match], limit: int, last: float) -> bool:
    """Whether nothing beyond what was asked for can belong to the best.

    Args:
        matches: What was found so far, best first.
        limit: How many are wanted.
        last: What `last_score` says.
    """
    if len(matches) < limit:
        return False
    return round(last, _DIGITS) < round(matches[limit - 1].score, _DIGITS)


def last_score(query: Query, documents: Sequence[dict[str, Any]]) -> float:
    """The most that the cosine beyond the last document is taken to be; -2 where there is none.

    Where Atlas rounds, its scores may be as far too low there as any was among these documents.
    """
    if not documents:
        return -2.0
    too_low = max(_score(query, document) - cosine(document[_SCORE]) for document in documents)
    return cosine(documents[-1][_SCORE]) + max(0.0, too_low)
