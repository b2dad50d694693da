"""What is worked on next: new posts before old ones, the guilds in turn, the longest due first."""

import json
from itertools import chain, zip_longest

import apsw

from bot.ingest.queued import Lane, Queued
from bot.pictures import Sighting

# Beside new posts, old ones get one in so many places: they are never starved, and delay little.
_SHARE_OF_BACKFILL = 8


class Turns:
    """Chooses among the pictures that wait in the bot's file.

    Args:
        db: The file, see `bot.ingest.state`.
    """

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._last_guild = dict.fromkeys(Lane, "")

    def due(self, *, now_s: float, limit: int) -> list[Queued]:
        """The pictures to work on now; they stay in the queue.

        Args:
            now_s: The time, in seconds since the epoch.
            limit: How many at most.
        """
        live = self._in_turn(Lane.LIVE, now_s, limit)
        room = limit // _SHARE_OF_BACKFILL if live else limit
        old = self._in_turn(Lane.BACKFILL, now_s, room)
        return live[: limit - len(old)] + old

    def _in_turn(self, lane: Lane, now_s: float, limit: int) -> list[Queued]:
        guilds = self._guilds(lane)
        # Who was served last comes last, also where there are more guilds than places.
        last = self._last_guild[lane]
        guilds = [one for one in guilds if one > last] + [one for one in guilds if one <= last]
        lines = [self._line(lane, guild_id, now_s, limit) for guild_id in guilds]
        turns = chain.from_iterable(zip_longest(*lines))
        chosen = [item for item in turns if item is not None][:limit]
        if chosen:
            self._last_guild[lane] = chosen[-1].sighting.guild_id
        return chosen

    def _guilds(self, lane: Lane) -> list[str]:
        """The guilds that have something in a lane, found by jumping along the index."""
        found: list[str] = []
        condition = ""
        while True:
            values = (int(lane), *found[-1:])
            row = self._db.execute(
                "SELECT guild_id FROM sightings WHERE state = 'waiting' AND lane = ? "  # noqa: S608 (constants)
                f"{condition} ORDER BY guild_id LIMIT 1",
                values,
            ).fetchone()
            if row is None:
                return found
            found.append(row[0])
            condition = "AND guild_id > ?"

    def _line(self, lane: Lane, guild_id: str, now_s: float, limit: int) -> list[Queued]:
        rows = self._db.execute(
            "SELECT body, attempts, anew FROM sightings WHERE state = 'waiting' AND lane = ?"
            " AND guild_id = ? AND due_at_s <= ? ORDER BY due_at_s, rowid LIMIT ?",
            (int(lane), guild_id, now_s, limit),
        )
        return [
            Queued(
                sighting=Sighting(**json.loads(body)),
                attempts=attempts,
                lane=lane,
                anew=bool(anew),
            )
            for body, attempts, anew in rows
        ]
