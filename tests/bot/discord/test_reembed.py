"""Embedding again what lies on Discord: with the token by fresh links, and without it plainly."""

import pytest
from pydantic import SecretStr

from bot.archive.embedded import EmbeddedArchive
from bot.links import signature_missing
from bot.moving import models
from inference.client import ClientSettings
from inference.errors import StartupError
from tests.bot.cli.toy import ToyServer, toy_server
from tests.bot.discord.conftest import Bot, map_art
from tests.bot.discord.loopback import Discord


async def filled(bot: Bot, discord: Discord) -> None:
    """Three posts are in the archive, and their links have expired."""
    async with bot.running():
        for seed in range(3):
            await discord.post(10, map_art(seed))
        await bot.settled(3)
    discord.links_expire_at_s = 1


async def reembed(bot: Bot, server: ToyServer, *, token: str | None) -> int:
    secret = None if token is None else SecretStr(token)
    return await models._reembed(
        bot.settings.model_copy(update={"discord_token": secret}),
        ClientSettings(server=server.address),
        media=None,
        links=True,
        leave_behind=False,
        drop_old=False,
    )


async def by_model(bot: Bot) -> dict[str, int]:
    async with EmbeddedArchive(bot.settings.archive) as archive:
        return (await archive.stats()).by_model


@pytest.fixture(autouse=True)
def _no_late_posts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_LATE_POSTS_S", 0.0)


async def test_the_token_gets_fresh_links(
    bot: Bot, discord: Discord, capsys: pytest.CaptureFixture[str]
) -> None:
    await filled(bot, discord)
    discord.links_expire_at_s = 0x7FFFFFFF
    async with toy_server(name="new") as server:
        assert await reembed(bot, server, token=bot.settings.required_token()) == 0
        assert await by_model(bot) == {"toy@0001": 3, server.model_id: 3}
        async with EmbeddedArchive(bot.settings.archive) as archive:
            assert await archive.current_model() == server.model_id
    assert "Searches use new@" in capsys.readouterr().out


async def test_without_the_token_it_says_what_is_missing(
    bot: Bot, discord: Discord, capsys: pytest.CaptureFixture[str]
) -> None:
    await filled(bot, discord)
    async with toy_server(name="new") as server:
        assert await reembed(bot, server, token=None) == 1
        assert await by_model(bot) == {"toy@0001": 3}
    told = capsys.readouterr().out
    assert "Not embedded (3): Discord gives it out by a signed link only" in told
    assert "https://discord.com/channels/1/10/" in told


async def test_a_post_that_is_gone_is_named(
    bot: Bot, discord: Discord, capsys: pytest.CaptureFixture[str]
) -> None:
    await filled(bot, discord)
    discord.links_expire_at_s = 0x7FFFFFFF
    messages = list(discord.messages.values())
    del discord.messages[int(messages[0]["id"])]
    async with toy_server(name="new") as server:
        assert await reembed(bot, server, token=bot.settings.required_token()) == 1
        assert (await by_model(bot))[server.model_id] == 2
    told = capsys.readouterr().out
    assert "Not embedded (1): was deleted on Discord" in told
    assert messages[0]["id"] in told


async def test_a_wrong_token_is_a_sentence(bot: Bot, discord: Discord) -> None:
    await filled(bot, discord)
    async with toy_server(name="new") as server:
        with pytest.raises(StartupError, match="refused the token"):
            await reembed(bot, server, token="wrong")


@pytest.mark.parametrize(
    ("url", "missing"),
    [
        ("https://cdn.discordapp.com/attachments/1/2/map.png", True),
        ("https://media.discordapp.net/attachments/1/2/map.png?width=5", True),
        ("https://cdn.discordapp.com/attachments/1/2/map.png?ex=1&is=2&hm=3", False),
        ("https://cdn.discordapp.com/emojis/1.png", False),
        ("https://example.org/attachments/1/2/map.png", False),
    ],
)
def test_which_links_need_a_signature(url: str, *, missing: bool) -> None:
    assert signature_missing(url) is missing
