"""What people asked mapseek to forget, and what therefore must not come back.

A post that was forgotten still stands in Discord, where the next backfill meets it. So the wish is
kept, by ids alone, and everything that is to be indexed is checked against it.
"""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import apsw

if TYPE_CHECKING:  # the importer needs this module, and no Discord
    from bot.pictures import Sighting

# Discord's ids count milliseconds since 2015, and have 22 bits below them.
_EPOCH_MS = 1_420_070_400_000
_LOWER_BITS = 22
# No id is larger: SQLite's integers end here, and Discord's ids have the sign bit free.
_FOREVER = 2**63 - 1


class Forgotten:
    """The wishes. Uses the connection of the bot's file."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db

    def message(self, message_id: str, *, guild_id: str) -> None:
        """Keeps a message out for good."""
        self._keep("message", message_id, guild_id, _FOREVER)

    def posts_of(self, user_id: str, *, guild_id: str) -> None:
        """Keeps what somebody has posted in a guild so far out; later posts are taken in."""
        self._keep("user", user_id, guild_id, now_id())

    def posts_in(self, channel_id: str, *, guild_id: str) -> None:
        """Keeps what was posted in a channel and its threads so far out."""
        self._keep("channel", channel_id, guild_id, now_id())

    def readmit_channels(self, channel_ids: Iterable[str], *, guild_id: str) -> None:
        """Lets channels be indexed again from their beginning."""
        with self._db:
            self._db.executemany(
                "DELETE FROM forgotten WHERE kind = 'channel' AND id = ? AND guild_id = ?",
                [(channel_id, guild_id) for channel_id in channel_ids],
            )

    def opt_out(self, user_id: str) -> None:
        """Keeps everything that somebody posts out, on every server."""
        self._keep("user", user_id, "", _FOREVER)

    def opt_in(self, user_id: str) -> None:
        """Takes an opt-out back. What was forgotten before stays so where it was."""
        with self._db:
            self._db.execute(
                "DELETE FROM forgotten WHERE kind = 'user' AND id = ? AND guild_id = ''", (user_id,)
            )

    def opted_out(self, user_id: str) -> bool:
        """Whether somebody wants none of their posts kept."""
        return self._any("kind = 'user' AND id = ? AND guild_id = ''", (user_id,))

    def everyone_out(self) -> set[str]:
        """The ids of all who opted out."""
        rows = self._db.execute("SELECT id FROM forgotten WHERE kind = 'user' AND guild_id = ''")
        return {user_id for (user_id,) in rows}

    def allows(self, sighting: "Sighting") -> bool:
        """Whether nobody has asked that this picture be forgotten."""
        return self.allows_post(
            sighting.message_id,
            guild_id=sighting.guild_id,
            user_id=sighting.user_id,
            channel_ids=(sighting.channel_id, sighting.parent_id),
        )

    def allows_post(
        self, message_id: str, *, guild_id: str, user_id: str, channel_ids: tuple[str, str]
    ) -> bool:
        """The same for a message: in a channel, or in a thread and its channel."""
        return not self._any(
            "until_id >= ? AND guild_id IN ('', ?) AND ((kind = 'message' AND id = ?)"
            " OR (kind = 'user' AND id = ?) OR (kind = 'channel' AND id IN (?, ?)))",
            (int(message_id), guild_id, message_id, user_id, *channel_ids),
        )

    def _keep(self, kind: str, id_: str, guild_id: str, until_id: int) -> None:
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO forgotten VALUES (?, ?, ?, ?)",
                (kind, id_, guild_id, until_id),
            )

    def _any(self, condition: str, values: tuple[str | int, ...]) -> bool:
        query = f"SELECT 1 FROM forgotten WHERE {condition} LIMIT 1"  # noqa: S608 (constants)
        return self._db.execute(query, values).fetchone() is not None


def now_id() -> int:
    """The id that a message sent at this moment has at most."""
    return (time.time_ns() // 1_000_000 - _EPOCH_MS + 1 << _LOWER_BITS) - 1
