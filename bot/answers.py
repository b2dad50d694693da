"""Answers a member's "which map is this?": search, check every hit, and put it into words.

Nothing is shown that the member cannot read at this moment: the channels that count are computed
first and are part of the vector query, and each hit is fetched again from Discord before it is
shown, which also gives a fresh link and shows whether it is still there.
"""

import asyncio
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import disnake
from disnake.ui.select.string import StringSelect
from disnake.utils import escape_markdown, escape_mentions, format_dt

from bot import pictures
from bot.archive.port import ArchiveError, ImageArchive, Match, Picture, Selection
from bot.fetch import Fetcher, FetchError, GoneError
from bot.ingest import Ingest
from bot.links import message_link
from bot.pictures import Sighting
from bot.queue import Queue
from bot.search import Scope, Verdict, find, judge
from bot.sheet import Tile, draw_sheet
from bot.visibility import readable_channels
from inference.client import EmbeddingClient
from inference.errors import (
    DeadlineError,
    InvalidInputError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
)

_log = logging.getLogger("mapseek.bot")

# Some hits may turn out to be deleted; the next ones take their places.
_SPARE = 2
_MOST_CHOICES = 25
_LONGEST_NAME = 60

PICK = "mapseek:pick"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks, and from where.

    Attributes:
        guild: The guild, from the live cache.
        member: The member, with the roles that came with the request.
        channel_id: Where the command was used.
    """

    guild: disnake.Guild
    member: disnake.Member
    channel_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A match that was checked.

    Attributes:
        match: What was found.
        now: The picture as Discord has it now; None where Discord did not tell.
        data: Its bytes; None where they could not be fetched.
    """

    match: Match
    now: Sighting | None
    data: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the member is to see.

    Attributes:
        content: Text, in Discord's markdown.
        components: Buttons and a select.
        files: The picture sheet.
    """

    content: str
    components: list[disnake.ui.Button[None] | StringSelect[None]] = field(default_factory=list)
    files: list[disnake.File] = field(default_factory=list)


class Answers:
    """Makes replies. Knows nothing of commands and interactions.

    Args:
        bot: Asks Discord for messages.
        archive: Where to look.
        client: Embeds the member's picture.
        fetcher: Downloads it, and the hits for the sheet.
        ingest: Is told of hits that are gone.
        queue: Knows the threads that are not in Discord's cache.
        results: How many hits to show.
    """

    def __init__(
        self,
        *,
        bot: disnake.Client,
        archive: ImageArchive,
        client: EmbeddingClient,
        fetcher: Fetcher,
        ingest: Ingest,
        queue: Queue,
        results: int,
    ) -> None:
        self._bot = bot
        self._archive = archive
        self._client = client
        self._fetcher = fetcher
        self._ingest = ingest
        self._queue = queue
        self._results = results

    async def about(self, choices: Sequence[Sighting], chosen: str | None, asker: Asker) -> Reply:
        """What is known about a picture.

        Args:
            choices: The pictures of one message; with several the reply lets the member choose.
            chosen: The attachment id of the one to look for; None for the first.
            asker: Decides what may be shown.

        Raises:
            EmbeddingError: The picture could not be embedded.
            ArchiveError: The archive could not be searched.
            FetchError: The picture could not be downloaded.
        """
        if not choices:
            return Reply(content="There is no picture in that message.")
        asked = next((one for one in choices if one.attachment_id == chosen), choices[0])
        readable, data, model = await asyncio.gather(
            self._readable(asker), self._fetcher.fetch(asked.fetch_url), self._client.model()
        )
        matches = await find(
            self._client,
            self._archive,
            data,
            Scope(
                limit=self._results * _SPARE,
                guild_id=str(asker.guild.id),
                channel_ids=readable,
                exclude_message_id=asked.message_id or None,
            ),
        )
        hits = await self._check(matches)
        select = [_select(choices, asked)] if len(choices) > 1 else []
        if not hits:
            return Reply(
                content="Nothing found: no maps are indexed in the channels that you can read.",
                components=[*select],
            )
        verdicts = [judge(hit.match.score, model.thresholds) for hit in hits]
        return Reply(
            content=_text(hits, verdicts),
            components=[*_buttons(hits), *select],
            files=await _files(asked, data, hits, verdicts),
        )

    async def about_message(
        self, *, channel_id: str, message_id: str, chosen: str, asker: Asker
    ) -> Reply:
        """Like `about`, for a message that is known by its ids: those may be stale, or forged."""
        gone = Reply(content="That message is gone, or is not for you to read.")
        if channel_id not in await self._readable(asker):
            return gone
        try:
            found = await pictures.in_channel(
                self._bot,
                guild_id=str(asker.guild.id),
                channel_id=channel_id,
                message_id=message_id,
            )
        except disnake.Forbidden:
            return gone
        return gone if found is None else await self.about(found, chosen, asker)

    async def _readable(self, asker: Asker) -> frozenset[str]:
        return await readable_channels(
            asker.guild,
            asker.member,
            asked_in=asker.channel_id,
            known_threads=self._queue.threads(str(asker.guild.id)),
        )

    async def _check(self, matches: Sequence[Match]) -> list[Hit]:
        """The first hits that still exist."""
        hits: list[Hit] = []
        for start in range(0, len(matches), self._results):
            if len(hits) < self._results:
                some = matches[start : start + self._results]
                checked = await asyncio.gather(*(self._look_again(match) for match in some))
                hits += [hit for hit in checked if hit is not None]
        return hits[: self._results]

    async def _look_again(self, match: Match) -> Hit | None:
        picture = match.picture
        try:
            found = await pictures.in_channel(
                self._bot,
                guild_id=picture.guild_id,
                channel_id=picture.channel_id,
                message_id=picture.key.message_id,
            )
        except (disnake.HTTPException, aiohttp.ClientError, OSError, ValueError) as error:
            _log.info("Message %s was not checked: %s", picture.key.message_id, error)
            return Hit(match=match, now=None, data=None)
        now = next((one for one in found or () if one.key == picture.key), None)
        if now is None:
            # A message without any picture may also be one whose content is kept from the bot.
            if found != []:
                self._ingest.delete(_selection(picture, whole_message=found is None))
            return None
        try:
            data = await self._fetcher.fetch(now.fetch_url)
        except FetchError as error:
            _log.info("Picture %s is not on the sheet: %s", picture.key.attachment_id, error)
            return Hit(match=match, now=now, data=None)
        return Hit(match=match, now=now, data=data)


def _selection(picture: Picture, *, whole_message: bool) -> Selection:
    return Selection(
        message_ids=frozenset({picture.key.message_id}),
        attachment_ids=None if whole_message else frozenset({picture.key.attachment_id}),
    )


def _text(hits: Sequence[Hit], verdicts: Sequence[Verdict | None]) -> str:
    if verdicts[0] is Verdict.NOTHING:
        lines = ["**Nothing close to this picture was posted where you can read.** The nearest:"]
    elif verdicts[0] is Verdict.SAME:
        lines = ["**This map was posted before:**"]
    else:
        lines = ["**The most similar maps:**"]
    for number, (hit, verdict) in enumerate(zip(hits, verdicts, strict=True), 1):
        picture = hit.match.picture
        words = f"{verdict}, " if verdict else ""
        by = f" by {_plain(picture.author)}" if picture.author else ""
        lines.append(
            f"**{number}.** {words}similarity {hit.match.score:.2f}{by}, "
            f"{format_dt(picture.posted_at, 'D')} in <#{picture.channel_id}>"
            + (" (spoiler)" if _is_spoiler(hit) else "")
        )
    return "\n".join(lines)


def _plain(name: str) -> str:
    """A name as text: no markdown, no mention, one line."""
    short = " ".join(name.split())[:_LONGEST_NAME]
    return escape_markdown(escape_mentions(short))


def _buttons(hits: Sequence[Hit]) -> list[disnake.ui.Button[None]]:
    return [
        disnake.ui.Button(
            label=f"Go to {number}",
            # Made from the ids: a button must lead into Discord whatever was imported.
            url=message_link(
                hit.match.picture.guild_id,
                hit.match.picture.channel_id,
                hit.match.picture.key.message_id,
            ),
        )
        for number, hit in enumerate(hits, 1)
    ]


def _select(choices: Sequence[Sighting], asked: Sighting) -> StringSelect[None]:
    return StringSelect(
        custom_id=f"{PICK}:{asked.channel_id}:{asked.message_id}",
        options=[
            disnake.SelectOption(
                label=f"Picture {number} of {len(choices)}",
                value=choice.attachment_id,
                default=choice is asked,
            )
            for number, choice in enumerate(choices[:_MOST_CHOICES], 1)
        ],
    )


def _is_spoiler(hit: Hit) -> bool:
    return hit.match.picture.spoiler or (hit.now is not None and hit.now.spoiler)


async def _files(
    asked: Sighting, data: bytes, hits: Sequence[Hit], verdicts: Sequence[Verdict | None]
) -> list[disnake.File]:
    """The picture sheet. Spoilered hits are not on it; a spoilered question hides all of it."""
    tiles = [
        Tile(match=hit.match, verdict=verdict, note="spoiler: follow the link")
        if _is_spoiler(hit)
        else Tile(match=hit.match, verdict=verdict, data=hit.data)
        for hit, verdict in zip(hits, verdicts, strict=True)
    ]
    drawn = io.BytesIO(await draw_sheet(data, tiles))
    description = "The picture that was asked about, beside the ones that were found."
    return [disnake.File(drawn, "maps.png", spoiler=asked.spoiler, description=description)]


def explain(error: Exception, reference: str) -> str:
    """Puts a failure into words for a member.

    Args:
        error: What was raised.
        reference: What the member may quote; it stands in the log, too.
    """
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
            words = f"This picture cannot be used: {error}"
        case GoneError():
            words = "Discord no longer has this picture."
        case FetchError():
            words = f"This picture cannot be used: {error}"
        case ArchiveError():
            words = "The archive is out of order, so no picture can be looked up right now."
        case _:
            words = "Something went wrong in mapseek. Whoever runs this bot can find out what."
    return f"{words} (Reference: `{reference}`)"
