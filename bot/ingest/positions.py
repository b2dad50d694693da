"""Up to which message each channel has been taken in, so that an absence can be made up for."""

import json
from collections.abc import Collection

import apsw


class Positions:
    """The positions. Uses the connection of the bot's file.

    A position may lag behind: then a few messages are looked at twice, which does no harm. So those
    of live posts are kept in memory until `flush`.
    """

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._ahead: dict[str, tuple[str, int]] = {}

    def seen(self, channel_id: str) -> int | None:
        """The last message of a channel that was taken in; None for a channel never met."""
        if channel_id in self._ahead:
            return self._ahead[channel_id][1]
        row = self._db.execute(
            "SELECT seen_id FROM positions WHERE channel_id = ?", (channel_id,)
        ).fetchone()
        return row[0] if row else None

    def knows(self, guild_id: str) -> bool:
        """Whether any channel of a guild was met before."""
        row = self._db.execute("SELECT 1 FROM positions WHERE guild_id = ? LIMIT 1", (guild_id,))
        return row.fetchone() is not None

    def guilds(self) -> set[str]:
        """The guilds that were met before."""
        rows = self._db.execute("SELECT DISTINCT guild_id FROM positions")
        return {guild_id for (guild_id,) in rows}

    def store(self, guild_id: str, channel_id: str, seen_id: int) -> None:
        """Puts a position down."""
        self._ahead.pop(channel_id, None)
        with self._db:
            self._store(guild_id, channel_id, seen_id)

    def advance(self, guild_id: str, channel_id: str, seen_id: int) -> None:
        """Moves a position on; on disk after the next `flush`."""
        self._ahead[channel_id] = (guild_id, seen_id)

    def flush(self, *, alive_id: int) -> None:
        """Writes down what has moved, and that the bot was there at this moment."""
        ahead, self._ahead = self._ahead, {}
        with self._db:
            for channel_id, (guild_id, seen_id) in ahead.items():
                self._store(guild_id, channel_id, seen_id)
            self._set_fact("alive_id", str(alive_id))

    def drop(self, channel_id: str) -> None:
        """Forgets a channel: it counts as never met."""
        self._ahead.pop(channel_id, None)
        with self._db:
            self._db.execute("DELETE FROM positions WHERE channel_id = ?", (channel_id,))

    def drop_guild(self, guild_id: str, *, but: Collection[str] = ()) -> None:
        """Forgets a guild's channels, all but some."""
        self._ahead = {
            channel_id: (guild, seen_id)
            for channel_id, (guild, seen_id) in self._ahead.items()
            if guild != guild_id or channel_id in but
        }
        with self._db:
            self._db.execute(
                "DELETE FROM positions WHERE guild_id = ?"
                " AND channel_id NOT IN (SELECT value FROM json_each(?))",
                (guild_id, json.dumps(sorted(but))),
            )

    def alive_id(self) -> int:
        """The id of the moment at which the bot was last known to listen; 0 if never."""
        return int(self._fact("alive_id") or 0)

    def same_application(self, application_id: int) -> bool:
        """Whether the bot is the application that it was at its last start; the first counts so."""
        known = self._fact("application_id")
        if known is None:
            with self._db:
                self._set_fact("application_id", str(application_id))
        return known in {None, str(application_id)}

    def _store(self, guild_id: str, channel_id: str, seen_id: int) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)", (channel_id, guild_id, seen_id)
        )

    def _fact(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _set_fact(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
