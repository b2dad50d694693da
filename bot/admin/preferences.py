"""What the admins of each guild have chosen. Threads follow their channel."""

from dataclasses import dataclass, field

import apsw


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A guild's choices.

    Attributes:
        watch_all: Whether channels that nothing was said about are watched.
        take_bots: Whether posts of other bots and of webhooks are indexed.
        watched: Channels that are watched whatever `watch_all` says.
        unwatched: Channels that are not watched whatever `watch_all` says.
        reposts: Channels where reposts are pointed out.
    """

    watch_all: bool = True
    take_bots: bool = True
    watched: frozenset[str] = field(default_factory=frozenset)
    unwatched: frozenset[str] = field(default_factory=frozenset)
    reposts: frozenset[str] = field(default_factory=frozenset)

    def watches(self, channel_id: str, parent_id: str = "") -> bool:
        """Whether new posts of a channel or thread are indexed; the thread's own choice first."""
        for place in (channel_id, parent_id):
            if place in self.watched:
                return True
            if place in self.unwatched:
                return False
        return self.watch_all

    def points_out_reposts(self, channel_id: str, parent_id: str = "") -> bool:
        """Whether a repost in a channel or thread gets a reply."""
        return not self.reposts.isdisjoint({channel_id, parent_id} - {""})


class Preferences:
    """Keeps the choices. Uses the connection of the bot's file."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        # Asked at every message: read once, and again after a change.
        self._known: dict[str, Chosen] = {}

    def of(self, guild_id: str) -> Chosen:
        """What a guild has chosen, or the defaults."""
        if guild_id not in self._known:
            self._known[guild_id] = self._read(guild_id)
        return self._known[guild_id]

    def watch(self, guild_id: str, channel_id: str, *, on: bool) -> None:
        """Watches a channel, or no longer."""
        self._set_channel(guild_id, channel_id, "watched", on=on)

    def point_out_reposts(self, guild_id: str, channel_id: str, *, on: bool) -> None:
        """Points reposts out in a channel, or no longer."""
        self._set_channel(guild_id, channel_id, "reposts", on=on)

    def watch_all(self, guild_id: str, *, on: bool) -> None:
        """Watches the channels that nothing was said about, or not."""
        self._set_guild(guild_id, "watch_all", on=on)

    def take_bots(self, guild_id: str, *, on: bool) -> None:
        """Indexes the posts of other bots and of webhooks, or not."""
        self._set_guild(guild_id, "take_bots", on=on)

    def drop_guild(self, guild_id: str) -> None:
        """Forgets what was read; the queue deletes what is stored."""
        self._known.pop(guild_id, None)

    def _set_channel(self, guild_id: str, channel_id: str, column: str, *, on: bool) -> None:
        with self._db:
            self._db.execute(
                f"INSERT INTO channel_preferences (guild_id, channel_id, {column})"  # noqa: S608 (constants)
                f" VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET {column} = excluded.{column}",
                (guild_id, channel_id, int(on)),
            )
        self.drop_guild(guild_id)

    def _set_guild(self, guild_id: str, column: str, *, on: bool) -> None:
        with self._db:
            self._db.execute(
                f"INSERT INTO guild_preferences (guild_id, {column}) VALUES (?, ?)"  # noqa: S608 (constants)
                f" ON CONFLICT DO UPDATE SET {column} = excluded.{column}",
                (guild_id, int(on)),
            )
        self.drop_guild(guild_id)

    def _read(self, guild_id: str) -> Chosen:
        guild = self._db.execute(
            "SELECT watch_all, take_bots FROM guild_preferences WHERE guild_id = ?", (guild_id,)
        ).fetchone() or (1, 1)
        channels = list(
            self._db.execute(
                "SELECT channel_id, watched, reposts FROM channel_preferences WHERE guild_id = ?",
                (guild_id,),
            )
        )
        return Chosen(
            watch_all=bool(guild[0]),
            take_bots=bool(guild[1]),
            watched=frozenset(id_ for id_, watched, _ in channels if watched == 1),
            unwatched=frozenset(id_ for id_, watched, _ in channels if watched == 0),
            reposts=frozenset(id_ for id_, _, reposts in channels if reposts),
        )
