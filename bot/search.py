"""Finding a picture: the use case behind `mapseek find` and the bot's commands."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import partial

import numpy as np
from opentelemetry import trace

from bot.archive.port import ImageArchive, Match, PictureKey, Query
from bot.looks import DISCOUNT, agreed, embedded_variants
from inference.client import Embedded, EmbeddingClient, Thresholds

_tracer = trace.get_tracer("mapseek.bot")


class Verdict(StrEnum):
    """What a score means, in words for people."""

    SAME = "same map"
    SIMILAR = "similar"
    NOTHING = "nothing close"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Where to look.

    Attributes:
        limit: How many matches at most.
        guild_id: Only this guild; None for all.
        channel_ids: Only these channels; None for all, empty for none.
        include_spoilers: Whether spoilered pictures may be found.
        exclude_message_id: Leaves this message out (the one that is asked about).
        posted_from: Only pictures posted at this moment or later, timezone-aware.
        posted_before: Only pictures posted before this moment, timezone-aware.
    """

    limit: int = 3
    guild_id: str | None = None
    channel_ids: frozenset[str] | None = None
    include_spoilers: bool = True
    exclude_message_id: str | None = None
    posted_from: datetime | None = None
    posted_before: datetime | None = None


EVERYWHERE = Scope()


@dataclass(frozen=True, slots=True)
class Look:
    """One look at what is asked about: at a picture or a variant of it, or at words.

    Attributes:
        embedded: Its vector.
        discount: By how much its similarities count less.
    """

    embedded: Embedded
    discount: float = 0.0


Again = Callable[[], Awaitable[Sequence[Look]]]
"""Looks at a picture again; see `look_again`."""


async def find(
    client: EmbeddingClient,
    archive: ImageArchive,
    image: bytes,
    scope: Scope = EVERYWHERE,
    *,
    thresholds: Thresholds | None = None,
) -> list[Match]:
    """The pictures of the archive that look most like an image, best first.

    Where the first look leaves doubt, the image is looked at again.

    Args:
        client: Embeds the image, in the interactive lane.
        archive: Where to look.
        image: The encoded file (PNG, JPEG, WebP, GIF, ...).
        scope: Which part of the archive counts.
        thresholds: The model's decision points; without any there is one look.

    Raises:
        EmbeddingError: The image could not be embedded; the message is meant for people.
        ArchiveError: The archive could not be searched.
    """
    with _tracer.start_as_current_span("mapseek.find", attributes={"mapseek.query": "image"}):
        embedded = await client.embed(image)
        again = partial(look_again, client, image, embedded.model_id)
        _, matches = await nearest_or_again(
            archive, Look(embedded), scope, thresholds=thresholds, again=again
        )
        return matches


async def find_text(
    client: EmbeddingClient, archive: ImageArchive, text: str, scope: Scope = EVERYWHERE
) -> list[Match]:
    """The pictures of the archive that a text describes best, best first.

    Scores between texts and pictures lie on another scale than those between two pictures:
    `judge` must not be asked about them.

    Raises:
        UnsupportedError: The model that is served reads no text.
        EmbeddingError: The text could not be embedded.
        ArchiveError: The archive could not be searched.
    """
    with _tracer.start_as_current_span("mapseek.find", attributes={"mapseek.query": "text"}):
        return await nearest(archive, (Look(await client.embed_text(text)),), scope)


def judge(score: float, thresholds: Thresholds | None) -> Verdict | None:
    """What the similarity of two pictures means.

    Args:
        score: Their cosine similarity.
        thresholds: The model's decision points, as `EmbeddingClient.model` tells them.

    Returns:
        The verdict, or None where the model's makers measured no thresholds.
    """
    if thresholds is None:
        return None
    if score >= thresholds.same:
        return Verdict.SAME
    return Verdict.SIMILAR if score >= thresholds.similar else Verdict.NOTHING


async def nearest(archive: ImageArchive, looks: Sequence[Look], scope: Scope) -> list[Match]:
    """The pictures of the archive nearest to one or more looks, best first.

    A picture's score is what the looks that found it agree on (`bot.looks.agreed`).

    Args:
        archive: Where to look.
        looks: All by the same model.
        scope: Which part of the archive counts.

    Raises:
        ArchiveError: The archive could not be searched.
    """
    trace.get_current_span().set_attribute("mapseek.looks", len(looks))
    if len(looks) == 1:
        return await _search(archive, looks[0], scope)
    return _merged(await _searched(archive, looks, scope), scope.limit)


async def nearest_or_again(
    archive: ImageArchive,
    first: Look,
    scope: Scope,
    *,
    thresholds: Thresholds | None,
    again: Again,
) -> tuple[tuple[Look, ...], list[Match]]:
    """`nearest` by one look, and by more where its best match is not surely the same map.

    Args:
        archive: Where to look.
        first: At the whole picture.
        scope: Which part of the archive counts.
        thresholds: The decision points of the first look's model; without any there is no doubt.
        again: Looks further.

    Returns:
        All looks that were taken, and what they found.

    Raises:
        ArchiveError: The archive could not be searched.
    """
    matches = await nearest(archive, (first,), scope)
    # Where nothing is in scope, another look finds nothing either.
    if thresholds is None or not matches or matches[0].score >= thresholds.same:
        return (first,), matches
    more = await again()
    if not more:
        return (first,), matches
    found = [matches, *await _searched(archive, more, scope)]
    trace.get_current_span().set_attribute("mapseek.looks", 1 + len(more))
    return (first, *more), _merged(found, scope.limit)


async def look_again(client: EmbeddingClient, image: bytes, model_id: str) -> list[Look]:
    """Looks at the variants of a picture, as many as are embedded soon; see `bot.looks`."""
    found = await embedded_variants(client, image, model_id=model_id)
    return [Look(embedded, DISCOUNT) for embedded in found]


async def _searched(
    archive: ImageArchive, looks: Iterable[Look], scope: Scope
) -> list[list[Match]]:
    """What each look finds, with the scores that count."""
    searches = [asyncio.create_task(_search(archive, look, scope)) for look in looks]
    try:
        return await asyncio.gather(*searches)
    finally:
        for search in searches:
            search.cancel()
        await asyncio.gather(*searches, return_exceptions=True)


async def _search(archive: ImageArchive, look: Look, scope: Scope) -> list[Match]:
    matches = await archive.search(
        Query(
            embedding=look.embedded.embedding,
            model_id=look.embedded.model_id,
            limit=scope.limit,
            guild_id=scope.guild_id,
            channel_ids=scope.channel_ids,
            include_spoilers=scope.include_spoilers,
            exclude_message_id=scope.exclude_message_id,
            posted_from=scope.posted_from,
            posted_before=scope.posted_before,
        )
    )
    if look.discount:
        return [replace(match, score=match.score - look.discount) for match in matches]
    return matches


def _merged(found: Sequence[list[Match]], limit: int) -> list[Match]:
    """The best of what several searches found, each picture once, in the order of the port.

    What a picture gets from looks that have it further down is left out: it would be next to
    nothing, and changed no recall that was measured.
    """
    known: dict[PictureKey, list[Match]] = {}
    for match in (match for matches in found for match in matches):
        known.setdefault(match.picture.key, []).append(match)
    merged = [
        replace(same[0], score=min(1.0, float(agreed(np.array([one.score for one in same])))))
        for same in known.values()
    ]
    return sorted(merged, key=_place)[:limit]


def _place(match: Match) -> tuple[float, datetime, str, str]:
    picture = match.picture
    return -match.score, picture.posted_at, picture.key.message_id, picture.key.attachment_id
