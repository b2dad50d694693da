"""Two waiting lines: interactive goes first, bulk is never starved."""

from collections import deque
from enum import StrEnum
from typing import Generic, TypeVar

Item = TypeVar("Item")

# Above what adding up shares loses: three thirds of a place are a place.
ROUNDING = 1e-9


class Lane(StrEnum):
    """How urgent a piece of work is."""

    INTERACTIVE = "interactive"
    """Somebody waits for the answer."""
    BULK = "bulk"
    """Background work: yields to interactive work but is never starved."""


class LaneQueue(Generic[Item]):
    """Work that waits, first in, first out within its lane.

    Interactive work is taken first. So that bulk is never starved, it is owed a share: of all
    places that are taken while bulk waits, at least `bulk_share` go to it. What it is owed is
    carried over (so the share holds even where places are taken one at a time) and forgotten
    once no bulk waits.

    Not safe for threads: callers that share one hold a lock.

    Args:
        bulk_share: Part of the places that bulk gets when both lanes wait; over 0, under 1.
    """

    def __init__(self, *, bulk_share: float) -> None:
        if not 0 < bulk_share < 1:
            raise ValueError(f"bulk_share must lie between 0 and 1, not {bulk_share}")
        self._interactive: deque[Item] = deque()
        self._bulk: deque[Item] = deque()
        self._bulk_share = bulk_share
        self._owed_to_bulk = 0.0

    def __len__(self) -> int:
        return len(self._interactive) + len(self._bulk)

    def put(self, item: Item, lane: Lane) -> None:
        """Adds an item at the end of its lane."""
        (self._bulk if lane is Lane.BULK else self._interactive).append(item)

    def put_back(self, item: Item, lane: Lane) -> None:
        """Returns an item that was taken to the front of its lane."""
        (self._bulk if lane is Lane.BULK else self._interactive).appendleft(item)

    def discard(self, item: Item, lane: Lane) -> bool:
        """Removes an item that no longer wants to wait; False if it waits no more."""
        try:
            (self._bulk if lane is Lane.BULK else self._interactive).remove(item)
        except ValueError:
            return False
        return True

    def take(self, places: int) -> list[Item]:
        """Removes and returns up to `places` items, interactive ones first."""
        places = min(places, len(self))
        for_bulk = 0
        if self._bulk:
            self._owed_to_bulk += places * self._bulk_share
            for_bulk = min(int(self._owed_to_bulk + ROUNDING), len(self._bulk), places)
        interactive = min(len(self._interactive), places - for_bulk)
        bulk = places - interactive
        taken = [self._interactive.popleft() for _ in range(interactive)]
        taken += [self._bulk.popleft() for _ in range(bulk)]
        self._owed_to_bulk = max(0.0, self._owed_to_bulk - bulk) if self._bulk else 0.0
        return taken
