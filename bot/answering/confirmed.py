"""What Discord has said a moment ago of the messages that answers lead to.

The same few maps are found again and again, and Discord lets a bot ask 50 times a second in all. So
a message is asked for once for everybody who waits for it, and what came stands for a moment: until
the gateway tells that it was edited or deleted, and no longer than `LIFE_S`.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from bot.archive.port import Selection
from bot.pictures import Sighting

LIFE_S = 10.0
# A message's pictures are some 2 kB.
_MOST = 2_000

# A message by its channel's id and its own.
Place = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    ends_at_s: float
    channel_id: str
    sightings: list[Sighting]


class Confirmed:
    """Remembers messages, in bounded memory.

    Args:
        ask: Asks Discord for a message by guild, channel and message id (see `in_channel`).
        life_s: How long an answer stands, in seconds; 0 always asks.
        clock: The time, in seconds.
    """

    def __init__(
        self,
        ask: Callable[[str, str, str], Awaitable[list[Sighting] | None]],
        *,
        life_s: float = LIFE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._life_s = life_s
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._asking: dict[Place, asyncio.Task[list[Sighting] | None]] = {}

    async def pictures(self, guild_id: str, place: Place) -> list[Sighting] | None:
        """The pictures of a message; None if it is gone.

        Raises:
            disnake.HTTPException: Discord does not tell (nor is that remembered).
        """
        channel_id, message_id = place
        known = self._known.get(message_id)
        # An archive may name a channel that the message is not in, which must not open it.
        if known and known.channel_id == channel_id and self._clock() < known.ends_at_s:
            return known.sightings
        task = self._asking.get(place)
        if task is None:
            task = asyncio.create_task(self._asked(guild_id, place))
            self._asking[place] = task
            task.add_done_callback(lambda done: self._answered(place, done))
        # Who gives up, gives up for himself.
        return await asyncio.shield(task)

    def touched(self, message_id: str) -> None:
        """Forgets a message that was posted or edited, and what is being said of it."""
        self._forget({message_id})

    def deleted(self, selection: Selection) -> None:
        """Forgets what may have been deleted."""
        self._forget(selection.message_ids)

    async def _asked(self, guild_id: str, place: Place) -> list[Sighting] | None:
        return await self._ask(guild_id, *place)

    def _answered(self, place: Place, task: "asyncio.Task[list[Sighting] | None]") -> None:
        if self._asking.get(place) is not task:
            return  # the gateway has told something newer
        del self._asking[place]
        if task.cancelled() or task.exception() is not None or not (found := task.result()):
            return
        channel_id, message_id = place
        self._known[message_id] = _Known(
            ends_at_s=self._clock() + self._life_s, channel_id=channel_id, sightings=found
        )
        self._known.move_to_end(message_id)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)

    def _forget(self, message_ids: Collection[str] | None) -> None:
        if message_ids is None:
            self._known.clear()
            self._asking.clear()
            return
        for message_id in message_ids:
            self._known.pop(message_id, None)
        for place in [one for one in self._asking if one[1] in message_ids]:
            del self._asking[place]
