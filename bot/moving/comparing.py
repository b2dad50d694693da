"""Comparing archives entry by entry, and the sum that says whether they hold the same."""

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from bot.archive.port import Entry, EntryKey, ImageArchive
from bot.archive.rows import microseconds

_MODULUS = 1 << 256


def digest(entry: Entry) -> bytes:
    """The SHA-256 of everything that an entry holds, the same from every archive."""
    picture = entry.picture
    values = (
        *(entry.model_id, picture.key.message_id, picture.key.attachment_id),
        *(picture.guild_id, picture.channel_id, picture.user_id),
        *(picture.message_link, picture.image_url, microseconds(picture.posted_at)),
        *(picture.width, picture.height, picture.file_size, picture.content_hash),
        *(picture.spoiler, picture.author, picture.channel),
    )
    hashed = hashlib.sha256(json.dumps(values).encode())
    hashed.update(entry.embedding.astype("<f4").tobytes())
    return hashed.digest()


class Checksum:
    """The sum of the digests of entries: the order in which they come makes no difference.

    Attributes:
        count: How many entries were added.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0

    def add(self, digest_: bytes) -> None:
        """Adds one entry by its digest."""
        self.count += 1
        self._sum = (self._sum + int.from_bytes(digest_)) % _MODULUS

    def __str__(self) -> str:
        return f"{self._sum:064x}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Checksum):
            return NotImplemented
        return (self.count, self._sum) == (other.count, other._sum)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An entry that is not the same in both archives.

    Attributes:
        key: Which entry.
        source: As the source has it; None where it has none.
        in_target: Whether the target has one.
    """

    key: EntryKey
    source: Entry | None
    in_target: bool


@dataclass(slots=True, kw_only=True)
class Sums:
    """What was read while comparing.

    Attributes:
        source: Everything in the source.
        target: What the target has of it, the same or not.
    """

    source: Checksum = field(default_factory=Checksum)
    target: Checksum = field(default_factory=Checksum)


async def differences(
    source: ImageArchive,
    target: ImageArchive,
    sums: Sums,
    report: Callable[[int], None] = lambda _: None,
) -> AsyncIterator[Difference]:
    """Walks through both archives side by side, in the order of their keys.

    Args:
        source: One archive.
        target: The other.
        sums: Is filled on the way.
        report: Is told how many entries of the source were compared.
    """
    ours, theirs = aiter(source.entries()), aiter(target.entries())
    one, other = await anext(ours, None), await anext(theirs, None)
    while one is not None or other is not None:
        behind = one is None or (other is not None and other.key < one.key)
        ahead = other is None or (one is not None and one.key < other.key)
        one_digest = None if behind or one is None else digest(one)
        other_digest = None if ahead or other is None else digest(other)
        if one_digest is not None:
            sums.source.add(one_digest)
            report(sums.source.count)
            if other_digest is not None:
                sums.target.add(other_digest)
        if one_digest != other_digest:
            key = other.key if behind and other is not None else one.key if one else None
            assert key is not None, "one of the two is there"  # noqa: S101
            yield Difference(
                key=key, source=None if behind else one, in_target=other_digest is not None
            )
        if one_digest is not None:
            one = await anext(ours, None)
        if other_digest is not None:
            other = await anext(theirs, None)
