"""The bot's own file: what it must still know after a crash, beside the archive.

One SQLite file with one connection, which `queue`, `positions`, `jobs`, `forgotten` and
`bot.admin.preferences` share. Every method of theirs is one transaction, on disk when it returns,
and takes well under a millisecond of work, so the event loop calls it directly.
"""

from pathlib import Path

import apsw

from bot.archive.database import immediate, write_ahead

_SCHEMA = """
CREATE TABLE sightings (
    message_id TEXT NOT NULL,
    attachment_id TEXT NOT NULL,
    guild_id TEXT NOT NULL,
    channel_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    spoiler INTEGER NOT NULL,
    body TEXT NOT NULL,
    lane INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',
    anew INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at_s REAL NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (message_id, attachment_id)
);
CREATE INDEX sightings_due ON sightings (due_at_s) WHERE state = 'waiting';
CREATE INDEX sightings_turn ON sightings (lane, guild_id, due_at_s) WHERE state = 'waiting';
CREATE INDEX sightings_aside ON sightings (guild_id, due_at_s) WHERE state = 'set aside';
CREATE INDEX sightings_channel ON sightings (channel_id);
CREATE INDEX sightings_user ON sightings (user_id);
CREATE TABLE deletions (id INTEGER PRIMARY KEY, selection TEXT NOT NULL);
CREATE TABLE threads (
    channel_id TEXT PRIMARY KEY,
    guild_id TEXT NOT NULL,
    parent_id TEXT NOT NULL,
    private INTEGER NOT NULL
);
CREATE TABLE positions (
    channel_id TEXT PRIMARY KEY,
    guild_id TEXT NOT NULL,
    seen_id INTEGER NOT NULL
);
CREATE TABLE backfills (
    channel_id TEXT PRIMARY KEY,
    guild_id TEXT NOT NULL,
    name TEXT NOT NULL,
    parent_id TEXT NOT NULL,
    private INTEGER NOT NULL,
    state TEXT NOT NULL,
    threads_listed INTEGER NOT NULL,
    newest_id INTEGER NOT NULL,
    before_id INTEGER NOT NULL,
    messages INTEGER NOT NULL DEFAULT 0,
    pictures INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT ''
);
CREATE INDEX backfills_guild ON backfills (guild_id, state);
CREATE TABLE runs (
    guild_id TEXT PRIMARY KEY,
    paused INTEGER NOT NULL,
    report_channel_id TEXT NOT NULL DEFAULT '',
    report_message_id TEXT NOT NULL DEFAULT ''
);
CREATE TABLE guild_preferences (
    guild_id TEXT PRIMARY KEY,
    watch_all INTEGER NOT NULL DEFAULT 1,
    take_bots INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE channel_preferences (
    guild_id TEXT NOT NULL,
    channel_id TEXT NOT NULL,
    watched INTEGER,
    reposts INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (guild_id, channel_id)
);
CREATE TABLE forgotten (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    guild_id TEXT NOT NULL,
    until_id INTEGER NOT NULL,
    PRIMARY KEY (kind, id, guild_id)
);
CREATE TABLE notices (message_id TEXT PRIMARY KEY, guild_id TEXT NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = 2;
"""
_VERSION = 2

# The first format knew only what waits, in one lane.
_FROM_1 = f"""
DROP INDEX sightings_due;
ALTER TABLE sightings RENAME TO sightings_1;
ALTER TABLE deletions RENAME TO deletions_1;
ALTER TABLE threads RENAME TO threads_1;
{_SCHEMA}
INSERT INTO sightings (message_id, attachment_id, guild_id, channel_id, user_id, spoiler, body,
        lane, state, anew, attempts, due_at_s, reason)
    SELECT message_id, attachment_id, guild_id, channel_id, user_id, body ->> 'spoiler', body,
        0, iif(set_aside, 'set aside', 'waiting'), 0, attempts, due_at_s, reason FROM sightings_1;
INSERT INTO deletions SELECT * FROM deletions_1;
INSERT INTO threads SELECT * FROM threads_1;
DROP TABLE sightings_1;
DROP TABLE deletions_1;
DROP TABLE threads_1;
"""  # noqa: S608 (constants)

# How long to wait for others who have the file open.
_PATIENCE_S = 5.0

# Every table that holds something about a guild, but for what people want to be forgotten: the bot
# may be invited again.
OF_A_GUILD = (
    "threads",
    "positions",
    "backfills",
    "runs",
    "guild_preferences",
    "channel_preferences",
    "notices",
)


class StateError(Exception):
    """The file cannot be used. The message says what to change."""


def open_state(path: Path) -> apsw.Connection:
    """Opens the file, makes it where it is missing, and brings an older format up to date.

    Raises:
        StateError: It cannot be opened, is no such file, or of a newer mapseek.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = apsw.Connection(str(path))
    except (OSError, apsw.Error) as error:
        raise StateError(f"The queue {path} cannot be opened: {error}.") from error
    try:
        _prepare(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: apsw.Connection, path: Path) -> None:
    try:
        db.set_busy_timeout(int(1000 * _PATIENCE_S))
        write_ahead(db, _PATIENCE_S)
        # Committed means on disk, past a power cut: posts are rare and commits are small.
        db.execute("PRAGMA synchronous = FULL")
        with immediate(db):
            ((version,),) = db.execute("PRAGMA user_version")
            if version == 0:
                db.execute(_SCHEMA)
            elif version == 1:
                db.execute(_FROM_1)
            elif version != _VERSION:
                raise StateError(
                    f"The queue {path} was written by another version of mapseek (format "
                    f"{version}, this one writes {_VERSION}). Use that version or another file."
                )
    except apsw.Error as error:
        raise StateError(f"The queue {path} is no usable SQLite file: {error}.") from error
