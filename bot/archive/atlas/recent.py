"""What was written lately, kept until Vector Search has caught up with it.

Atlas's search index follows the collection with a delay of a second or so, and never says how far
it is. So that what was just posted is found, it is compared in memory as well for a while.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bot.archive.port import Entry, EntryKey, Selection

# 512 numbers take 2 KB: some 20 MB at the very most.
_MOST = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    until_s: float
    entry: Entry


class Recent:
    """Entries that the search index may not show yet, oldest dropped first.

    Args:
        keep_s: How long an entry is kept.
        most: How many are kept at most.
        clock: The time, in seconds.
    """

    def __init__(
        self,
        *,
        keep_s: float,
        most: int = _MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep_s = keep_s
        self._most = most
        self._clock = clock
        self._entries: OrderedDict[EntryKey, _Kept] = OrderedDict()
        # When pictures were deleted that the index may still show, and how many.
        self._deleted: deque[tuple[float, int]] = deque()

    def stored(self, entries: Iterable[Entry]) -> None:
        """Takes what was stored just now."""
        self._expire()
        until_s = self._clock() + self._keep_s
        for entry in entries:
            self._entries[entry.key] = _Kept(until_s=until_s, entry=entry)
            self._entries.move_to_end(entry.key)
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)

    def deleted(self, selection: Selection, count: int) -> None:
        """Forgets what was deleted just now; so many documents went."""
        self._expire()
        for key in [key for key, kept in self._entries.items() if _fits(selection, kept.entry)]:
            del self._entries[key]
        self._deleted.append((self._clock() + self._keep_s, count))

    def forget(self, keys: Iterable[EntryKey]) -> None:
        """Forgets single entries that were replaced."""
        for key in keys:
            self._entries.pop(key, None)

    def entries(self, model_id: str) -> list[Entry]:
        """What was stored lately of a model."""
        self._expire()
        return [kept.entry for key, kept in self._entries.items() if key.model_id == model_id]

    @property
    def changes(self) -> int:
        """How many documents the index may show otherwise than they are."""
        self._expire()
        return len(self._entries) + sum(count for _, count in self._deleted)

    def _expire(self) -> None:
        now_s = self._clock()
        while self._entries and next(iter(self._entries.values())).until_s <= now_s:
            self._entries.popitem(last=False)
        while self._deleted and self._deleted[0][0] <= now_s:
            self._deleted.popleft()


def _fits(selection: Selection, entry: Entry) -> bool:
    picture = entry.picture
    return (
        selection.guild_id in (None, picture.guild_id)
        and selection.channel_id in (None, picture.channel_id)
        and selection.user_id in (None, picture.user_id)
        and (selection.message_ids is None or picture.key.message_id in selection.message_ids)
        and (
            selection.attachment_ids is None
            or picture.key.attachment_id in selection.attachment_ids
        )
    )
