"""`/forget` and `/privacy`: what people want mapseek not to know."""

import re

import disnake
from disnake.ext import commands

from bot.admin.preferences import Preferences
from bot.admin.replies import Said, answer, is_admin
from bot.answering.visibility import with_threads
from bot.archive.port import Selection
from bot.ingest.access import Channel
from bot.ingest.backfill import Backfill
from bot.ingest.forgotten import Forgotten
from bot.ingest.queue import Queue
from bot.ingest.worker import Ingest
from bot.interactions import Click, Command, RefusalError
from bot.pictures import in_channel

_PREFIX = "mapseek:forget"
_LINK = re.compile(
    r"https://(?:\w+\.)?discord(?:app)?\.com/channels/(\d{1,20})/(\d{1,20})/(\d{1,20})"
)
_KEPT = (
    "For every picture that is posted where the bot can read, mapseek keeps what it looks like as "
    "numbers, who posted it, where and when, and its link. The picture itself and the text are not "
    "kept. What is deleted on Discord is deleted here."
)
_OUT = "You have **opted out**: none of your posts is kept. `/privacy opt-in` changes that."
_IN = (
    "`/privacy opt-out` removes all your posts, on every server, for good; `/forget` removes "
    "single ones."
)
_ONLY_ADMINS = "Only members with **Manage Server** may do that; your own posts you can forget."


class Forget(commands.Cog):
    """Members may forget what is theirs, admins everything of their server."""

    def __init__(
        self,
        *,
        client: commands.InteractionBot,
        ingest: Ingest,
        queue: Queue,
        forgotten: Forgotten,
        preferences: Preferences,
        backfill: Backfill,
        privacy_url: str,
    ) -> None:
        self._client = client
        self._ingest = ingest
        self._queue = queue
        self._forgotten = forgotten
        self._preferences = preferences
        self._backfill = backfill
        self._privacy_url = privacy_url

    @commands.slash_command(name="forget")
    async def forget(self, inter: Command) -> None:
        """Remove posts from what can be found."""

    @forget.sub_command(name="message")
    async def message(
        self,
        inter: Command,
        link: str = commands.Param(
            description="The message's link, from its menu.", max_length=200
        ),
    ) -> None:
        """Forget the pictures of one message of yours; admins: of any message."""

        async def make(guild: disnake.Guild) -> Said:
            found = _LINK.search(link)
            if not found or found[1] != str(guild.id):
                raise RefusalError(
                    "That is no link to a message of this server: use *Copy Message Link*."
                )
            return _confirm(
                f"Forget the pictures of {found[0]}? They can no longer be found, and do not come "
                "back when the channel is indexed again. The message itself stays.",
                {"Forget them": f"message:{found[2]}:{found[3]}"},
            )

        await answer(inter, make)

    @forget.sub_command(name="user")
    async def user(
        self,
        inter: Command,
        user: disnake.User | None = commands.Param(  # noqa: B008 (disnake's way)
            default=None, description="Whose posts; yours if left out. Others: admins only."
        ),
    ) -> None:
        """Forget all your posts on this server; admins: those of anyone."""
        whose = user or inter.author

        async def make(_: disnake.Guild) -> Said:
            self._check_user(inter, str(whose.id))
            buttons = {"Forget the posts so far": f"user:{whose.id}"}
            if whose.id == inter.author.id:
                buttons["Forget me everywhere, for good"] = f"out:{whose.id}"
            return _confirm(
                f"Forget every picture that <@{whose.id}> has posted on this server? They can no "
                "longer be found, and do not come back when a channel is indexed again. The "
                "messages themselves stay.",
                buttons,
            )

        await answer(inter, make)

    @forget.sub_command(name="channel")
    async def channel(
        self,
        inter: Command,
        channel: Channel = commands.Param(description="The channel, with its threads."),  # noqa: B008
    ) -> None:
        """Admins: forget everything that was posted in a channel, and watch it no longer."""

        async def make(_: disnake.Guild) -> Said:
            if not is_admin(inter):
                raise RefusalError(_ONLY_ADMINS)
            return _confirm(
                f"Forget every picture of <#{channel.id}> and its threads, and watch it no longer? "
                "`/config watch` and `/index start` take that back.",
                {"Forget the channel": f"channel:{channel.id}"},
            )

        await answer(inter, make)

    @commands.slash_command(name="privacy")
    async def privacy(self, inter: Command) -> None:
        """What mapseek keeps about you, and how to change that."""

    @privacy.sub_command(name="show")
    async def show(self, inter: Command) -> None:
        """See what is kept, and whether you opted out."""

        async def make(_: disnake.Guild) -> Said:
            lines = [_KEPT, _OUT if self._forgotten.opted_out(str(inter.author.id)) else _IN]
            if self._privacy_url:
                lines.append(f"All of it: <{self._privacy_url}>")
            return Said(content="\n".join(lines))

        await answer(inter, make)

    @privacy.sub_command(name="opt-out")
    async def opt_out(self, inter: Command) -> None:
        """Have none of your posts kept, on any server with this bot."""

        async def make(_: disnake.Guild) -> Said:
            return _confirm(
                "Remove all your posts from what can be found, on every server with this bot, and "
                "keep none in future?",
                {"Opt out": f"out:{inter.author.id}"},
            )

        await answer(inter, make)

    @privacy.sub_command(name="opt-in")
    async def opt_in(self, inter: Command) -> None:
        """Let your posts be found again."""

        async def make(_: disnake.Guild) -> Said:
            self._forgotten.opt_in(str(inter.author.id))
            return Said(
                content="What you post from now on can be found again. Your older posts come back "
                "when an admin indexes their channel."
            )

        await answer(inter, make)

    @commands.Cog.listener()
    async def on_button_click(self, inter: Click) -> None:
        """Does what was confirmed. Who may do it is asked again: a press can be forged."""
        custom_id = inter.data.custom_id
        if not custom_id.startswith(f"{_PREFIX}:"):
            return
        what, *ids = custom_id.removeprefix(f"{_PREFIX}:").split(":")

        async def make(guild: disnake.Guild) -> Said:
            match what, ids:
                case "cancel", []:
                    return Said(content="Nothing was changed.")
                case "message", [channel_id, message_id] if (
                    channel_id.isdecimal() and message_id.isdecimal()
                ):
                    return await self._forget_message(inter, guild, channel_id, message_id)
                case "user", [user_id]:
                    return self._forget_user(inter, guild, user_id)
                case "out", [user_id] if user_id == str(inter.author.id):
                    return self._opt_out(user_id)
                case "channel", [channel_id]:
                    return self._forget_channel(inter, guild, channel_id)
            raise RefusalError("This button is not yours, or too old.")

        await answer(inter, make)

    async def _forget_message(
        self, inter: Click, guild: disnake.Guild, channel_id: str, message_id: str
    ) -> Said:
        guild_id = str(guild.id)
        if not is_admin(inter):
            author_id = await self._author(guild, channel_id, message_id)
            if author_id not in {None, str(inter.author.id)}:
                raise RefusalError(_ONLY_ADMINS)
            # Restricted to what is theirs, whatever the ids in the button say.
            self._ingest.delete(
                Selection(
                    guild_id=guild_id,
                    message_ids=frozenset({message_id}),
                    user_id=str(inter.author.id),
                )
            )
            if author_id is not None:
                self._forgotten.message(message_id, guild_id=guild_id)
        else:
            self._ingest.delete(Selection(guild_id=guild_id, message_ids=frozenset({message_id})))
            self._forgotten.message(message_id, guild_id=guild_id)
        return Said(content="The pictures of that message are forgotten.")

    async def _author(self, guild: disnake.Guild, channel_id: str, message_id: str) -> str | None:
        """Who wrote a message; None if there is none with pictures."""
        try:
            found = await in_channel(
                self._client,
                guild_id=str(guild.id),
                channel_id=channel_id,
                message_id=message_id,
            )
        except disnake.HTTPException as error:
            raise RefusalError(
                "Discord does not show that message to the bot, so it cannot know that it is yours."
            ) from error
        return found[0].user_id if found else None

    def _forget_user(self, inter: Click, guild: disnake.Guild, user_id: str) -> Said:
        self._check_user(inter, user_id)
        self._ingest.delete(Selection(guild_id=str(guild.id), user_id=user_id))
        self._forgotten.posts_of(user_id, guild_id=str(guild.id))
        return Said(content="The posts so far are forgotten. What is posted from now on is kept.")

    def _opt_out(self, user_id: str) -> Said:
        self._ingest.delete(Selection(user_id=user_id))
        self._forgotten.opt_out(user_id)
        return Said(
            content="Your posts are forgotten on every server, and no further ones are kept. "
            "`/privacy opt-in` takes that back."
        )

    def _forget_channel(self, inter: Click, guild: disnake.Guild, channel_id: str) -> Said:
        if not is_admin(inter):
            raise RefusalError(_ONLY_ADMINS)
        place = guild.get_channel_or_thread(int(channel_id)) if channel_id.isdecimal() else None
        if not isinstance(place, Channel):
            raise RefusalError("There is no such channel on this server any more.")
        guild_id = str(guild.id)
        self._backfill.drop(channel_id)
        self._preferences.watch(guild_id, channel_id, on=False)
        for one in with_threads(guild, place.id, self._queue.threads(guild_id)):
            self._ingest.delete(Selection(guild_id=guild_id, channel_id=one))
        self._forgotten.posts_in(channel_id, guild_id=guild_id)
        return Said(content=f"<#{channel_id}> is forgotten, and no longer watched.")

    def _check_user(self, inter: Command | Click, user_id: str) -> None:
        if user_id != str(inter.author.id) and not is_admin(inter):
            raise RefusalError(_ONLY_ADMINS)


def _confirm(question: str, choices: dict[str, str]) -> Said:
    """A question with a button for each choice, and one to leave it."""
    return Said(
        content=question,
        buttons=[
            *(
                disnake.ui.Button(
                    label=label,
                    style=disnake.ButtonStyle.danger,
                    custom_id=f"{_PREFIX}:{choice}",
                )
                for label, choice in choices.items()
            ),
            disnake.ui.Button(
                label="Cancel",
                style=disnake.ButtonStyle.secondary,
                custom_id=f"{_PREFIX}:cancel",
            ),
        ],
    )
