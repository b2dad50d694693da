"""The durable queue: what was seen is written down before it is worked on.

It holds the pictures still to be indexed, those that failed for good (set aside, with the reason),
which are in the archive, the deletions still to be carried out there, and which channel each seen
thread belongs to. See `bot.ingest.state` for the file.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import IntEnum
from itertools import chain, zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bot.archive.port import PictureKey, Selection
from bot.ingest.state import OF_A_GUILD, open_state
from bot.pictures import Sighting

# How each field of a Selection is said in SQL; sets travel as JSON lists.
_CONDITIONS = {
    "guild_id": "guild_id = ?",
    "channel_id": "channel_id = ?",
    "user_id": "user_id = ?",
    "message_ids": "message_id IN (SELECT value FROM json_each(?))",
    "attachment_ids": "attachment_id IN (SELECT value FROM json_each(?))",
}

_ADD = """
INSERT INTO sightings
    (message_id, attachment_id, guild_id, channel_id, user_id, spoiler, body, lane, anew, due_at_s)
VALUES (:message_id, :attachment_id, :guild_id, :channel_id, :user_id, :spoiler, :body, :lane,
    :spoiler, :due_at_s)
ON CONFLICT DO UPDATE SET
    body = excluded.body,
    anew = anew OR spoiler <> excluded.spoiler,
    spoiler = excluded.spoiler,
    lane = iif(state = 'indexed', excluded.lane, min(lane, excluded.lane)),
    attempts = iif(state = 'indexed', 0, attempts),
    due_at_s = iif(state = 'indexed', excluded.due_at_s, due_at_s),
    state = iif(state = 'indexed', 'waiting', state)
"""

# Of a full batch, one in so many places is kept for old posts: they are never starved.
_SHARE_OF_BACKFILL = 8


class Lane(IntEnum):
    """What goes first."""

    LIVE = 0
    BACKFILL = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A picture that waits to be indexed.

    Attributes:
        sighting: What was seen.
        attempts: How often it has failed so far.
        lane: What it goes with.
        anew: Whether to index it although the archive may have it: what is said of it has changed.
    """

    sighting: Sighting
    attempts: int
    lane: Lane = Lane.LIVE
    anew: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A picture that could not be indexed.

    Attributes:
        sighting: What was seen.
        reason: Why, in one sentence.
    """

    sighting: Sighting
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownThread:
    """A thread that pictures were seen in, whether it is archived by now or not.

    Attributes:
        thread_id: The thread.
        parent_id: The channel it belongs to.
        private: Whether only its members may read it.
    """

    thread_id: str
    parent_id: str
    private: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How much lies in the queue.

    Attributes:
        waiting: Pictures to be indexed.
        backfill: Those of them that are old posts.
        set_aside: Pictures that failed for good.
        deletions: Deletions to be carried out.
    """

    waiting: int
    set_aside: int
    deletions: int
    backfill: int = 0


class Queue:
    """The queue in one SQLite file. A context manager; times are seconds since the epoch."""

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            StateError: It cannot be used.
        """
        self.db = open_state(path)
        self._last_guild = dict.fromkeys(Lane, "")

    def add(self, sightings: Iterable[Sighting], *, now_s: float, lane: Lane = Lane.LIVE) -> None:
        """Writes down what was seen. A picture that waits already keeps its place.

        What is indexed already is looked at again, which costs little; whether it is hidden as a
        spoiler may have changed.
        """
        with self.db:
            for sighting in sightings:
                known = {
                    name: getattr(sighting, name)
                    for name in ("message_id", "attachment_id", "guild_id", "channel_id", "user_id")
                }
                self.db.execute(
                    _ADD,
                    known
                    | {
                        "spoiler": int(sighting.spoiler),
                        "body": json.dumps(asdict(sighting)),
                        "lane": int(lane),
                        "due_at_s": now_s,
                    },
                )
                if sighting.parent_id:
                    self.db.execute(
                        "INSERT OR REPLACE INTO threads VALUES (?, ?, ?, ?)",
                        (
                            sighting.channel_id,
                            sighting.guild_id,
                            sighting.parent_id,
                            sighting.private_thread,
                        ),
                    )

    def due(self, *, now_s: float, limit: int) -> list[Queued]:
        """The pictures to work on now: new posts first, the guilds in turn. They stay until `done`.

        Within a guild it is the longest due that comes first.
        """
        live = self._in_turn(Lane.LIVE, now_s, limit)
        room = max(limit - len(live), limit // _SHARE_OF_BACKFILL)
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
            guild_id = self._one(
                "SELECT guild_id FROM sightings WHERE state = 'waiting' AND lane = ? "  # noqa: S608 (constants)
                f"{condition} ORDER BY guild_id LIMIT 1",
                values,
            )
            if guild_id is None:
                return found
            found.append(guild_id)
            condition = "AND guild_id > ?"

    def _line(self, lane: Lane, guild_id: str, now_s: float, limit: int) -> list[Queued]:
        rows = self.db.execute(
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

    def next_due_at_s(self) -> float | None:
        """When the next picture falls due; None if none waits."""
        due_at_s: float | None = self._one(
            "SELECT min(due_at_s) FROM sightings WHERE state = 'waiting'"
        )
        return due_at_s

    def still_here(self, keys: Iterable[PictureKey]) -> set[PictureKey]:
        """Those of the keys that were not deleted meanwhile."""
        return {
            key
            for key in keys
            if self._one(
                "SELECT 1 FROM sightings WHERE message_id = ? AND attachment_id = ?"
                " AND state = 'waiting'",
                (key.message_id, key.attachment_id),
            )
        }

    def done(self, sightings: Iterable[Sighting]) -> None:
        """Notes what is in the archive now. What has changed since it was due, stays."""
        with self.db:
            self.db.executemany(
                "UPDATE sightings SET state = 'indexed', anew = 0, reason = '', body = ''"
                " WHERE message_id = ? AND attachment_id = ? AND spoiler = ?",
                [(one.message_id, one.attachment_id, int(one.spoiler)) for one in sightings],
            )

    def drop(self, keys: Iterable[PictureKey]) -> None:
        """Takes out what is no longer there."""
        with self.db:
            self.db.executemany(
                "DELETE FROM sightings WHERE message_id = ? AND attachment_id = ?",
                [(key.message_id, key.attachment_id) for key in keys],
            )

    def pictures_of(self, message_id: str) -> set[str]:
        """The attachment ids that are known of a message, in whatever state."""
        return {
            attachment_id
            for (attachment_id,) in self.db.execute(
                "SELECT attachment_id FROM sightings WHERE message_id = ?", (message_id,)
            )
        }

    def known_in(self, channel_id: str) -> dict[int, dict[str, bool]]:
        """What is known of a channel: per message its pictures, and whether they are spoilers."""
        known: dict[int, dict[str, bool]] = {}
        rows = self.db.execute(
            "SELECT message_id, attachment_id, spoiler FROM sightings WHERE channel_id = ?",
            (channel_id,),
        )
        for message_id, attachment_id, spoiler in rows:
            known.setdefault(int(message_id), {})[attachment_id] = bool(spoiler)
        return known

    def channels_of(self, guild_id: str) -> list[str]:
        """The channels and threads of a guild that pictures were seen in."""
        rows = self.db.execute(
            "SELECT DISTINCT channel_id FROM sightings WHERE guild_id = ?", (guild_id,)
        )
        return [channel_id for (channel_id,) in rows]

    def waiting(self, guild_id: str, lane: Lane) -> int:
        """How many pictures of a guild wait in a lane."""
        return int(
            self._one(
                "SELECT count(*) FROM sightings WHERE state = 'waiting' AND lane = ?"
                " AND guild_id = ?",
                (int(lane), guild_id),
            )
        )

    def retry(self, key: PictureKey, *, reason: str, due_at_s: float) -> None:
        """Counts a failure and puts the picture off."""
        with self.db:
            self.db.execute(
                "UPDATE sightings SET attempts = attempts + 1, reason = ?, due_at_s = ?"
                " WHERE message_id = ? AND attachment_id = ?",
                (reason, due_at_s, key.message_id, key.attachment_id),
            )

    def set_aside(self, key: PictureKey, *, reason: str) -> None:
        """Gives a picture up, and keeps it with the reason."""
        with self.db:
            self.db.execute(
                "UPDATE sightings SET attempts = attempts + 1, reason = ?, state = 'set aside'"
                " WHERE message_id = ? AND attachment_id = ?",
                (reason, key.message_id, key.attachment_id),
            )

    def set_aside_list(
        self, guild_id: str | None = None, *, limit: int = 100, offset: int = 0
    ) -> list[SetAside]:
        """What was given up, latest first; of one guild or of all."""
        rows = self.db.execute(
            "SELECT body, reason FROM sightings WHERE state = 'set aside'"
            " AND guild_id = ifnull(?, guild_id) ORDER BY due_at_s DESC, rowid LIMIT ? OFFSET ?",
            (guild_id, limit, offset),
        )
        return [
            SetAside(sighting=Sighting(**json.loads(body)), reason=reason) for body, reason in rows
        ]

    def set_aside_count(self, guild_id: str) -> int:
        """How many pictures of a guild were given up."""
        return int(
            self._one(
                "SELECT count(*) FROM sightings WHERE state = 'set aside' AND guild_id = ?",
                (guild_id,),
            )
        )

    def retry_set_aside(self, guild_id: str, *, now_s: float) -> int:
        """Puts what was given up of a guild back, behind its new posts, and says how much."""
        with self.db:
            self.db.execute(
                "UPDATE sightings SET state = 'waiting', attempts = 0, lane = ?, due_at_s = ?"
                " WHERE state = 'set aside' AND guild_id = ?",
                (int(Lane.BACKFILL), now_s, guild_id),
            )
        return self.db.changes()

    def delete(self, selection: Selection) -> None:
        """Drops what matches from the queue and writes the deletion down for the archive.

        Raises:
            ValueError: No field of the selection is set.
        """
        fields = {
            name: sorted(value) if isinstance(value, frozenset) else value
            for name, value in asdict(selection).items()
            if value is not None
        }
        if not fields:
            raise ValueError("An empty selection would delete everything.")
        where = " AND ".join(_CONDITIONS[name] for name in fields)
        values = [json.dumps(v) if isinstance(v, list) else v for v in fields.values()]
        with self.db:
            self.db.execute(f"DELETE FROM sightings WHERE {where}", values)  # noqa: S608 (constants)
            if fields.keys() <= {"guild_id", "channel_id"}:
                self.db.execute(f"DELETE FROM threads WHERE {where}", values)  # noqa: S608 (constants)
            self.db.execute("INSERT INTO deletions (selection) VALUES (?)", (json.dumps(fields),))

    def deletions(self) -> list[tuple[int, Selection]]:
        """The deletions to be carried out in the archive, oldest first, with their ids."""
        rows = self.db.execute("SELECT id, selection FROM deletions ORDER BY id")
        return [(number, _selection(json.loads(text))) for number, text in rows]

    def deletion_done(self, number: int) -> None:
        """Takes out a deletion that the archive has carried out."""
        with self.db:
            self.db.execute("DELETE FROM deletions WHERE id = ?", (number,))

    def threads(self, guild_id: str) -> list[KnownThread]:
        """The threads of a guild that pictures were seen in."""
        rows = self.db.execute(
            "SELECT channel_id, parent_id, private FROM threads WHERE guild_id = ?", (guild_id,)
        )
        return [
            KnownThread(thread_id=thread_id, parent_id=parent_id, private=bool(private))
            for thread_id, parent_id, private in rows
        ]

    def notice(self, message_id: str, guild_id: str) -> bool:
        """Notes that a message gets its notice now; False if it has had one."""
        with self.db:
            self.db.execute("INSERT OR IGNORE INTO notices VALUES (?, ?)", (message_id, guild_id))
        return self.db.changes() == 1

    def forget_guild(self, guild_id: str) -> None:
        """Drops everything that is known about a guild, and writes the deletion down."""
        with self.db:
            self.delete(Selection(guild_id=guild_id))
            for table in OF_A_GUILD:
                self.db.execute(f"DELETE FROM {table} WHERE guild_id = ?", (guild_id,))  # noqa: S608 (constants)

    def depth(self) -> Depth:
        """Counts what lies in the queue."""
        return Depth(
            waiting=self._one("SELECT count(*) FROM sightings WHERE state = 'waiting'"),
            set_aside=self._one("SELECT count(*) FROM sightings WHERE state = 'set aside'"),
            deletions=self._one("SELECT count(*) FROM deletions"),
            backfill=self._one(
                "SELECT count(*) FROM sightings WHERE state = 'waiting' AND lane = ?",
                (int(Lane.BACKFILL),),
            ),
        )

    def _one(self, sql: str, values: tuple[Any, ...] = ()) -> Any:
        row = self.db.execute(sql, values).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        """Closes the file."""
        self.db.close()

    def __enter__(self) -> Self:
        """Returns the queue, which is open since it was made."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file."""
        self.close()


def _selection(fields: dict[str, Any]) -> Selection:
    sets = {name: frozenset(value) for name, value in fields.items() if isinstance(value, list)}
    return Selection(**{**fields, **sets})
