"""Answers a member's "which map is this?": what is asked, who asks, and what they may see.

Nothing is shown that the member cannot read at this moment: which channels count is worked out
anew for every answer, every page and every share, and is part of the vector query.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import disnake
from opentelemetry import trace

from bot.answering.limits import Limits
from bot.answering.pages import MOST_PAGES, Pages, Reply
from bot.answering.questions import Question, Questions
from bot.answering.visibility import may_write, readable_channels, shareable_channels
from bot.embedder import Embedder, is_known
from bot.ingest.queue import Queue
from bot.interactions import RefusalError
from bot.pictures import Sighting, in_channel
from bot.search import Look, look_again
from inference.client import Embedded, EmbeddingClient, Thresholds

_tracer = trace.get_tracer("mapseek.bot")

_OLD = "This answer is too old to go on from. Ask again."
_NOT_YOURS = "This answer belongs to somebody else. Ask yourself: Find similar map, or /find."
_GONE = "That message is gone, or is not for you to read."


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


class Answers:
    """Makes replies. Knows nothing of commands and interactions.

    Args:
        bot: Asks Discord for messages.
        client: Embeds words, and parts of pictures.
        embedder: Embeds pictures.
        pages: Finds, checks and shows.
        queue: Knows the threads that are not in Discord's cache.
        limits: Knows whether others wait for their turn.
    """

    def __init__(
        self,
        *,
        bot: disnake.Client,
        client: EmbeddingClient,
        embedder: Embedder,
        pages: Pages,
        queue: Queue,
        limits: Limits,
    ) -> None:
        self._bot = bot
        self._client = client
        self._embedder = embedder
        self._pages = pages
        self._queue = queue
        self._limits = limits
        self._questions = Questions()

    async def about_picture(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        asker: Asker,
        *,
        asked: Sighting | None = None,
        spoiler: bool = False,
        choices: Sequence[Sighting] = (),
    ) -> Reply:
        """What is known about a picture.

        Args:
            fetch: Gets its bytes.
            asker: Decides what may be shown.
            asked: The picture in its message; None where it is in none.
            spoiler: Whether the picture itself must stay hidden.
            choices: All pictures of that message; with several the reply lets the member choose.

        Raises:
            EmbeddingError: The picture could not be embedded.
            ArchiveError: The archive could not be searched.
            FetchError: The picture could not be downloaded.
        """

        async def look() -> tuple[bytes, tuple[Embedded, Thresholds | None], bytes | None]:
            with _tracer.start_as_current_span("mapseek.download"):
                data = await fetch()
            return data, *await asyncio.gather(self._embedded(data), self._pages.small(data))

        readable, (data, (embedded, thresholds), small) = await asyncio.gather(
            self._readable(asker), look()
        )
        question = Question(
            owner_id=asker.member.id,
            guild_id=asker.guild.id,
            channel_id=asker.channel_id,
            looks=(Look(embedded),),
            thresholds=thresholds,
            shown=small,
            spoiler=spoiler,
            asked=asked,
            choices=tuple(choices),
        )
        return await self._pages.page(
            self._questions.keep(question),
            question,
            0,
            readable,
            # Of a file that is in the archive there is nothing more to be learnt.
            again=None if is_known(embedded) else partial(self._look_again, data, embedded),
        )

    async def _look_again(self, data: bytes, first: Embedded) -> list[Look]:
        """Looks at the picture again, unless others need the server for their first looks."""
        if self._limits.is_crowded:
            return []
        return await look_again(self._client, data, first.model_id)

    async def _embedded(self, data: bytes) -> tuple[Embedded, Thresholds | None]:
        """A picture's vector, and what scores mean."""
        model = await self._embedder.model()
        embedded = await self._embedder.embed(
            data,
            content_hash=hashlib.sha256(data).hexdigest(),
            model_id=model.id,
            lane="interactive",
        )
        # Meanwhile the server may have started with another model.
        return embedded, model.thresholds if model.id == embedded.model_id else None

    async def about_words(self, words: str, asker: Asker) -> Reply:
        """The pictures that words describe best.

        Raises:
            UnsupportedError: The model reads no text.
            EmbeddingError: The words could not be embedded.
            ArchiveError: The archive could not be searched.
        """
        readable, embedded = await asyncio.gather(
            self._readable(asker), self._client.embed_text(words)
        )
        question = Question(
            owner_id=asker.member.id,
            guild_id=asker.guild.id,
            channel_id=asker.channel_id,
            looks=(Look(embedded),),
            thresholds=None,
            shown=words,
        )
        return await self._pages.page(self._questions.keep(question), question, 0, readable)

    async def pictures_of(
        self, guild_id: str, channel_id: str, message_id: str, asker: Asker
    ) -> list[Sighting]:
        """The pictures of a message that is known by its ids: those may be stale, or forged.

        Raises:
            RefusalError: It is gone, or the member cannot read it, or the bot.
        """
        if guild_id != str(asker.guild.id) or channel_id not in await self._readable(asker):
            raise RefusalError(_GONE)
        try:
            found = await in_channel(
                self._bot, guild_id=guild_id, channel_id=channel_id, message_id=message_id
            )
        except disnake.Forbidden:
            raise RefusalError(_GONE) from None
        if found is None:
            raise RefusalError(_GONE)
        return found

    def recall(self, token: str, asker: Asker) -> Question:
        """What a member goes on from.

        Raises:
            RefusalError: It is too old, somebody else's, or from elsewhere.
        """
        question = self._questions.recall(token)
        if question is None:
            raise RefusalError(_OLD)
        if question.owner_id != asker.member.id:
            raise RefusalError(_NOT_YOURS)
        if (question.guild_id, question.channel_id) != (asker.guild.id, asker.channel_id):
            raise RefusalError(_OLD)
        return question

    async def choose(
        self, token: str, attachment_id: str, asker: Asker
    ) -> tuple[Sighting, Sequence[Sighting]]:
        """Another picture of the message that an answer is about, with all of them.

        Raises:
            RefusalError: See `recall`; or there is no such picture, or it cannot be read any more.
        """
        choices = self.recall(token, asker).choices
        chosen = next((one for one in choices if one.attachment_id == attachment_id), None)
        if chosen is None:
            raise RefusalError(_OLD)
        here = chosen.channel_id == str(asker.channel_id)
        if not here and chosen.channel_id not in await self._readable(asker):
            raise RefusalError(_GONE)
        return chosen, choices

    async def turn(self, token: str, page: int, asker: Asker) -> Reply:
        """Another page of an answer.

        Raises:
            RefusalError: See `recall`; or there is no such page.
            ArchiveError: The archive could not be searched.
        """
        question = self.recall(token, asker)
        if page > min(len(question.pages), MOST_PAGES - 1):
            raise RefusalError(_OLD)
        return await self._pages.page(token, question, page, await self._readable(asker))

    async def share(
        self, token: str, page: int, asker: Asker, show: Callable[[Reply], Awaitable[None]]
    ) -> None:
        """Shows a page of an answer to everybody in the channel, less what not all of them may see.

        Args:
            token: Which question.
            page: Which page of its answer.
            asker: Who shares it, and where.
            show: Posts it.

        Raises:
            RefusalError: See `recall`; or the member may not post here, or none is for everybody.
        """
        question = self.recall(token, asker)
        if page >= len(question.pages):
            raise RefusalError(_OLD)
        if page in question.shared:
            raise RefusalError("This is shared already.")
        if not may_write(asker.guild, asker.member, asker.channel_id):
            raise RefusalError("You may not post pictures in this channel, so nothing was shared.")
        question.shared.add(page)  # before any wait, so that a second press finds it
        try:
            await show(await self._shared(question, page, asker))
        except BaseException:
            question.shared.discard(page)
            raise

    async def _shared(self, question: Question, page: int, asker: Asker) -> Reply:
        open_to_all = shareable_channels(
            asker.guild,
            here=asker.channel_id,
            readable=await self._readable(asker),
            known_threads=self._queue.threads(str(asker.guild.id)),
        )
        spoiler = question.spoiler
        if question.asked is not None:
            asked = await self._still_there(question.asked, open_to_all)
            spoiler = spoiler or asked.spoiler
        reply = await self._pages.shared(
            replace(question, spoiler=spoiler), page, open_to_all, by=asker.member
        )
        if reply is None:
            raise RefusalError(
                "Not everybody who can see this channel can see these maps, so nothing was shared."
            )
        return reply

    async def _still_there(self, asked: Sighting, open_to_all: frozenset[str]) -> Sighting:
        if asked.channel_id not in open_to_all:
            raise RefusalError(
                "Not everybody who can see this channel can see the picture that you asked about, "
                "so nothing was shared."
            )
        try:
            found = await in_channel(
                self._bot,
                guild_id=asked.guild_id,
                channel_id=asked.channel_id,
                message_id=asked.message_id,
            )
        except disnake.Forbidden:  # it was asked about from right here, where the bot cannot read
            return asked
        now = next((one for one in found or () if one.key == asked.key), None)
        if now is None:
            raise RefusalError(
                "The picture that you asked about was deleted, so nothing was shared."
            )
        return now

    async def _readable(self, asker: Asker) -> frozenset[str]:
        return await readable_channels(
            asker.guild,
            asker.member,
            asked_in=asker.channel_id,
            known_threads=self._queue.threads(str(asker.guild.id)),
        )
