"""Which old posts an admin asked for, and how far that has come: one job per channel or thread.

Uses the connection of the bot's file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import apsw

from bot.ingest.history import Place


class State(StrEnum):
    """How a job stands."""

    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A channel or thread whose history is read, from its end to its beginning.

    Attributes:
        place: Where.
        state: How it stands.
        threads_listed: Whether its threads have got their own jobs.
        newest_id: Where it began: later messages come by themselves.
        before_id: Everything from here on has been taken in.
        messages: How many messages that was.
        pictures: How many pictures were in them.
        reason: Why it failed.
    """

    place: Place
    state: State
    threads_listed: bool
    newest_id: int
    before_id: int
    messages: int
    pictures: int
    reason: str

    @property
    def share(self) -> float:
        """Which share of the channel's time has been read, 0 to 1."""
        if self.state is not State.WAITING:
            return 1.0
        span = self.newest_id - int(self.place.channel_id)
        return min(1.0, (self.newest_id - self.before_id) / span) if span > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Where the progress of a guild is shown.

    Attributes:
        channel_id: The channel.
        message_id: The message in it.
    """

    channel_id: str
    message_id: str


_COLUMNS = (
    "channel_id, guild_id, name, parent_id, private, state, threads_listed, newest_id, before_id,"
    " messages, pictures, reason"
)


class Jobs:
    """Keeps the jobs of all guilds."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db

    def add(
        self, places: Iterable[Place], *, newest_id: int, threads_listed: bool, again: bool
    ) -> None:
        """Adds jobs. One that is at work goes on; with `again`, one that ended begins anew."""
        with self._db:
            for place in places:
                if again:
                    self._db.execute(
                        "DELETE FROM backfills WHERE channel_id = ? AND state <> 'waiting'",
                        (place.channel_id,),
                    )
                self._db.execute(
                    "INSERT INTO backfills (channel_id, guild_id, name, parent_id, private, state,"
                    " threads_listed, newest_id, before_id) VALUES (?, ?, ?, ?, ?, 'waiting', ?, ?,"
                    " ?) ON CONFLICT DO NOTHING",
                    (
                        place.channel_id,
                        place.guild_id,
                        place.name,
                        place.parent_id,
                        place.private,
                        threads_listed,
                        newest_id,
                        newest_id,
                    ),
                )

    def clear_ended(self, guild_id: str) -> None:
        """Drops the jobs of a guild if none of them is at work, so that counting begins anew."""
        if self.next(guild_id) is None:
            with self._db:
                self._db.execute("DELETE FROM backfills WHERE guild_id = ?", (guild_id,))

    def next(self, guild_id: str) -> Job | None:
        """The job to go on with."""
        jobs = self._select("guild_id = ? AND state = 'waiting' ORDER BY rowid LIMIT 1", guild_id)
        return jobs[0] if jobs else None

    def of(self, guild_id: str) -> list[Job]:
        """All jobs of a guild, in their order."""
        return self._select("guild_id = ? ORDER BY rowid", guild_id)

    def guilds(self) -> list[str]:
        """The guilds that have work to do and are not paused."""
        rows = self._db.execute(
            "SELECT DISTINCT guild_id FROM backfills WHERE state = 'waiting' AND guild_id NOT IN"
            " (SELECT guild_id FROM runs WHERE paused)"
        )
        return [guild_id for (guild_id,) in rows]

    def advance(self, channel_id: str, *, before_id: int, messages: int, pictures: int) -> None:
        """Notes that a page was taken in."""
        self._update(
            "before_id = ?, messages = messages + ?, pictures = pictures + ?",
            (before_id, messages, pictures),
            channel_id,
        )

    def threads_listed(self, channel_id: str) -> None:
        """Notes that a channel's threads have their jobs."""
        self._update("threads_listed = 1", (), channel_id)

    def finish(self, channel_id: str) -> None:
        """Notes that a channel is read to its beginning."""
        self._update("state = 'done'", (), channel_id)

    def fail(self, channel_id: str, reason: str) -> None:
        """Gives a channel up."""
        self._update("state = 'failed', reason = ?", (reason,), channel_id)

    def drop(self, channel_id: str) -> None:
        """Takes a channel out."""
        with self._db:
            self._db.execute(
                "DELETE FROM backfills WHERE channel_id = ? OR parent_id = ?",
                (channel_id, channel_id),
            )

    def paused(self, guild_id: str) -> bool:
        """Whether an admin has stopped the jobs of a guild for now."""
        row = self._db.execute("SELECT paused FROM runs WHERE guild_id = ?", (guild_id,)).fetchone()
        return bool(row and row[0])

    def pause(self, guild_id: str, *, paused: bool) -> None:
        """Stops the jobs of a guild, or lets them go on."""
        with self._db:
            self._db.execute(
                "INSERT INTO runs (guild_id, paused) VALUES (?, ?)"
                " ON CONFLICT DO UPDATE SET paused = excluded.paused",
                (guild_id, paused),
            )

    def report(self, guild_id: str) -> Report | None:
        """Where the progress is shown."""
        row = self._db.execute(
            "SELECT report_channel_id, report_message_id FROM runs WHERE guild_id = ?", (guild_id,)
        ).fetchone()
        return Report(channel_id=row[0], message_id=row[1]) if row and row[1] else None

    def report_in(self, guild_id: str, report: Report | None) -> None:
        """Sets where the progress is shown; None for nowhere."""
        with self._db:
            self._db.execute(
                "INSERT INTO runs (guild_id, paused, report_channel_id, report_message_id)"
                " VALUES (?, 0, ?, ?) ON CONFLICT DO UPDATE SET"
                " report_channel_id = excluded.report_channel_id,"
                " report_message_id = excluded.report_message_id",
                (
                    guild_id,
                    report.channel_id if report else "",
                    report.message_id if report else "",
                ),
            )

    def reported_guilds(self) -> list[str]:
        """The guilds whose progress is shown somewhere."""
        rows = self._db.execute("SELECT guild_id FROM runs WHERE report_message_id <> ''")
        return [guild_id for (guild_id,) in rows]

    def _select(self, condition: str, value: str) -> list[Job]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM backfills WHERE {condition}", (value,))  # noqa: S608 (constants)
        return [
            Job(
                place=Place(
                    channel_id=channel_id,
                    guild_id=guild_id,
                    name=name,
                    parent_id=parent_id,
                    private=bool(private),
                ),
                state=State(state),
                threads_listed=bool(listed),
                newest_id=newest_id,
                before_id=before_id,
                messages=messages,
                pictures=pictures,
                reason=reason,
            )
            for channel_id, guild_id, name, parent_id, private, state, listed, newest_id, before_id,
            messages, pictures, reason in rows
        ]  # fmt: skip

    def _update(self, changes: str, values: tuple[int | str, ...], channel_id: str) -> None:
        with self._db:
            self._db.execute(
                f"UPDATE backfills SET {changes} WHERE channel_id = ?",  # noqa: S608 (constants)
                (*values, channel_id),
            )
