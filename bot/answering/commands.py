"""The commands that members use, and the buttons below the answers.

Thin: what is found and said is decided in `answers`, how it is delivered in `delivery`.
"""

import re
from collections.abc import Sequence
from functools import partial

import disnake
from disnake.ext import commands
from disnake.interactions.application_command import (
    ApplicationCommandInteraction,
    MessageCommandInteraction,
)

from bot.answering.answers import Answers, Asker
from bot.answering.delivery import Delivery
from bot.answering.hits import Checker
from bot.answering.limits import Limits
from bot.answering.pages import Pages, Reply
from bot.answering.questions import Action, Press, is_ours, press_of
from bot.archive.port import ImageArchive
from bot.embedder import Embedder
from bot.fetch import Fetcher
from bot.ingest.queue import Queue
from bot.ingest.worker import Ingest
from bot.interactions import Click, RefusalError
from bot.pictures import Sighting, in_message, in_option
from bot.settings import BotSettings, UrlSearch
from inference.client import EmbeddingClient

_Bot = commands.InteractionBot

_MESSAGE_LINK = re.compile(
    r"https://(?:canary\.|ptb\.)?discord(?:app)?\.com/channels/([0-9]+)/([0-9]+)/([0-9]+)/?"
)
_LONGEST_URL = 2000
_LONGEST_TEXT = 200

_ONE_OF_THREE = "Give one thing to look for: an image, a url or a text."
_NO_ANSWER = "That is no answer of this bot, or too old a one. Ask again."
_NO_PICTURE = "There is no picture in that message."


class Find(commands.Cog):
    """Finds maps by picture, link or words.

    Args:
        answers: Decides what is said.
        fetcher: Downloads the pictures that are asked about.
        delivery: Delivers it.
        url_search: Where `/find url:` may lead.
    """

    def __init__(
        self, *, answers: Answers, fetcher: Fetcher, delivery: Delivery, url_search: UrlSearch
    ) -> None:
        self._answers = answers
        self._fetcher = fetcher
        self._delivery = delivery
        self._url_search = url_search

    @commands.message_command(name="Find similar map")
    async def find_similar(self, inter: MessageCommandInteraction[_Bot]) -> None:
        """Looks for the first picture of a message."""

        async def make(asker: Asker) -> Reply:
            return await self._about(in_message(inter.target, guild=asker.guild), asker)

        await self._delivery.answer(inter, "message", make)

    @commands.slash_command(name="find")
    async def find(
        self,
        inter: ApplicationCommandInteraction[_Bot],
        image: disnake.Attachment | None = commands.Param(  # noqa: B008 (disnake's way)
            default=None, description="A picture of it."
        ),
        url: str | None = commands.Param(
            default=None,
            max_length=_LONGEST_URL,
            description="A link to a picture of it, or to a message of this server.",
        ),
        text: str | None = commands.Param(
            default=None,
            max_length=_LONGEST_TEXT,
            description="What it shows, in words.",
        ),
    ) -> None:
        """Find who posted a map, by a picture of it."""

        async def make(asker: Asker) -> Reply:
            if sum(one is not None for one in (image, url, text)) != 1:
                raise RefusalError(_ONE_OF_THREE)
            if image is not None:
                return await self._about_upload(image, asker)
            if url is not None:
                return await self._about_url(url.strip(), asker)
            return await self._answers.about_words(text or "", asker)

        kind = "image" if image else "url" if url else "text"
        await self._delivery.answer(inter, kind, make)

    @commands.Cog.listener()
    async def on_message_interaction(self, click: Click) -> None:
        """Goes on from an answer: another picture, another page, sharing, taking back."""
        if not is_ours(click.data.custom_id):
            return
        press = press_of(click.data.custom_id)
        if press is None:
            await self._delivery.replace(click, "unknown", _refuse)
            return
        match press.action:
            case Action.PICK:
                await self._delivery.replace(click, "pick", partial(self._pick, click, press))
            case Action.PAGE:
                turn = partial(self._answers.turn, press.token, press.page)
                await self._delivery.replace(click, "page", turn)
            case Action.SHARE:
                share = partial(self._answers.share, press.token, press.page)
                await self._delivery.share(click, share)
            case Action.REMOVE:
                await self._delivery.remove(click, partial(_check_removal, click, press))

    async def _pick(self, click: Click, press: Press, asker: Asker) -> Reply:
        chosen = next(iter(click.values or ()), "")
        asked, choices = await self._answers.choose(press.token, chosen, asker)
        return await self._about(choices, asker, asked=asked)

    async def _about(
        self, choices: Sequence[Sighting], asker: Asker, *, asked: Sighting | None = None
    ) -> Reply:
        if not choices:
            raise RefusalError(_NO_PICTURE)
        chosen = asked or choices[0]
        return await self._answers.about_picture(
            lambda: self._fetcher.fetch(chosen.fetch_url),
            asker,
            asked=chosen,
            spoiler=chosen.spoiler,
            choices=choices,
        )

    async def _about_upload(self, image: disnake.Attachment, asker: Asker) -> Reply:
        upload = in_option(image)
        if upload is None:
            raise RefusalError("That file is no picture.")
        return await self._answers.about_picture(
            lambda: self._fetcher.fetch(upload.fetch_url), asker, spoiler=upload.spoiler
        )

    async def _about_url(self, url: str, asker: Asker) -> Reply:
        if self._url_search is UrlSearch.OFF:
            raise RefusalError(
                "Links are turned off in this bot. Give the picture itself as `image`."
            )
        if link := _MESSAGE_LINK.fullmatch(url):
            found = await self._answers.pictures_of(link[1], link[2], link[3], asker)
            return await self._about(found, asker)
        anywhere = self._url_search is UrlSearch.ANYWHERE
        fetch = self._fetcher.fetch_anywhere if anywhere else self._fetcher.fetch
        return await self._answers.about_picture(lambda: fetch(url), asker)


def _check_removal(click: Click, press: Press, asker: Asker) -> None:
    """Refuses who neither shared an answer nor keeps order in the channel."""
    is_there = click.data.custom_id in _custom_ids(click.message)
    if click.message.author.id != click.bot.user.id or not is_there:
        raise RefusalError(_NO_ANSWER)
    if press.token != str(asker.member.id) and not click.permissions.manage_messages:
        raise RefusalError("Only who shared this, or a moderator, can remove it.")


async def _refuse(_: Asker) -> Reply:
    raise RefusalError(_NO_ANSWER)


def _custom_ids(message: disnake.Message) -> set[str]:
    rows = disnake.ui.ActionRow.rows_from_message(message)
    return {
        component.custom_id or ""
        for _, component in disnake.ui.ActionRow.walk_components(rows)
        if isinstance(component, disnake.ui.Button)
    }


def make_find(
    settings: BotSettings,
    *,
    bot: _Bot,
    archive: ImageArchive,
    client: EmbeddingClient,
    fetcher: Fetcher,
    ingest: Ingest,
    queue: Queue,
    limits: Limits,
) -> Find:
    """Puts together what members use."""
    checker = Checker(bot=bot, fetcher=fetcher, ingest=ingest)
    pages = Pages(archive=archive, checker=checker, results=settings.results)
    return Find(
        answers=Answers(
            bot=bot,
            client=client,
            embedder=Embedder(client, archive),
            pages=pages,
            queue=queue,
            limits=limits,
        ),
        fetcher=fetcher,
        delivery=Delivery(limits),
        url_search=settings.url_search,
    )
