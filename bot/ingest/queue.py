"""The durable queue: what was seen is written down before it is worked on.

It holds the pictures still to be indexed, those that failed for good (set aside, with the reason),
which are in the archive, the deletions still to be carried out there, and which channel each seen
thread belongs to. See `bot.ingest.state` for the file.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bot.archive.port import PictureKey, Selection
from bot.ingest.queued import Depth, KnownThread, Lane, Queued, SetAside
from bot.ingest.state import OF_A_GUILD, open_state
from bot.ingest.turns import Turns
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


class Queue:
    """The queue in one SQLite file. A context manager; times are seconds since the epoch."""

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            StateError: It cannot be used.
        """
        self.db = open_state(path)
        self._turns = Turns(self.db)

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
        """The pictures to work on now, see `Turns`. They stay until `done`."""
        return self._turns.due(now_s=now_s, limit=limit)

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
