"""The durable queue: what was seen is written down before it is worked on.

One SQLite file holds the pictures still to be indexed, the pictures that failed for good (set
aside, with the reason), the deletions still to be carried out in the archive, and which channel
each seen thread belongs to. Every method is one transaction, on disk when the method returns, and
takes well under a millisecond of work, so the bot's event loop calls it directly.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import apsw

from bot.archive.port import PictureKey, Selection
from bot.pictures import Sighting

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sightings (
    message_id TEXT NOT NULL,
    attachment_id TEXT NOT NULL,
    guild_id TEXT NOT NULL,
    channel_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    body TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at_s REAL NOT NULL,
    set_aside INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (message_id, attachment_id)
);
CREATE INDEX IF NOT EXISTS sightings_due ON sightings (due_at_s) WHERE NOT set_aside;
CREATE TABLE IF NOT EXISTS deletions (id INTEGER PRIMARY KEY, selection TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS threads (
    channel_id TEXT PRIMARY KEY,
    guild_id TEXT NOT NULL,
    parent_id TEXT NOT NULL,
    private INTEGER NOT NULL
);
PRAGMA user_version = 1;
"""
_VERSION = 1

# How each field of a Selection is said in SQL; sets travel as JSON lists.
_CONDITIONS = {
    "guild_id": "guild_id = ?",
    "channel_id": "channel_id = ?",
    "user_id": "user_id = ?",
    "message_ids": "message_id IN (SELECT value FROM json_each(?))",
    "attachment_ids": "attachment_id IN (SELECT value FROM json_each(?))",
}


class QueueError(Exception):
    """The queue file cannot be used. The message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A picture that waits to be indexed.

    Attributes:
        sighting: What was seen.
        attempts: How often it has failed so far.
    """

    sighting: Sighting
    attempts: int


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
        set_aside: Pictures that failed for good.
        deletions: Deletions to be carried out.
    """

    waiting: int
    set_aside: int
    deletions: int


class Queue:
    """The queue in one SQLite file. A context manager; times are seconds since the epoch."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = apsw.Connection(str(path))
        except (OSError, apsw.Error) as error:
            raise QueueError(f"The queue {path} cannot be opened: {error}.") from error
        try:
            self._prepare(path)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, path: Path) -> None:
        try:
            self._db.set_busy_timeout(5_000)
            # Committed means on disk, past a power cut: posts are rare and commits are small.
            self._db.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
            version = self._one("PRAGMA user_version")
            if version not in (0, _VERSION):
                raise QueueError(
                    f"The queue {path} was written by another version of mapseek (format "
                    f"{version}, this one writes {_VERSION}). Use that version or another file."
                )
            if version == 0:
                self._db.execute(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT")
        except apsw.Error as error:
            raise QueueError(f"The queue {path} is no usable SQLite file: {error}.") from error

    def add(self, sightings: Iterable[Sighting], *, now_s: float) -> None:
        """Writes down what was seen. A picture that is already here keeps its place."""
        with self._db:
            for sighting in sightings:
                self._db.execute(
                    "INSERT INTO sightings (message_id, attachment_id, guild_id, channel_id,"
                    " user_id, body, due_at_s) VALUES (?, ?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET body = excluded.body",
                    (
                        sighting.message_id,
                        sighting.attachment_id,
                        sighting.guild_id,
                        sighting.channel_id,
                        sighting.user_id,
                        json.dumps(asdict(sighting)),
                        now_s,
                    ),
                )
                if sighting.parent_id:
                    self._db.execute(
                        "INSERT OR REPLACE INTO threads VALUES (?, ?, ?, ?)",
                        (
                            sighting.channel_id,
                            sighting.guild_id,
                            sighting.parent_id,
                            sighting.private_thread,
                        ),
                    )

    def due(self, *, now_s: float, limit: int) -> list[Queued]:
        """The pictures to work on now, longest due first. They stay until `done`."""
        rows = self._db.execute(
            "SELECT body, attempts FROM sightings WHERE NOT set_aside AND due_at_s <= ?"
            " ORDER BY due_at_s, rowid LIMIT ?",
            (now_s, limit),
        )
        return [
            Queued(sighting=Sighting(**json.loads(body)), attempts=attempts)
            for body, attempts in rows
        ]

    def next_due_at_s(self) -> float | None:
        """When the next picture falls due; None if none waits."""
        due_at_s: float | None = self._one(
            "SELECT min(due_at_s) FROM sightings WHERE NOT set_aside"
        )
        return due_at_s

    def still_here(self, keys: Iterable[PictureKey]) -> set[PictureKey]:
        """Those of the keys that were not deleted meanwhile."""
        return {
            key
            for key in keys
            if self._one(
                "SELECT 1 FROM sightings WHERE message_id = ? AND attachment_id = ?",
                (key.message_id, key.attachment_id),
            )
        }

    def done(self, keys: Iterable[PictureKey]) -> None:
        """Takes out what is in the archive now."""
        with self._db:
            self._db.executemany(
                "DELETE FROM sightings WHERE message_id = ? AND attachment_id = ?",
                [(key.message_id, key.attachment_id) for key in keys],
            )

    def retry(self, key: PictureKey, *, reason: str, due_at_s: float) -> None:
        """Counts a failure and puts the picture off."""
        with self._db:
            self._db.execute(
                "UPDATE sightings SET attempts = attempts + 1, reason = ?, due_at_s = ?"
                " WHERE message_id = ? AND attachment_id = ?",
                (reason, due_at_s, key.message_id, key.attachment_id),
            )

    def set_aside(self, key: PictureKey, *, reason: str) -> None:
        """Gives a picture up, and keeps it with the reason."""
        with self._db:
            self._db.execute(
                "UPDATE sightings SET attempts = attempts + 1, reason = ?, set_aside = 1"
                " WHERE message_id = ? AND attachment_id = ?",
                (reason, key.message_id, key.attachment_id),
            )

    def set_aside_list(self, *, limit: int = 100) -> list[SetAside]:
        """What was given up, latest first."""
        rows = self._db.execute(
            "SELECT body, reason FROM sightings WHERE set_aside ORDER BY due_at_s DESC LIMIT ?",
            (limit,),
        )
        return [
            SetAside(sighting=Sighting(**json.loads(body)), reason=reason) for body, reason in rows
        ]

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
        with self._db:
            self._db.execute(f"DELETE FROM sightings WHERE {where}", values)  # noqa: S608 (constants)
            if fields.keys() <= {"guild_id", "channel_id"}:
                self._db.execute(f"DELETE FROM threads WHERE {where}", values)  # noqa: S608 (constants)
            self._db.execute("INSERT INTO deletions (selection) VALUES (?)", (json.dumps(fields),))

    def deletions(self) -> list[tuple[int, Selection]]:
        """The deletions to be carried out in the archive, oldest first, with their ids."""
        rows = self._db.execute("SELECT id, selection FROM deletions ORDER BY id")
        return [(number, _selection(json.loads(text))) for number, text in rows]

    def deletion_done(self, number: int) -> None:
        """Takes out a deletion that the archive has carried out."""
        with self._db:
            self._db.execute("DELETE FROM deletions WHERE id = ?", (number,))

    def threads(self, guild_id: str) -> list[KnownThread]:
        """The threads of a guild that pictures were seen in."""
        rows = self._db.execute(
            "SELECT channel_id, parent_id, private FROM threads WHERE guild_id = ?", (guild_id,)
        )
        return [
            KnownThread(thread_id=thread_id, parent_id=parent_id, private=bool(private))
            for thread_id, parent_id, private in rows
        ]

    def depth(self) -> Depth:
        """Counts what lies in the queue."""
        return Depth(
            waiting=self._one("SELECT count(*) FROM sightings WHERE NOT set_aside"),
            set_aside=self._one("SELECT count(*) FROM sightings WHERE set_aside"),
            deletions=self._one("SELECT count(*) FROM deletions"),
        )

    def _one(self, sql: str, values: tuple[Any, ...] = ()) -> Any:
        row = self._db.execute(sql, values).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

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
