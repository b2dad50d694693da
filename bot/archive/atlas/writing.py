"""What storing entries writes: bulks of upserts that may be repeated without harm."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pymongo import DeleteOne, UpdateOne

from bot.archive.atlas.documents import (
    ATTACHMENT,
    HASH,
    MESSAGE,
    MODEL,
    OURS,
    VECTOR,
    entry_fields,
    entry_of,
    key_filter,
    of_messages,
    picture_fields,
    picture_key,
)
from bot.archive.atlas.driver import Driver, Failure, Write
from bot.archive.port import Entry, EntryKey, Picture, PictureKey

# Some 3 MB of vectors in one message to the server.
BULK = 500


def settle(entries: Iterable[Entry]) -> list[Entry]:
    """What is left of entries that were given one after the other.

    Of the same key the last counts; what is known about a picture, and which bytes it has, is what
    its last entry says.
    """
    last = {entry.key: entry for entry in entries}
    pictures: dict[PictureKey, Picture] = {}
    for entry in entries:
        pictures[entry.picture.key] = entry.picture
    return [
        replace(entry, picture=pictures[entry.picture.key])
        for entry in last.values()
        if _same_bytes(entry.picture.content_hash, pictures[entry.picture.key].content_hash)
    ]


def upserts(entries: Sequence[Entry], dimensions: Mapping[str, int | None]) -> list[UpdateOne]:
    """One write for each entry.

    Args:
        entries: What to store.
        dimensions: The length of each model's vectors, where it is known; where it is not, the
            first entry of the model says it.

    Raises:
        ArchiveError: One of the entries cannot be stored.
    """
    known = dict(dimensions)
    writes = []
    for entry in entries:
        fields = entry_fields(entry, known.get(entry.model_id))
        known[entry.model_id] = entry.embedding.size
        writes.append(UpdateOne(key_filter(entry.key), {"$set": fields}, upsert=True))
    return writes


async def store(
    driver: Driver, entries: Sequence[Entry], writes: Sequence[UpdateOne]
) -> dict[EntryKey, str]:
    """Carries the writes out; returns what the database refused for good."""
    refused: list[Failure] = []
    for start in range(0, len(writes), BULK):
        failures = await driver.bulk(writes[start : start + BULK])
        refused += [replace(one, index=one.index + start) for one in failures]
    return {entries[one.index].key: one.reason for one in refused}


async def align(driver: Driver, entries: Sequence[Entry]) -> tuple[list[Entry], list[EntryKey]]:
    """Tells the entries of other models what is now known about the same pictures.

    Returns:
        Those of other models that were changed, and the keys of those that went, because they were
        made of bytes that are gone.
    """
    pictures = {entry.picture.key: entry.picture for entry in entries}
    written = {entry.key for entry in entries}
    changed: list[Entry] = []
    gone: list[EntryKey] = []
    keys = list(pictures)
    for start in range(0, len(keys), BULK):
        found = await driver.find(
            OURS | of_messages(keys[start : start + BULK]), (MESSAGE, ATTACHMENT, MODEL, HASH)
        )
        others = [
            document
            for document in found
            if picture_key(document) in pictures and _key(document) not in written
        ]
        same = [
            one for one in others if _same_bytes(one[HASH], pictures[picture_key(one)].content_hash)
        ]
        stale = [one for one in others if one not in same]
        writes: list[Write] = [
            UpdateOne({"_id": one["_id"]}, {"$set": picture_fields(pictures[picture_key(one)])})
            for one in same
        ]
        writes += [DeleteOne({"_id": one["_id"], HASH: one[HASH]}) for one in stale]
        if not writes:
            continue
        await driver.bulk(writes)
        gone += [_key(one) for one in stale]
        if same:
            ids = [one["_id"] for one in same]
            changed += map(entry_of, await driver.find({"_id": {"$in": ids}, VECTOR: _THERE}))
    return changed, gone


_THERE = {"$exists": True}


def _same_bytes(before: str, now: str) -> bool:
    """Whether a picture's bytes are taken to be as they were; of some it was not written down."""
    return before in ("", now)


def _key(document: Mapping[str, Any]) -> EntryKey:
    return EntryKey(
        model_id=document[MODEL],
        message_id=document[MESSAGE],
        attachment_id=document.get(ATTACHMENT, ""),
    )
