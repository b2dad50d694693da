"""An archive's entry as one line of JSON, and back. The schema is in docs/jsonl.md.

Lines come from anywhere: each is looked at by itself, and what is wrong with it is said in words.
"""

import base64
import binascii
from datetime import UTC
from typing import Annotated, Self

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from bot.archive.fitting import MOST_NUMBER, MOST_TEXT
from bot.archive.port import ArchiveError, Entry, Picture, PictureKey
from bot.archive.rows import packed

# Longer than any entry of a model that exists: 64 kB would do for 8192 numbers.
MOST_BYTES = 1 << 20

_Id = Annotated[str, Field(min_length=1, max_length=300)]
_Text = Annotated[str, Field(max_length=MOST_TEXT)]
_Count = Annotated[int, Field(ge=0, le=MOST_NUMBER)]


class LineError(Exception):
    """A line is no entry; the message says why."""


class Line(BaseModel):
    """The fields of a line, in their order."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    model_id: _Id
    message_id: _Id
    attachment_id: _Id
    guild_id: _Text
    channel_id: _Text
    user_id: _Text
    message_link: _Text
    image_url: _Text
    posted_at: AwareDatetime
    width: _Count
    height: _Count
    file_size: _Count
    content_hash: _Text
    spoiler: bool
    author: _Text
    channel: _Text
    embedding: str

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """An entry as a line."""
        picture = entry.picture
        # Not validated: what an archive holds is exported as it is.
        return cls.model_construct(
            model_id=entry.model_id,
            message_id=picture.key.message_id,
            attachment_id=picture.key.attachment_id,
            guild_id=picture.guild_id,
            channel_id=picture.channel_id,
            user_id=picture.user_id,
            message_link=picture.message_link,
            image_url=picture.image_url,
            posted_at=picture.posted_at.astimezone(UTC),
            width=picture.width,
            height=picture.height,
            file_size=picture.file_size,
            content_hash=picture.content_hash,
            spoiler=picture.spoiler,
            author=picture.author,
            channel=picture.channel,
            embedding=base64.b64encode(entry.embedding.astype("<f4").tobytes()).decode(),
        )

    def entry(self) -> Entry:
        """The entry of a line.

        Raises:
            LineError: The vector or the date is none that can be stored.
        """
        try:
            data = base64.b64decode(self.embedding, validate=True)
            vector = np.frombuffer(data, "<f4").astype(np.float32)
        except (binascii.Error, ValueError):
            raise LineError("embedding: is no base64 of 32-bit floats") from None
        try:
            packed(vector, None, what="this line")
            posted_at = self.posted_at.astimezone(UTC)
        except ArchiveError as error:
            raise LineError(f"embedding: {error}") from None
        except OverflowError:
            raise LineError("posted_at: is beyond the calendar") from None
        picture = Picture(
            key=PictureKey(message_id=self.message_id, attachment_id=self.attachment_id),
            posted_at=posted_at,
            **self.model_dump(
                exclude={"model_id", "message_id", "attachment_id", "posted_at", "embedding"}
            ),
        )
        return Entry(picture=picture, model_id=self.model_id, embedding=vector)


def dump(entry: Entry) -> bytes:
    """An entry as a line, with its end."""
    return Line.of(entry).model_dump_json().encode() + b"\n"


def load(line: bytes | None) -> Entry:
    """The entry of a line; None stands for one that is longer than `MOST_BYTES`.

    Raises:
        LineError: It is none.
    """
    if line is None:
        raise LineError(f"is longer than {MOST_BYTES:,} bytes")
    try:
        return Line.model_validate_json(line).entry()
    except ValidationError as error:
        raise LineError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"]
    message = message[:1].lower() + message[1:]
    return f"{where[:100]}: {message}" if where else message
