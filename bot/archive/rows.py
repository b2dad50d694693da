"""Between the archive's dataclasses and SQLite's values."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from bot.archive.port import ArchiveError, Picture, PictureKey, Vector

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# How far a vector's length may be from 1: room for models in half precision.
_UNIT_TOLERANCE = 1e-3

# What `picture` reads, from `picture AS p JOIN channel AS c ON c.id = p.channel`.
PICTURE_COLUMNS = """p.message_id, p.attachment_id, c.guild_id, c.channel_id, p.user_id,
    p.message_link, p.image_url, p.posted_at_us, p.width, p.height, p.file_size, p.content_hash,
    p.spoiler, p.author, p.channel_name"""
PICTURE_WIDTH = 15


def picture(row: Sequence[Any]) -> Picture:
    """A picture from the values of `PICTURE_COLUMNS`."""
    (message_id, attachment_id, guild_id, channel_id, user_id, message_link, image_url) = row[:7]
    (posted_at_us, width, height, file_size, content_hash, spoiler, author, channel) = row[7:15]
    return Picture(
        key=PictureKey(message_id=message_id, attachment_id=attachment_id),
        guild_id=guild_id,
        channel_id=channel_id,
        user_id=user_id,
        message_link=message_link,
        image_url=image_url,
        posted_at=moment(posted_at_us),
        width=width,
        height=height,
        file_size=file_size,
        content_hash=content_hash,
        spoiler=bool(spoiler),
        author=author,
        channel=channel,
    )


def moment(microseconds: int) -> datetime:
    """A moment in UTC from microseconds since 1970."""
    return _EPOCH + microseconds * _MICROSECOND


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970 in UTC.

    Raises:
        ArchiveError: See `in_utc`.
    """
    return (in_utc(moment) - _EPOCH) // _MICROSECOND


def in_utc(moment: datetime) -> datetime:
    """The moment in UTC.

    Raises:
        ArchiveError: It has no timezone, or in UTC lies beyond the calendar.
    """
    if moment.tzinfo is None:
        raise ArchiveError(f"The date {moment} has no timezone, so it cannot be ordered.")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ArchiveError(f"The date {moment} lies beyond the calendar.") from None


def packed(vector: Vector, dimensions: int | None, *, what: str) -> bytes:
    """A vector as sqlite-vec reads it: float32 in the machine's byte order.

    Args:
        vector: float32 [D].
        dimensions: What D must be; None where any length will do.
        what: Whose vector it is, for the error.

    Raises:
        ArchiveError: Wrong length, not of unit length, or not finite.
    """
    values = np.ascontiguousarray(vector, dtype=np.float32)
    if values.ndim != 1 or values.size == 0:
        raise ArchiveError(f"The vector of {what} has shape {values.shape}, not (D,).")
    if dimensions is not None and values.size != dimensions:
        raise ArchiveError(
            f"The vector of {what} has {values.size} numbers, but its model makes {dimensions}."
        )
    length = float(np.linalg.norm(values.astype(np.float64)))
    if not abs(length - 1) <= _UNIT_TOLERANCE:  # so that NaN is refused as well
        raise ArchiveError(f"The vector of {what} has length {length:.4g}, and it must be 1.")
    return values.tobytes()


def unpacked(blob: bytes) -> Vector:
    """The vector of a blob."""
    return np.frombuffer(blob, dtype=np.float32)


def keys_json(keys: Iterable[PictureKey]) -> str:
    """Keys for SQLite's `json_each`."""
    return json.dumps([[key.message_id, key.attachment_id] for key in keys])
