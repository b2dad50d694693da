"""Pages of an answer: the nearest pictures, each looked at again, drawn and put into words."""

import asyncio
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import disnake

from bot.answering.hits import Checker, Hit
from bot.answering.questions import Question
from bot.answering.wording import (
    Row,
    answer_text,
    choosing_row,
    link_rows,
    removing_row,
    turning_row,
)
from bot.archive.port import ImageArchive, Match, PictureKey
from bot.search import Again, Scope, Verdict, judge, nearest, nearest_or_again
from bot.sheet import UNDRAWABLE, Tile, draw_reply, keepable

MOST_PAGES = 20
# How long a page looks further when what was found turned out to be deleted.
_PATIENCE_S = 6.0
_MOST_AT_ONCE = 12
_MOST_POSTED_SINCE = 20
# Drawing takes the memory of several pictures.
_DRAWN_AT_ONCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is to be shown.

    Attributes:
        content: Text, in Discord's markdown.
        rows: Buttons and a select.
        files: The picture sheet.
        hits: How many matches it shows.
    """

    content: str
    rows: list[Row] = field(default_factory=list)
    files: list[disnake.File] = field(default_factory=list)
    hits: int = 0


class Pages:
    """Makes pages of questions, for whoever may read given channels.

    Args:
        archive: Where to look.
        checker: Looks again at what was found.
        results: How many hits a page shows.
    """

    def __init__(self, *, archive: ImageArchive, checker: Checker, results: int) -> None:
        self._archive = archive
        self._checker = checker
        self._results = results
        self._drawing = asyncio.Semaphore(_DRAWN_AT_ONCE)

    async def small(self, data: bytes) -> bytes | None:
        """What is kept of a picture for the sheets; None where it cannot be drawn."""
        async with self._drawing:
            return await keepable(data)

    async def page(
        self,
        token: str,
        question: Question,
        page: int,
        readable: frozenset[str],
        *,
        again: Again | None = None,
    ) -> Reply:
        """One page, which is noted in the question.

        Args:
            token: What the buttons carry.
            question: What was asked.
            page: Which page; those before it have been shown.
            readable: The channels that count.
            again: Looks further where the question's one look leaves doubt; its looks are noted in
                the question, too.

        Raises:
            ArchiveError: The archive could not be searched.
        """
        shown = {key for keys in question.pages[:page] for key in keys}
        hits, more = await self._hits(question, readable, shown, again)
        question.pages[page : page + 1] = [tuple(hit.match.picture.key for hit in hits)]
        rows = turning_row(
            token,
            page,
            more=more and page < MOST_PAGES - 1,
            shareable=bool(hits),
            shared=page in question.shared,
        )
        rows += choosing_row(token, question.choices, question.asked)
        if not hits:
            return Reply(
                content="There are no further maps where you can read."
                if page
                else "Nothing found: no maps are indexed in the channels that you can read.",
                rows=rows,
            )
        return await self._reply(question, hits, page=page, rows=rows)

    async def shared(
        self, question: Question, page: int, open_to_all: frozenset[str], *, by: disnake.Member
    ) -> Reply | None:
        """A page that was shown, for everybody: less what is not in the given channels.

        Returns:
            None if nothing is left.

        Raises:
            ArchiveError: The archive could not be searched.
        """
        shown = sum(len(keys) for keys in question.pages[: page + 1])
        # What was posted since may come before what was shown.
        matches = await self._nearest(question, open_to_all, limit=shown + _MOST_POSTED_SINCE)
        hits = await self._checker.check(
            [match for match in matches if match.picture.key in question.pages[page]]
        )
        if not hits:
            return None
        rows = [removing_row(by.id)]
        return await self._reply(question, hits, page=page, rows=rows, shared_by=by.display_name)

    async def _hits(
        self,
        question: Question,
        readable: frozenset[str],
        shown: set[PictureKey],
        again: Again | None,
    ) -> tuple[list[Hit], bool]:
        """The first hits that still exist and were not shown yet; and whether there may be more."""
        hits: list[Hit] = []
        seen = set(shown)
        ends_at_s = asyncio.get_running_loop().time() + _PATIENCE_S
        # Some to take the places of the deleted, and one to tell whether there is another page.
        limit, at_once = len(shown) + 2 * self._results + 1, self._results
        while True:
            matches = await self._nearest(question, readable, limit=limit, again=again)
            again = None
            fresh = [match for match in matches if match.picture.key not in seen]
            over = False
            while fresh and len(hits) < self._results and not over:
                some, fresh = fresh[:at_once], fresh[at_once:]
                seen |= {match.picture.key for match in some}
                hits += await self._checker.check(some)
                # Where some were deleted there may be many more.
                at_once = min(2 * at_once, _MOST_AT_ONCE)
                over = asyncio.get_running_loop().time() > ends_at_s
            if over or len(hits) >= self._results or len(matches) < limit:
                more = bool(fresh) or len(hits) > self._results or len(matches) == limit
                return hits[: self._results], more
            limit *= 2

    async def _nearest(
        self,
        question: Question,
        channels: frozenset[str],
        *,
        limit: int,
        again: Again | None = None,
    ) -> list[Match]:
        scope = Scope(
            limit=limit,
            guild_id=str(question.guild_id),
            channel_ids=channels,
            exclude_message_id=question.asked.message_id if question.asked else None,
        )
        if again is None:
            return await nearest(self._archive, question.looks, scope)
        question.looks, matches = await nearest_or_again(
            self._archive, question.looks[0], scope, thresholds=question.thresholds, again=again
        )
        return matches

    async def _reply(
        self,
        question: Question,
        hits: Sequence[Hit],
        *,
        page: int,
        rows: list[Row],
        shared_by: str | None = None,
    ) -> Reply:
        words = question.shown if isinstance(question.shown, str) else None
        verdicts = [
            None if words is not None else judge(hit.match.score, question.thresholds)
            for hit in hits
        ]
        first = 1 + sum(len(keys) for keys in question.pages[:page])
        # Spoilered hits are not on the sheet; a spoilered question hides all of it.
        tiles = [_tile(hit, verdict) for hit, verdict in zip(hits, verdicts, strict=True)]
        async with self._drawing:
            drawn = await draw_reply(question.shown, tiles, first=first, own=shared_by is None)
        sheet = disnake.File(
            io.BytesIO(drawn),
            "maps.jpg",
            spoiler=question.spoiler,
            description="What was asked about, beside the maps that were found.",
        )
        content = answer_text(
            hits, verdicts, page=page, first=first, words=words, shared_by=shared_by
        )
        return Reply(
            content=content, rows=[*link_rows(hits, first), *rows], files=[sheet], hits=len(hits)
        )


def _tile(hit: Hit, verdict: Verdict | None) -> Tile:
    if hit.spoiler:
        return Tile(match=hit.match, verdict=verdict, note="spoiler: follow the link")
    if hit.missing:
        return Tile(match=hit.match, verdict=verdict)
    return Tile(match=hit.match, verdict=verdict, data=hit.shown, note=UNDRAWABLE)
