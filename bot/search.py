"""Finding a picture: the use case behind `mapseek find` and the bot's commands."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from opentelemetry import trace

from bot.archive.port import ImageArchive, Match, Query
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


async def find(
    client: EmbeddingClient, archive: ImageArchive, image: bytes, scope: Scope = EVERYWHERE
) -> list[Match]:
    """The pictures of the archive that look most like an image, best first.

    Args:
        client: Embeds the image, in the interactive lane.
        archive: Where to look.
        image: The encoded file (PNG, JPEG, WebP, GIF, ...).
        scope: Which part of the archive counts.

    Raises:
        EmbeddingError: The image could not be embedded; the message is meant for people.
        ArchiveError: The archive could not be searched.
    """
    with _tracer.start_as_current_span("mapseek.find", attributes={"mapseek.query": "image"}):
        return await _nearest(archive, await client.embed(image), scope)


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
        return await _nearest(archive, await client.embed_text(text), scope)


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


async def _nearest(archive: ImageArchive, asked: Embedded, scope: Scope) -> list[Match]:
    return await archive.search(
        Query(
            embedding=asked.embedding,
            model_id=asked.model_id,
            limit=scope.limit,
            guild_id=scope.guild_id,
            channel_ids=scope.channel_ids,
            include_spoilers=scope.include_spoilers,
            exclude_message_id=scope.exclude_message_id,
            posted_from=scope.posted_from,
            posted_before=scope.posted_before,
        )
    )
