"""Between the archive's dataclasses and MongoDB's documents.

A document is one picture with one model's vector. Message, link, URL, vector and `metadata` lie
where the first bot put them; the rest is what practice needed since.
"""

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from bson.binary import VECTOR_SUBTYPE, Binary, BinaryVectorDtype
from pymongo import ASCENDING, IndexModel

from bot.archive.port import ArchiveError, Entry, EntryKey, Picture, PictureKey, Vector
from bot.archive.rows import in_utc, packed

VECTOR = "clip_embedding"
MESSAGE = "discord_message_id"
ATTACHMENT = "attachment_id"
MODEL = "model_id"
GUILD = "guild_id"
CHANNEL = "metadata.channel_id"
USER = "metadata.user_id"
POSTED = "metadata.upload_timestamp"
SPOILER = "spoiler"
HASH = "content_hash"
# MongoDB's dates end at milliseconds; the microseconds below them lie beside.
POSTED_US = "metadata.upload_timestamp_us"

KEY = (MODEL, MESSAGE, ATTACHMENT)
PICTURE_FIELDS = (
    *(MESSAGE, ATTACHMENT, MODEL, GUILD, "message_link", "image_url", HASH, SPOILER, "author"),
    *("channel", "metadata"),
)

# Documents of the first bot have no model: nothing is known about their vectors' space until
# `mapseek archive migrate --model` says it, and the unique key does not hold for them.
OURS = {MODEL: {"$type": "string"}}
UNCLAIMED = {MODEL: {"$exists": False}, VECTOR: {"$exists": True}}
ARRAYS = OURS | {VECTOR: {"$type": "array"}}

INDEXES = [
    IndexModel(
        [(name, ASCENDING) for name in KEY],
        name="entry",
        unique=True,
        partialFilterExpression=OURS,
    ),
    IndexModel([(MESSAGE, ASCENDING), (ATTACHMENT, ASCENDING)], name="picture"),
    IndexModel([(GUILD, ASCENDING), (CHANNEL, ASCENDING)], name="place"),
    IndexModel([(USER, ASCENDING)], name="author"),
    IndexModel([(HASH, ASCENDING), (MODEL, ASCENDING)], name="content"),
]

# Float32 vectors as BSON writes them: the type's code, and no padding.
_FLOAT32 = bytes([BinaryVectorDtype.FLOAT32.value[0], 0])
_UNIT_TOLERANCE = 1e-3


def of_model(model_id: str | None) -> dict[str, Any]:
    """What finds the documents of a model; None for those of any.

    The type is said as well: MongoDB uses a partial index only where the query repeats its filter.
    """
    return OURS if model_id is None else {MODEL: {"$eq": model_id, "$type": "string"}}


def key_filter(key: EntryKey) -> dict[str, Any]:
    """What finds one document."""
    return {MODEL: key.model_id, MESSAGE: key.message_id, ATTACHMENT: key.attachment_id}


def behind(key: EntryKey) -> dict[str, Any]:
    """What finds the documents after one, in the order of `KEY`."""
    same_model = {MODEL: key.model_id}
    return {
        "$or": [
            {MODEL: {"$gt": key.model_id}},
            same_model | {MESSAGE: {"$gt": key.message_id}},
            same_model | {MESSAGE: key.message_id, ATTACHMENT: {"$gt": key.attachment_id}},
        ]
    }


def picture_fields(picture: Picture) -> dict[str, Any]:
    """A picture without its key and its vector, as its documents hold it.

    Raises:
        ArchiveError: The date has no timezone.
    """
    posted_at = in_utc(picture.posted_at)
    below_ms = posted_at.microsecond % 1000
    return {
        "message_link": picture.message_link,
        "image_url": picture.image_url,
        GUILD: picture.guild_id,
        HASH: picture.content_hash,
        SPOILER: picture.spoiler,
        "author": picture.author,
        "channel": picture.channel,
        "metadata": {
            "upload_timestamp": posted_at - timedelta(microseconds=below_ms),
            "upload_timestamp_us": below_ms,
            "image_dimensions": {"width": picture.width, "height": picture.height},
            "file_size": picture.file_size,
            "channel_id": picture.channel_id,
            "user_id": picture.user_id,
        },
    }


def entry_fields(entry: Entry, dimensions: int | None) -> dict[str, Any]:
    """An entry without its key.

    Args:
        entry: What is to be stored.
        dimensions: What the vector's length must be; None where any will do.

    Raises:
        ArchiveError: The vector is not one that can be stored.
    """
    key = entry.picture.key
    return picture_fields(entry.picture) | {
        VECTOR: stored_vector(
            entry.embedding, dimensions, what=f"picture {key.message_id}/{key.attachment_id}"
        )
    }


def stored_vector(vector: Vector, dimensions: int | None, *, what: str) -> Binary:
    """A vector as BSON keeps it: a third of what an array of doubles takes.

    Raises:
        ArchiveError: Wrong length, not of unit length, or not finite.
    """
    return Binary(_FLOAT32 + packed(vector, dimensions, what=what), VECTOR_SUBTYPE)


def vector_of(document: dict[str, Any]) -> Vector:
    """The vector of a document, from BinData or from an array; of unit length whatever it was.

    Raises:
        ArchiveError: There is none, or none that can be compared.
    """
    value = document.get(VECTOR)
    vector = np.empty(0, np.float32)
    if not isinstance(value, bytes):  # Binary is bytes
        with suppress(TypeError, ValueError):
            vector = np.asarray(value, np.float32)
    elif value[:2] == _FLOAT32 and len(value) % 4 == len(_FLOAT32):
        vector = np.frombuffer(value, np.dtype("<f4"), offset=len(_FLOAT32))
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if vector.ndim != 1 or not 0 < length < np.inf:
        raise ArchiveError(
            f"Document {document.get('_id')} has no vector that can be read: delete it, and index "
            "its picture again."
        )
    if abs(length - 1) > _UNIT_TOLERANCE:
        vector = vector / np.float32(length)
    return np.asarray(vector, dtype=np.float32)


def picture_of(document: dict[str, Any]) -> Picture:
    """The picture of a document; what the first bot did not write down is empty.

    Raises:
        ArchiveError: A field is missing that every document has.
    """
    try:
        metadata = document["metadata"]
        posted_at = in_utc(metadata["upload_timestamp"])
        dimensions = metadata.get("image_dimensions", {})
        return Picture(
            key=picture_key(document),
            guild_id=document.get(GUILD, ""),
            channel_id=metadata["channel_id"],
            user_id=metadata.get("user_id", ""),
            message_link=document.get("message_link", ""),
            image_url=document.get("image_url", ""),
            posted_at=with_microseconds(posted_at, metadata.get("upload_timestamp_us", 0)),
            width=dimensions.get("width", 0),
            height=dimensions.get("height", 0),
            file_size=metadata.get("file_size", 0),
            content_hash=document.get(HASH, ""),
            spoiler=document.get(SPOILER, False),
            author=document.get("author", ""),
            channel=document.get("channel", ""),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(
            f"Document {document.get('_id')} is no picture of mapseek's ({error!r}): delete it, or "
            "name another collection with MAPSEEK_ATLAS_COLLECTION."
        ) from error


def readable(document: dict[str, Any]) -> Picture | None:
    """The picture of a document that also has a vector; None where it is none of a picture."""
    try:
        vector_of(document)
        return picture_of(document)
    except (ArchiveError, KeyError):
        return None


def picture_key(document: dict[str, Any]) -> PictureKey:
    """Which picture a document is about."""
    return PictureKey(message_id=document[MESSAGE], attachment_id=document.get(ATTACHMENT, ""))


def entry_of(document: dict[str, Any]) -> Entry:
    """What a document stores."""
    return Entry(
        picture=picture_of(document), model_id=document[MODEL], embedding=vector_of(document)
    )


def with_microseconds(moment: datetime, below_ms: int) -> datetime:
    """A date of MongoDB's with the microseconds that it has no room for."""
    return moment + timedelta(microseconds=below_ms)


def of_messages(keys: Iterable[PictureKey]) -> dict[str, Any]:
    """What finds the documents of these pictures' messages."""
    return {MESSAGE: {"$in": sorted({key.message_id for key in keys})}}
