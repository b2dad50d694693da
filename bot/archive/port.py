"""The port: what an archive of pictures promises, whatever database is under it."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


class ArchiveError(Exception):
    """The archive cannot do what was asked. The message says what is wrong and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureKey:
    """What identifies a picture: one message can hold several attachments.

    Attributes:
        message_id: Discord's id of the message, as a decimal string (or the importer's own).
        attachment_id: Discord's id of the attachment within it.
    """

    message_id: str
    attachment_id: str


class ForbiddenError(ArchiveError):
    """The database does not let this user, or anybody, do this."""


class EntriesRefusedError(ArchiveError):
    """The archive refused some entries of many for good; the others are stored.

    Attributes:
        refused: Why, in one sentence, for each entry.
    """

    def __init__(self, refused: "Mapping[EntryKey, str]") -> None:
        reason = next(iter(refused.values()))
        super().__init__(f"The archive refused {len(refused)} of the pictures: {reason}")
        self.refused = dict(refused)

    @property
    def by_picture(self) -> "dict[PictureKey, str]":
        """Why, for each picture."""
        return {key.picture: reason for key, reason in self.refused.items()}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class EntryKey:
    """What identifies an entry, and the order in which entries are streamed.

    Attributes:
        model_id: The model that made the vector.
        message_id: See `PictureKey`.
        attachment_id: See `PictureKey`.
    """

    model_id: str
    message_id: str
    attachment_id: str

    @property
    def picture(self) -> PictureKey:
        """Which picture it is."""
        return PictureKey(message_id=self.message_id, attachment_id=self.attachment_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture that somebody posted, without its vector.

    Attributes:
        key: Identifies the picture.
        guild_id: The server (guild) that it was posted in.
        channel_id: The channel or thread.
        user_id: The author; "" where unknown.
        message_link: Where a click leads.
        image_url: Where the file is: a URL, or a path for an import from disk.
        posted_at: When the message was sent, timezone-aware.
        width: In pixels.
        height: In pixels.
        file_size: In bytes.
        content_hash: Hex SHA-256 of the file's bytes.
        spoiler: Whether it must stay hidden behind a spoiler.
        author: The author's name for showing; "" where unknown.
        channel: The channel's name for showing; "" where unknown.
    """

    key: PictureKey
    guild_id: str
    channel_id: str
    user_id: str
    message_link: str
    image_url: str
    posted_at: datetime
    width: int
    height: int
    file_size: int
    content_hash: str
    spoiler: bool = False
    author: str = ""
    channel: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is stored: a picture, its vector and the vector's space.

    Attributes:
        picture: Who posted what, where and when.
        model_id: The model that made the vector.
        embedding: float32 [D], unit length.
    """

    picture: Picture
    model_id: str
    embedding: Vector

    @property
    def key(self) -> EntryKey:
        """Identifies the entry."""
        return EntryKey(
            model_id=self.model_id,
            message_id=self.picture.key.message_id,
            attachment_id=self.picture.key.attachment_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to look for, and where.

    Attributes:
        embedding: float32 [D], unit length.
        model_id: Only pictures embedded by this model are compared.
        limit: How many matches at most.
        guild_id: Only this guild; None for all.
        channel_ids: Only these channels; None for all, empty for none.
        include_spoilers: Whether spoilered pictures may be found.
        exclude_message_id: Leaves this message out (the one that is asked about).
        posted_from: Only pictures posted at this moment or later, timezone-aware.
        posted_before: Only pictures posted before this moment, timezone-aware.
    """

    embedding: Vector
    model_id: str
    limit: int = 3
    guild_id: str | None = None
    channel_ids: frozenset[str] | None = None
    include_spoilers: bool = True
    exclude_message_id: str | None = None
    posted_from: datetime | None = None
    posted_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A picture that was found.

    Attributes:
        picture: What was found.
        score: Cosine similarity to the query, -1 to 1.
    """

    picture: Picture
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What an archive holds.

    Attributes:
        pictures: How many in all.
        by_model: How many per model id.
        by_channel: How many per (guild id, channel id).
        channel_names: What the channels were called at their newest picture, where that is known.
        newest: When the newest picture was posted; None while empty.
        size_bytes: Size on disk where it is known.
    """

    pictures: int
    by_model: dict[str, int] = field(default_factory=dict)
    by_channel: dict[tuple[str, str], int] = field(default_factory=dict)
    channel_names: dict[tuple[str, str], str] = field(default_factory=dict)
    newest: datetime | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which pictures to delete: those that match every field that is set.

    Attributes:
        guild_id: Of this guild.
        channel_id: Of this channel.
        message_ids: Of these messages.
        user_id: By this author.
        attachment_ids: With these attachment ids.

    An empty set matches nothing; None leaves the field out.
    """

    guild_id: str | None = None
    channel_id: str | None = None
    message_ids: frozenset[str] | None = None
    user_id: str | None = None
    attachment_ids: frozenset[str] | None = None


class ImageArchive(Protocol):
    """Stores pictures with their vectors and finds the nearest.

    Every method may raise `ArchiveError`. Implementations are async context managers: entering
    opens or connects, leaving closes.
    """

    async def upsert_many(self, entries: Sequence[Entry]) -> None:
        """Stores entries, replacing those of the same key and model.

        All vectors are looked at before the first entry is stored: a bad one stores none. Should
        the database fail on the way, the embedded archive has stored none and Atlas may have
        stored some; storing the same entries again completes it, and never makes one twice.

        Models share what is known about a picture: the newest word counts. Where its bytes have
        changed (another `content_hash` than a known one), vectors that other models made of the
        old bytes go.

        Raises:
            ArchiveError: A vector has the wrong length for its model, is not of unit length or
                holds a number that is not finite.
            EntriesRefusedError: All but some are stored: these hold values that no archive takes
                (see `fitting`), or Atlas refused them.
        """
        ...

    async def search(self, query: Query) -> list[Match]:
        """The nearest pictures, best first; equal scores by oldest post first.

        An archive that holds nothing of the query's model finds nothing.

        Raises:
            ArchiveError: The query's vector has the wrong length for its model or is not of unit
                length, its limit is under 1, or a date of it has no timezone.
        """
        ...

    async def delete(self, selection: Selection) -> int:
        """Deletes what matches and returns how many pictures went. An empty selection is refused.

        Raises:
            ArchiveError: No field of the selection is set.
        """
        ...

    async def seen(self, keys: Iterable[PictureKey], model_id: str | None) -> set[PictureKey]:
        """Those of the keys that are stored with a vector of this model; None for any model."""
        ...

    async def embeddings(self, content_hashes: Iterable[str], model_id: str) -> dict[str, Vector]:
        """Vectors that this model has already made of files with these bytes, by hash.

        A picture that is posted again need not be embedded again.
        """
        ...

    async def stats(self) -> Stats:
        """Counts what is stored."""
        ...

    def entries(
        self, model_id: str | None = None, *, after: EntryKey | None = None
    ) -> AsyncIterator[Entry]:
        """Streams what is stored in the order of `Entry.key`, for copying and checking.

        Whatever is stored all the while is streamed exactly once; what changes meanwhile may be
        seen or not. Text is ordered by code points.

        Args:
            model_id: Only entries of this model.
            after: Goes on behind this entry, whether it is still there or not.
        """
        ...

    async def current_model(self) -> str | None:
        """The model whose vectors searches compare.

        The one that was chosen; where none was, the only one that has vectors. None where nothing
        is stored, or vectors of several models are.
        """
        ...

    async def choose_model(self, model_id: str) -> None:
        """Chooses the model whose vectors searches compare, from now on and in every process."""
        ...

    async def drop_model(self, model_id: str) -> int:
        """Deletes a model's vectors, and pictures that have none of another; returns how many.

        Cut short, it may have deleted some of them; doing it again completes it.
        """
        ...

    async def __aenter__(self) -> Self:
        """Opens the archive."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the archive."""
        ...
