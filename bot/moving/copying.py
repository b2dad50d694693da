"""Copying one archive into another: the use case behind `mapseek archive copy`.

    what the target lacks ▶ store in batches      then: compare all ▶ store what differs ▶ again

Nothing is remembered between runs: the target itself says what is there, so a run may be stopped
or killed at any moment. Only a batch is ever in memory.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from bot.archive.port import (
    EntriesRefusedError,
    Entry,
    EntryKey,
    ImageArchive,
    Selection,
)
from bot.moving.comparing import Sums, differences

_T = TypeVar("_T")

_BATCH = 256
# A bot that writes into the source changes it while it is compared; a few rounds catch up.
_ROUNDS = 3
# So many keys are kept for the report.
_MOST_KEYS = 20


@dataclass(slots=True, kw_only=True)
class Copied:
    """What a copy came to.

    Attributes:
        stored: Entries that were stored because the target lacked them.
        there: Entries that the target had.
        changed: Entries that differed and were stored again.
        deleted: Pictures that were deleted from the target, where that was asked for.
        refused: Why the target refused an entry for good.
        extra: Entries that only the target has, in the last comparison.
        extra_keys: The first of them.
        different: Entries that still differed in the last comparison.
        sums: Counts and checksums of the last comparison.
    """

    stored: int = 0
    there: int = 0
    changed: int = 0
    deleted: int = 0
    refused: dict[EntryKey, str] = field(default_factory=dict)
    extra: int = 0
    extra_keys: list[EntryKey] = field(default_factory=list)
    different: int = 0
    sums: Sums = field(default_factory=Sums)

    @property
    def verified(self) -> bool:
        """Whether the target holds everything that the source holds, and the same."""
        return self.different == 0 and not self.refused


class Copier:
    """One copy. Cancelling it loses nothing: the next one goes on from there.

    Args:
        source: What is read.
        target: What is written.
        delete: Whether to delete from the target what the source does not have.
        report: Is told the step ("copying", "comparing") and how many entries it has dealt with.

    Attributes:
        copied: How far it came.
    """

    def __init__(
        self,
        source: ImageArchive,
        target: ImageArchive,
        *,
        delete: bool = False,
        report: Callable[[str, int], None] = lambda _, __: None,
    ) -> None:
        self.copied = Copied()
        self._source = source
        self._target = target
        self._delete = delete
        self._report = report

    async def run(self) -> Copied:
        """Copies and compares.

        Raises:
            ArchiveError: One of the archives cannot be read or written.
        """
        async for batch in batches(self._source.entries()):
            await self._store_missing(batch)
        for _ in range(_ROUNDS):
            if not await self._compare():
                break
        return self.copied

    async def _store_missing(self, batch: list[Entry]) -> None:
        missing: list[Entry] = []
        for model_id in sorted({entry.model_id for entry in batch}):
            of_model = [entry for entry in batch if entry.model_id == model_id]
            seen = await self._target.seen([entry.picture.key for entry in of_model], model_id)
            missing += [entry for entry in of_model if entry.picture.key not in seen]
        self.copied.there += len(batch) - len(missing)
        self.copied.stored += await self._store(missing)
        self._report("copying", self.copied.there + self.copied.stored)

    async def _store(self, entries: list[Entry]) -> int:
        if not entries:
            return 0
        try:
            await self._target.upsert_many(entries)
        except EntriesRefusedError as error:
            self.copied.refused.update(error.refused)
            return len(entries) - len(error.refused)
        for entry in entries:
            self.copied.refused.pop(entry.key, None)
        return len(entries)

    async def _compare(self) -> bool:
        """Compares everything once and mends it; whether it is worth comparing again."""
        copied = self.copied
        copied.sums, copied.different, copied.extra, copied.extra_keys = Sums(), 0, 0, []
        mended = False
        found = differences(
            self._source, self._target, copied.sums, lambda count: self._report("comparing", count)
        )
        async for some in batches(found):
            differing = [one.source for one in some if one.source is not None]
            copied.different += len(differing)
            stored = await self._store(differing)
            copied.changed += stored
            extra = [one.key for one in some if one.source is None]
            deleted = await self._remove(extra) if self._delete and extra else 0
            copied.deleted += deleted
            copied.extra += len(extra)
            copied.extra_keys += extra[: _MOST_KEYS - len(copied.extra_keys)]
            mended = mended or stored > 0 or deleted > 0
        return mended

    async def _remove(self, extra: list[EntryKey]) -> int:
        """Deletes pictures that the source does not have under any model."""
        pictures = {entry.picture for entry in extra}
        known = await self._source.seen(pictures, None)
        return sum(
            [
                await self._target.delete(
                    Selection(
                        message_ids=frozenset({key.message_id}),
                        attachment_ids=frozenset({key.attachment_id}),
                    )
                )
                for key in pictures - known
            ]
        )


async def batches(items: AsyncIterator[_T], size: int = _BATCH) -> AsyncIterator[list[_T]]:
    """Items, so many at a time."""
    batch: list[_T] = []
    async for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
