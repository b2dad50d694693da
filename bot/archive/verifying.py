"""Checking an archive by reading all of it, and by looking for what was read."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bot.archive.port import ArchiveError, Entry, EntryKey, ImageArchive, Query

_TELL_EVERY = 1000
# Of a picture with itself, by an index that may keep vectors in bytes or bits.
_SAME = 0.99


@dataclass(slots=True, kw_only=True)
class Verified:
    """What a check found.

    Attributes:
        entries: How many were read.
        by_model: How many of each model.
        searched: How many were looked for.
        problems: What is wrong, one sentence each.
    """

    entries: int = 0
    by_model: Counter[str] = field(default_factory=Counter)
    searched: int = 0
    problems: list[str] = field(default_factory=list)


async def verify(
    archive: ImageArchive, *, samples: int, report: Callable[[int], None], seed: int = 0
) -> Verified:
    """Reads every entry, and searches for some of them by their own vectors.

    Args:
        archive: What to check.
        samples: How many entries must find a picture that looks just like themselves.
        report: Is told now and then how many were read.
        seed: Which entries are taken.

    Raises:
        ArchiveError: An entry cannot be read.
    """
    found = Verified()
    taken: list[Entry] = []
    choice = random.Random(seed)
    last: EntryKey | None = None
    lengths: dict[str, int] = {}
    async for entry in archive.entries():
        if last is not None and entry.key <= last:
            found.problems.append(f"{_name(entry)} is stored twice, or out of order.")
        last = entry.key
        _check(entry, lengths, found)
        found.entries += 1
        found.by_model[entry.model_id] += 1
        # Every entry has the same chance to be taken, whatever their number turns out to be.
        if len(taken) < samples:
            taken.append(entry)
        elif (place := choice.randrange(found.entries)) < samples:
            taken[place] = entry
        if found.entries % _TELL_EVERY == 0:
            report(found.entries)
    stats = await archive.stats()
    if stats.by_model != dict(found.by_model):
        found.problems.append(
            f"The archive counts {stats.by_model} entries, and {dict(found.by_model)} were read; "
            "something may have written to it meanwhile."
        )
    for entry in taken:
        await _look_for(archive, entry, found)
    return found


def _check(entry: Entry, lengths: dict[str, int], found: Verified) -> None:
    length = lengths.setdefault(entry.model_id, entry.embedding.size)
    if entry.embedding.size != length:
        found.problems.append(
            f"{_name(entry)} has {entry.embedding.size} numbers, and others of its model {length}."
        )
    if not np.isfinite(entry.embedding).all():
        found.problems.append(f"{_name(entry)} has a vector that is not finite.")


async def _look_for(archive: ImageArchive, entry: Entry, found: Verified) -> None:
    found.searched += 1
    query = Query(
        embedding=entry.embedding,
        model_id=entry.model_id,
        limit=1,
        guild_id=entry.picture.guild_id,
        channel_ids=frozenset({entry.picture.channel_id}),
    )
    try:
        matches = await archive.search(query)
    except ArchiveError as error:
        found.problems.append(f"{_name(entry)} cannot be looked for: {error}")
        return
    # Another post of the same picture is as good an answer.
    if not matches or matches[0].score < _SAME:
        found.problems.append(
            f"{_name(entry)} is not found by its own vector: the search index lacks it, or is "
            "behind."
        )


def _name(entry: Entry) -> str:
    key = entry.picture.key
    return f"Picture {key.message_id}/{key.attachment_id} of {entry.model_id}"
