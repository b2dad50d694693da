"""Sentences for admins, in Discord's markdown."""

from collections.abc import Iterable, Mapping, Sequence

from disnake.utils import escape_markdown

from bot.admin.preferences import Chosen
from bot.ingest.backfill import Progress
from bot.ingest.jobs import State
from bot.ingest.queued import SetAside

_MOST_LINES = 8
_LONGEST_REASON = 120
_MINUTE_S = 60
_HOUR_S = 3600


def progress(now: Progress) -> str:
    """How far a backfill is, in a few lines."""
    if not now.jobs:
        return "Nothing is being indexed. `/index start` begins with what was posted so far."
    left = [job for job in now.jobs if job.state is State.WAITING]
    failed = [job for job in now.jobs if job.state is State.FAILED]
    if now.paused and left:
        head = "**Indexing is paused.** `/index resume` goes on."
    elif left:
        head = f"**Indexing** <#{left[0].place.channel_id}>"
    elif now.waiting:
        head = "**Indexing the last pictures.**"
    else:
        head = "**Everything is indexed.**"
    lines = [
        head,
        (
            f"{len(now.jobs) - len(left):,} of {len(now.jobs):,} channels and threads · "
            f"{now.messages:,} messages read · {now.pictures:,} pictures found, "
            f"{now.waiting:,} of them waiting"
        ),
    ]
    if left and not now.paused and now.messages_per_s is not None:
        speed = f"{now.messages_per_s:,.0f} messages/s"
        lines.append(speed + (f" · about {duration(now.left_s)} left" if now.left_s else ""))
    if now.set_aside:
        lines.append(f"{now.set_aside:,} pictures failed: see `/index failed`.")
    lines += shortened(f"<#{job.place.channel_id}> was left out: {job.reason}" for job in failed)
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time that is only roughly known."""
    if seconds < _MINUTE_S:
        return "a minute"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} minutes"
    return f"{seconds / _HOUR_S:.1f} hours"


def not_readable(missing: Mapping[str, Sequence[str]]) -> list[str]:
    """What the bot lacks, by channel id: a line for each lack."""
    by_lack: dict[str, list[str]] = {}
    for channel_id, permissions in missing.items():
        by_lack.setdefault(" and ".join(permissions), []).append(f"<#{channel_id}>")
    return [
        f"The bot lacks **{lack}** in {', '.join(shortened(channels))}."
        for lack, channels in by_lack.items()
    ]


def chosen(choices: Chosen) -> str:
    """A guild's choices."""
    rest = "every channel that the bot can read" if choices.watch_all else "no channel"
    lines = [
        f"**Watched for new pictures:** {rest}"
        + _listed(", and", choices.watched if not choices.watch_all else ())
        + _listed(", but not", choices.unwatched if choices.watch_all else ()),
        f"**Posts of other bots and webhooks:** {'indexed' if choices.take_bots else 'left out'}",
        "**Reposts are pointed out in:** "
        + (", ".join(shortened(_channels(choices.reposts))) or "no channel"),
    ]
    return "\n".join(lines)


def set_aside(entries: Sequence[SetAside], total: int, *, page: int, size: int) -> str:
    """The pictures that failed, and why; one page of them."""
    if not total:
        return "No picture has failed."
    pages = -(-total // size)
    lines = [f"**{total:,} pictures could not be indexed** (page {page} of {pages}):"]
    lines += [
        f"{one.sighting.message_link} {escape_markdown(one.reason)[:_LONGEST_REASON]}"
        for one in entries
    ]
    return "\n".join([*lines, "`/index retry` tries all of them again."])


def counts(by_channel: dict[str, int], *, most: int) -> str:
    """How many pictures can be found, by channel."""
    if not by_channel:
        return "No picture can be found yet in the channels that you can read."
    largest = sorted(by_channel.items(), key=lambda item: -item[1])
    lines = [
        f"**{sum(by_channel.values()):,} pictures can be found in channels that you can read:**"
    ]
    lines += [f"<#{channel_id}>: {count:,}" for channel_id, count in largest[:most]]
    if len(largest) > most:
        rest = sum(count for _, count in largest[most:])
        lines.append(f"and {rest:,} in {len(largest) - most:,} more")
    return "\n".join(lines)


def shortened(lines: Iterable[str]) -> list[str]:
    """The first few, and how many more there are."""
    everything = list(lines)
    more = len(everything) - _MOST_LINES
    return everything[:_MOST_LINES] + ([f"and {more:,} more"] if more > 0 else [])


def _listed(words: str, channels: Iterable[str]) -> str:
    names = shortened(_channels(channels))
    return f"{words} {', '.join(names)}" if names else ""


def _channels(ids: Iterable[str]) -> list[str]:
    return [f"<#{channel_id}>" for channel_id in sorted(ids)]
