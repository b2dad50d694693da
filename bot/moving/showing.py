"""What the commands that move an archive print of what came of it."""

import sys

from rich.text import Text

from bot.cli.console import console, plain
from bot.moving.copying import Copied
from bot.moving.files import Imported
from bot.moving.reembedding import Reembedder

_MOST_NAMES = 20


def print_copied(copied: Copied, source: str, target: str) -> None:
    """What a copy came to, and whether it was verified."""
    out = console()
    parts = [f"{copied.stored} copied", f"{copied.there} there already"]
    if copied.changed:
        parts.append(f"{copied.changed} that differed stored again")
    if copied.deleted:
        parts.append(f"{copied.deleted} pictures deleted that {source} does not have")
    out.print(Text(f"From {plain(source)} to {plain(target)}: {', '.join(parts)}."))
    if copied.verified:
        words = f"Verified: {copied.sums.source.count} entries, the same in both; checksum "
        out.print(Text(f"{words}{copied.sums.source}", style="green"))
    else:
        out.print(
            Text(
                f"Not verified: {copied.different} of {copied.sums.source.count} entries still "
                "differed at the last look. If something writes into one of the archives, stop it; "
                "then run the same command again.",
                style="red",
            )
        )
        for name, sums in ((source, copied.sums.source), (target, copied.sums.target)):
            out.print(Text(f"  {plain(name)}: {sums.count} entries, checksum {sums}"))
    for key, reason in list(copied.refused.items())[:_MOST_NAMES]:
        name = f"{key.message_id}/{key.attachment_id} of {key.model_id}"
        out.print(Text(f"  refused: {plain(name)}: {plain(reason)}"))
    left = copied.extra - copied.deleted
    if left > 0:
        out.print(
            Text(
                f"{plain(target)} has {left} entries that {plain(source)} has not: its own, or "
                "deleted there meanwhile. --delete deletes such pictures.",
                style="yellow",
            )
        )
        for key in copied.extra_keys:
            out.print(Text(f"  {plain(key.message_id)}/{plain(key.attachment_id)}"))


def print_imported(imported: Imported, archive: str, *, stopped: bool = False) -> None:
    """What an import came to, and the lines that were bad."""
    out = console()
    parts = [f"{imported.stored} stored"]
    if imported.there:
        parts.append(f"{imported.there} there already")
    if imported.bad:
        parts.append(f"{imported.bad} lines skipped")
    summary = f"{', '.join(parts)}. The archive is {plain(archive)}."
    if stopped:
        summary = f"Stopped: {summary} The same command goes on from here."
    out.print(Text(summary))
    most = _MOST_NAMES if out.is_terminal else len(imported.bad_lines)
    for line in imported.bad_lines[:most]:
        out.print(Text(f"  line {line.number}: {plain(line.reason)}", style="yellow"))
    if imported.bad > most:
        out.print(Text(f"  and {imported.bad - most} more"))


def print_reembedded(run: Reembedder, model_id: str, *, stopped: bool = False) -> None:
    """What a run has embedded, and what it could not."""
    out = console()
    progress = run.progress
    summary = f"{progress.stored} pictures have got a vector of {model_id}."
    if stopped:
        summary = f"Stopped: {summary} The same command goes on from here."
    out.print(Text(plain(summary)))
    for reason, count in run.reasons.most_common():
        out.print(Text(f"\nNot embedded ({count}): {plain(reason)}.", style="yellow"))
        names = [aside.name for aside in run.set_aside if aside.reason == reason]
        most = _MOST_NAMES if out.is_terminal else len(names)
        for name in names[:most]:
            out.print(Text(f"  {plain(name)}"))
        if count > min(most, len(names)):
            out.print(Text(f"  and {count - min(most, len(names))} more"))


def print_switch(old: str, new: str, *, switched: bool, server: str) -> None:
    """Which model searches use now, and what is left to do."""
    out = console()
    if not switched:
        out.print(
            Text(
                f"\nSearches stay on {old}. Run the command again when the others can be had, or "
                "add --leave-behind to go on without them: searches will then not find them.",
                style="red",
            )
        )
        return
    out.print(Text(f"\nSearches use {new} from now on.", style="green"))
    out.print(
        Text(
            f"Set MAPSEEK_SERVER={server} for the bot, if MAPSEEK_NEXT_SERVER does not name it "
            f"already. The vectors of {old} are kept: `mapseek archive drop {old}` deletes them, "
            f"`mapseek archive switch {old}` goes back."
        )
    )


def say(sentence: str) -> None:
    """One line on stderr."""
    sys.stderr.write(plain(sentence) + "\n")
