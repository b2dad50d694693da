"""What the archive's commands print: progress, matches, counts. For people, or as JSON."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bot.archive.port import Match, Stats
from bot.archive.verifying import Verified
from bot.index import Indexer
from bot.search import Verdict

_COLOURS = {Verdict.SAME: "green", Verdict.SIMILAR: "yellow", Verdict.NOTHING: "dim"}
# Without a terminal there is no width to fit into, and a cut link is of no use.
_WIDE = 400
_MOST_NAMES = 10


def plain(text: str) -> str:
    """Text from strangers without what steers a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def plain_lines(text: str) -> str:
    """Like `plain`, but lines stay lines."""
    return "\n".join(map(plain, text.split("\n")))


def console(*, err: bool = False) -> Console:
    """A console that never cuts lines where nobody looks at a screen."""
    stream = sys.stderr if err else sys.stdout
    return Console(stderr=err, width=None if stream.isatty() else _WIDE, highlight=False)


def print_indexed(run: Indexer, *, archive: str, stopped: bool = False) -> None:
    """What a run has done, and what it could not use."""
    progress = run.progress
    parts = [f"{progress.stored} stored"]
    if progress.stored > progress.embedded:
        known = progress.stored - progress.embedded
        parts[0] += f" ({known} of them copies of embedded files)"
    if progress.known:
        parts.append(f"{progress.known} there already")
    if progress.set_aside:
        parts.append(f"{progress.set_aside} set aside")
    out = console()
    summary = f"{', '.join(parts)}. The archive is {plain(archive)}."
    if stopped:
        summary = f"Stopped: {summary} The same command goes on from here."
    out.print(Text(summary))
    reasons: dict[str, list[str]] = defaultdict(list)
    for aside in run.set_aside:
        reasons[aside.reason].append(aside.name)
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        out.print(Text(f"\nSet aside ({len(names)}): {plain(reason)}", style="yellow"))
        # A screen is read at a glance; what is written to a file is complete.
        most = _MOST_NAMES if out.is_terminal else len(names)
        for name in names[:most]:
            out.print(Text(f"  {plain(name)}"))
        if len(names) > most:
            out.print(Text(f"  and {len(names) - most} more: add `> list.txt` for all of them"))


def print_other_model(*, current: str, served: str) -> None:
    """That what was indexed is not all in one search."""
    sentence = (
        f"The other pictures have vectors of {current}, and these have vectors of {served}: no "
        f"search finds both. `mapseek archive reembed` gives all of them vectors of {served}."
    )
    console().print(Text(f"\n{plain(sentence)}", style="yellow"))


def print_matches(matches: Sequence[Match], verdicts: Sequence[Verdict | None]) -> None:
    """The matches as a table, best first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    judged = any(verdicts)
    if judged:
        table.add_column("verdict", no_wrap=True)
    for name in ("author", "date", "link"):
        table.add_column(name, overflow="fold")
    for rank, (match, verdict) in enumerate(zip(matches, verdicts, strict=True), 1):
        picture = match.picture
        row = [Text(str(rank)), Text(f"{match.score:.3f}")]
        if judged:
            row.append(Text(verdict or "", style=_COLOURS[verdict] if verdict else ""))
        row += [
            Text(plain(picture.author) or "-"),
            Text(f"{picture.posted_at:%Y-%m-%d}"),
            Text(plain(picture.message_link)),
        ]
        table.add_row(*row)
    console().print(table)


def print_sheet(path: Path) -> None:
    """Where the sheet lies."""
    console().print(Text(f"\nSide by side: {plain(str(path))}", style="dim"))


def print_stats(stats: Stats, *, archive: str) -> None:
    """What the archive holds."""
    out = console()
    newest = f", the newest of {stats.newest:%Y-%m-%d}" if stats.newest else ""
    size = f", {stats.size_bytes / 1e6:,.1f} MB" if stats.size_bytes is not None else ""
    out.print(Text(f"{plain(archive)}: {stats.pictures} pictures{newest}{size}"))
    if not stats.pictures:
        out.print("Put some in with [cyan]mapseek index PATH[/].")
        return
    _print_counts("model", {(model,): count for model, count in stats.by_model.items()})
    guilds: Counter[tuple[str, ...]] = Counter()
    channels: dict[tuple[str, ...], int] = {}
    for (guild, channel), count in stats.by_channel.items():
        guilds[guild or "(direct messages)",] += count
        channels[channel, stats.channel_names.get((guild, channel), "")] = count
    _print_counts("guild", guilds)
    _print_counts("channel", channels, "name")


def _print_counts(title: str, counts: dict[tuple[str, ...], int], *more: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("pictures", justify="right")
    for name in (title, *more):
        table.add_column(name, overflow="fold")
    for cells, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(str(count), *(Text(plain(cell)) for cell in cells))
    out = console()
    out.print()
    out.print(table)


def print_read(entries: int) -> None:
    """How far `mapseek archive verify` is."""
    console(err=True).print(f"{entries} entries read.")


def print_verified(found: Verified, *, archive: str) -> None:
    """What `mapseek archive verify` found."""
    out = console()
    for problem in found.problems:
        out.print(Text(f"problem: {plain(problem)}", style="red"))
    out.print(
        Text(
            f"{plain(archive)}: {found.entries} entries read, {found.searched} of them looked for, "
            f"{len(found.problems)} problems."
        )
    )


def print_json(value: Any) -> None:
    """A value for scripts."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def match_json(rank: int, match: Match, verdict: Verdict | None) -> dict[str, Any]:
    """A match for scripts."""
    picture = match.picture
    return {
        "rank": rank,
        "score": round(match.score, 6),
        "verdict": verdict,
        "link": picture.message_link,
        "image": picture.image_url,
        "author": picture.author,
        "user_id": picture.user_id,
        "posted_at": picture.posted_at.isoformat(),
        "guild_id": picture.guild_id,
        "channel_id": picture.channel_id,
        "channel": picture.channel,
        "message_id": picture.key.message_id,
        "attachment_id": picture.key.attachment_id,
        "width": picture.width,
        "height": picture.height,
        "spoiler": picture.spoiler,
    }


def stats_json(stats: Stats) -> dict[str, Any]:
    """The counts for scripts."""
    return {
        "pictures": stats.pictures,
        "by_model": stats.by_model,
        "by_channel": [
            {
                "guild_id": guild,
                "channel_id": channel,
                "channel": stats.channel_names.get((guild, channel), ""),
                "pictures": count,
            }
            for (guild, channel), count in stats.by_channel.items()
        ],
        "newest": stats.newest.isoformat() if stats.newest else None,
        "size_bytes": stats.size_bytes,
    }
