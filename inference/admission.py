"""The one bound on work in the server, counted in items from acceptance to answer."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from inference.errors import OverloadedError, ShuttingDownError
from inference.lanes import ROUNDING, Lane

# How many of the latest departures tell the present throughput.
_REMEMBERED = 64
# So many items, or bytes of them, that it is time to look after things; of items, two cores take
# ten seconds for them.
_MANY, _MANY_BYTES = 1000, 256 * 1024 * 1024
# Bounds of the advice to a refused caller; the middle value is for when nothing is known yet.
_MIN_RETRY_MS, _UNKNOWN_RETRY_MS, _MAX_RETRY_MS = 20, 500, 10_000


class Admission:
    """A fixed number of slots; an item holds one from acceptance until its answer.

    Single calls `try_enter` and are refused when there is no slot; streams `enter` and wait, so
    that their sender is held back. Waiting is first in, first out within a lane. Interactive goes
    first, but of the slots that either lane could take while both wait, bulk gets its share. Bulk
    can never take the slots that are reserved for interactive items.

    Args:
        slots: How many items may be in the server at once.
        reserved: How many of them only interactive items may take; fewer than `slots`.
        bulk_share: Part of the freed slots that bulk is sure of while both lanes wait.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self,
        slots: int,
        *,
        reserved: int,
        bulk_share: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= reserved < slots:
            raise ValueError(f"{reserved} reserved slots of {slots} leave none for bulk")
        self._slots = slots
        self._bulk_slots = slots - reserved
        self._bulk_share = bulk_share
        self._owed_to_bulk = 0.0
        self._clock = clock
        self._inside = dict.fromkeys(Lane, 0)
        self._waiting: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in Lane}
        self._departures: deque[float] = deque(maxlen=_REMEMBERED)
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._crowded = False
        self._left = self._left_bytes = 0
        self._passed = asyncio.Event()

    @property
    def inside(self) -> int:
        """How many items hold a slot."""
        return self._inside[Lane.INTERACTIVE] + self._inside[Lane.BULK]

    def try_enter(self, lane: Lane, count: int = 1) -> None:
        """Takes `count` slots at once, or none.

        Raises:
            OverloadedError: There are not so many for this lane; it says when to try again.
            ShuttingDownError: `close` was called.
        """
        if self._closed:
            raise ShuttingDownError
        if not self._has_room(lane, count):
            self._crowded = True
            raise OverloadedError(
                f"The server is full: it is working on {self.inside} items. Try again later.",
                retry_after_ms=self.retry_after_ms(),
            )
        self._let_in(lane, count)

    async def enter(self, lane: Lane) -> None:
        """Takes a slot as soon as it is this caller's turn.

        Raises:
            ShuttingDownError: `close` was called, before or during the wait.
        """
        if self._closed:
            raise ShuttingDownError
        if self._has_room(lane):
            self._let_in(lane)
            return
        self._crowded = True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # passed over in the same instant
                    self._waiting[lane].remove(turn)
            elif turn.exception() is None:  # the slot was granted in the same instant
                self.leave(lane)
            raise

    def leave(self, lane: Lane, size_bytes: int = 0) -> None:
        """Gives back the slot of an item of this size; whoever waits longest takes it over."""
        self._inside[lane] -= 1
        self._departures.append(self._clock())
        while (next_lane := self._next_lane()) is not None:
            self._let_in(next_lane)
            self._waiting[next_lane].popleft().set_result(None)
        if not self.inside:
            self._empty.set()
        self._left += 1
        self._left_bytes += size_bytes
        many = self._left >= _MANY or self._left_bytes >= _MANY_BYTES
        if many or (self._crowded and not self.inside):
            self._passed.set()

    def retry_after_ms(self) -> int:
        """When about half of the present work will be done, going by the latest departures."""
        if len(self._departures) < 2:  # noqa: PLR2004 - a rate needs two points in time
            return _UNKNOWN_RETRY_MS
        elapsed_s = self._clock() - self._departures[0]
        half_s = elapsed_s / len(self._departures) * self.inside / 2
        return int(min(max(half_s * 1000, _MIN_RETRY_MS), _MAX_RETRY_MS))

    def close(self) -> None:
        """Lets nobody in any more; those who wait for a slot get `ShuttingDownError`."""
        self._closed = True
        for queue in self._waiting.values():
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_exception(ShuttingDownError())

    async def empty(self) -> None:
        """Waits until no item holds a slot."""
        await self._empty.wait()

    async def many_passed(self) -> None:
        """Waits until a thousand items or 256 MiB have left, or a crowd that was too large.

        Counts from its last return.
        """
        await self._passed.wait()
        self._passed.clear()
        self._left = self._left_bytes = 0
        if not self.inside:  # else it has yet to go
            self._crowded = False

    def _next_lane(self) -> Lane | None:
        """Whose turn it is, or None where nobody waits whom there is room for."""
        interactive, bulk = (self._waits(lane) for lane in (Lane.INTERACTIVE, Lane.BULK))
        if not bulk:
            self._owed_to_bulk = 0.0
        bulk = bulk and self._has_room(Lane.BULK)
        if not interactive or not self._has_room(Lane.INTERACTIVE):
            return Lane.BULK if bulk else None
        if bulk:
            self._owed_to_bulk += self._bulk_share
            if self._owed_to_bulk >= 1 - ROUNDING:
                self._owed_to_bulk -= 1
                return Lane.BULK
        return Lane.INTERACTIVE

    def _waits(self, lane: Lane) -> bool:
        queue = self._waiting[lane]
        while queue and queue[0].done():  # cancelled in this instant
            queue.popleft()
        return bool(queue)

    def _has_room(self, lane: Lane, count: int = 1) -> bool:
        if self.inside + count > self._slots:
            return False
        return lane is Lane.INTERACTIVE or self._inside[Lane.BULK] + count <= self._bulk_slots

    def _let_in(self, lane: Lane, count: int = 1) -> None:
        self._inside[lane] += count
        self._empty.clear()
