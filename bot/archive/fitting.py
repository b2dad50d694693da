"""Which entries any archive can store, whatever database is under it.

What one database takes and another does not could never be copied between them, so all refuse the
same. Texts and numbers come from Discord and from files, and a bad one must not stop the others.
"""

from collections.abc import Iterable
from dataclasses import fields

from bot.archive.port import ArchiveError, Entry, EntryKey
from bot.archive.rows import in_utc

# In characters: what exported lines hold (docs/jsonl.md), and far below MongoDB's 16 MB a document.
MOST_TEXT = 10_000
# SQLite's integers and BSON's.
MOST_NUMBER = 2**63 - 1


def sort_out(entries: Iterable[Entry]) -> tuple[list[Entry], dict[EntryKey, str]]:
    """Those that can be stored, in their order, and why the others cannot."""
    fit: list[Entry] = []
    unfit: dict[EntryKey, str] = {}
    for entry in entries:
        if (reason := _why_unfit(entry)) is None:
            fit.append(entry)
        else:
            unfit[entry.key] = reason
    return fit, unfit


def _why_unfit(entry: Entry) -> str | None:
    picture = entry.picture
    values = {field.name: getattr(picture, field.name) for field in fields(picture)}
    values |= {field.name: getattr(entry.key, field.name) for field in fields(entry.key)}
    for name, value in values.items():
        match value:
            case str() if len(value) > MOST_TEXT:
                return f"its {name} has {len(value):,} characters, and {MOST_TEXT:,} are allowed"
            case str() if not _is_unicode(value):
                return f"its {name} holds half a character (a lone surrogate)"
            case int() if not 0 <= value <= MOST_NUMBER:
                return f"its {name} is {value}, and 0 to {MOST_NUMBER} is allowed"
    try:
        in_utc(picture.posted_at)
    except ArchiveError as error:
        return f"{error}".rstrip(".")
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
