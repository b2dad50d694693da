"""Puts answers into words, and into the buttons below them."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
import disnake
from disnake.ui import ActionRow, Button
from disnake.ui.select.string import StringSelect
from disnake.utils import escape_markdown, format_dt

from bot.answering.hits import Hit
from bot.answering.line import BusyError
from bot.answering.questions import Action, Press
from bot.archive.port import ArchiveError
from bot.fetch import FetchError, GoneError
from bot.links import message_link
from bot.pictures import Sighting
from bot.search import Verdict
from inference.errors import (
    DeadlineError,
    InvalidInputError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)

# Discord's limits.
_MOST_LETTERS = 2000
_MOST_BUTTONS = 5
_MOST_OPTIONS = 25
_LONGEST_NAME = 32

_LONGEST_WORDS = 100
_UNCALIBRATED = "-# What a similarity means was not measured for this model: judge by the pictures."
# Invisible: they keep a name that is written from right to left from turning the rest of its line.
_ISOLATE, _POP_ISOLATE = "\u2068", "\u2069"
_BREAK = "\u200b"
# Joined letters and emoji need these.
_JOINERS = "\u200c\u200d"
_MOST_MARKS = 2

Row = ActionRow[Any]


def answer_text(
    hits: Sequence[Hit],
    verdicts: Sequence[Verdict | None],
    *,
    page: int,
    first: int,
    words: str | None,
    shared_by: str | None,
) -> str:
    """What is said about the hits of one page: at most as long as Discord takes.

    Args:
        hits: What was found; at least one.
        verdicts: What their scores mean; None where that is not known.
        page: Which page, from 0.
        first: The number of its first hit.
        words: What was asked for; None for a picture.
        shared_by: Who shows this to everybody; None for an answer to one member.
    """
    lines = [_heading(verdicts[0], page, words)]
    if shared_by is not None:
        lines.insert(0, f"{plain(shared_by)} looked up a map:")
    for number, (hit, verdict) in enumerate(zip(hits, verdicts, strict=True), first):
        picture = hit.match.picture
        score = "" if words is not None else f"similarity {hit.match.score:.2f}"
        meaning = ", ".join(filter(None, (verdict, score)))
        by = f"by {plain(picture.author)}" if picture.author else ""
        where = f"{format_dt(picture.posted_at, 'D')} in <#{picture.channel_id}>"
        told = ", ".join(filter(None, (" ".join(filter(None, (meaning, by))), where)))
        line = f"**{number}.** {told}" + (" (spoiler)" if hit.spoiler else "")
        if len("\n".join([*lines, line])) <= _MOST_LETTERS - len(_UNCALIBRATED) - 1:
            lines.append(line)
    if verdicts[0] is None and words is None:
        lines.append(_UNCALIBRATED)
    return "\n".join(lines)


def _heading(best: Verdict | None, page: int, words: str | None) -> str:
    if words is not None:
        return f"**The maps that fit “{plain(words, _LONGEST_WORDS)}” best:**"
    if page:
        return "**Further maps:**"
    if best is Verdict.NOTHING:
        return "**Nothing close to this picture was posted where you can read.** The nearest:"
    if best is Verdict.SAME:
        return "**This map was posted before:**"
    return "**The most similar maps:**"


def plain(name: str, longest: int = _LONGEST_NAME) -> str:
    """A name as text: one line, no markdown, no mention, no link, no effect on what follows it."""
    short = " ".join("".join(_seen(unicodedata.normalize("NFC", name))).split()) or "somebody"
    short = short if len(short) <= longest else short[: longest - 1].rstrip() + "…"
    escaped = escape_markdown(short, ignore_links=False)
    for sign in "<@#/":
        escaped = escaped.replace(sign, sign + _BREAK)
    turns = any(unicodedata.bidirectional(char) in {"R", "AL"} for char in escaped)
    return f"{_ISOLATE}{escaped}{_POP_ISOLATE}" if turns else escaped


def _seen(text: str) -> Iterator[str]:
    """The letters without what hides or turns others, or climbs in heaps over other lines."""
    marks = 0
    for char in text:
        kind = unicodedata.category(char)
        marks = marks + 1 if kind in {"Mn", "Me"} else 0
        joins = char in _JOINERS or char.isspace() or kind not in {"Cc", "Cf", "Cs"}
        if joins and marks <= _MOST_MARKS:
            yield char


def link_rows(hits: Sequence[Hit], first: int) -> list[Row]:
    """Buttons that lead to the posts."""
    buttons = [
        Button[None](
            label=f"Go to {number}",
            # Made from the ids: a button must lead into Discord whatever was imported.
            url=message_link(
                hit.match.picture.guild_id,
                hit.match.picture.channel_id,
                hit.match.picture.key.message_id,
            ),
        )
        for number, hit in enumerate(hits, first)
    ]
    return [
        Row(*buttons[start : start + _MOST_BUTTONS])
        for start in range(0, len(buttons), _MOST_BUTTONS)
    ]


def turning_row(token: str, page: int, *, more: bool, shareable: bool, shared: bool) -> list[Row]:
    """Buttons to turn the page and to show it to everybody; none where nothing can be done."""
    grey = disnake.ButtonStyle.secondary
    buttons: list[Button[None]] = []
    if page:
        back = Press(action=Action.PAGE, token=token, page=page - 1)
        buttons.append(Button(label="Back", style=grey, custom_id=str(back)))
    if more:
        onward = Press(action=Action.PAGE, token=token, page=page + 1)
        buttons.append(Button(label="Show more", style=grey, custom_id=str(onward)))
    if shareable:
        share = Press(action=Action.SHARE, token=token, page=page)
        label = "Shared" if shared else "Share"
        buttons.append(Button(label=label, style=grey, custom_id=str(share), disabled=shared))
    return [Row(*buttons)] if buttons else []


def removing_row(owner_id: int) -> Row:
    """A button below a shared answer, to take it back."""
    remove = Press(action=Action.REMOVE, token=str(owner_id))
    return Row(Button(label="Remove", style=disnake.ButtonStyle.secondary, custom_id=str(remove)))


def choosing_row(token: str, choices: Sequence[Sighting], asked: Sighting | None) -> list[Row]:
    """A select among the pictures of a message; nothing where there is no choice."""
    if asked is None or len(choices) < 2:  # noqa: PLR2004 (a choice)
        return []
    options = [
        disnake.SelectOption(
            label=f"Picture {number} of {len(choices)}",
            value=choice.attachment_id,
            description="Spoiler" if choice.spoiler else None,
            default=choice.attachment_id == asked.attachment_id,
        )
        for number, choice in enumerate(choices[:_MOST_OPTIONS], 1)
    ]
    pick = Press(action=Action.PICK, token=token)
    return [Row(StringSelect[None](custom_id=str(pick), options=options))]


def explain(error: Exception, reference: str) -> str:
    """Puts a failure into words for a member.

    Args:
        error: What was raised.
        reference: What the member may quote; it stands in the log, too.
    """
    words = _PLAIN.get(type(error)) or _in_words(error)
    return f"{words} (Reference: `{reference}`)"


_PLAIN: dict[type[Exception], str] = {
    BusyError: "More is being looked up right now than this bot can answer; "
    "try again in a few seconds.",
    TimeoutError: "This took too long, so it was given up. Try again in a few minutes.",
    UnsupportedError: "The model of this bot reads no text. Ask with a picture instead.",
    GoneError: "This picture is no longer there: its link has expired, or it was deleted.",
}


def _in_words(error: Exception) -> str:
    match error:
        case OverloadedError():
            wait_s = max(1, round(error.retry_after_ms / 1000))
            words = f"Too many pictures are being looked up; try again in {wait_s} s."
        case UnavailableError() | DeadlineError() | UnauthenticatedError():
            words = (
                "The embedding server is not answering, so no picture can be looked up right now. "
                "What is posted meanwhile is kept and indexed later. Try again in a few minutes."
            )
        case InvalidInputError():
            words = f"This cannot be looked up: {error}"
        case FetchError():
            words = f"This picture cannot be used: {error}"
        case ArchiveError():
            words = (
                "The archive is out of order, so no picture can be looked up right now. "
                "What is posted meanwhile is kept and indexed later."
            )
        case disnake.HTTPException() | aiohttp.ClientError():
            words = "Discord is not answering the bot right now. Try again in a moment."
        case _:
            words = "Something went wrong in mapseek. Whoever runs this bot can find out what."
    return words
