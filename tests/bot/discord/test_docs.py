"""What the pages for server owners promise."""

import re
from pathlib import Path

import disnake

from bot.ingest import access
from tests.bot.discord.conftest import Bot
from tests.bot.discord.loopback import Discord

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "docs" / "discord.md", ROOT / "docs" / "privacy.md", ROOT / "README.md"]
# What the code asks Discord to let it do, by the check that stands before it.
NEEDED = [*access.READING, *access.WRITING]


def test_the_invite_link_asks_for_what_the_code_needs_and_no_more() -> None:
    page = PAGES[0].read_text()
    (asked,) = {int(value) for value in re.findall(r"&permissions=(\d+)", page)}
    assert asked == access.invite_permissions().value
    permissions = disnake.Permissions(asked)
    assert sorted(name for name, given in permissions if given) == sorted(NEEDED)
    for words in (access.READING | access.WRITING | access.VOICE | access.PRIVATE_THREADS).values():
        assert words.removeprefix("Send Messages in ") in page, words


async def test_every_command_of_the_pages_is_registered(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        pass
    registered = {
        command["name"]: {option["name"] for option in command.get("options", ())}
        for command in discord.commands
    }
    named = set()
    for page in PAGES:
        for command, sub in re.findall(r"`/([a-z]+)(?: ([a-z-]+))?", page.read_text()):
            if command in {"etc", "var"}:
                continue
            assert command in registered, f"/{command} in {page.name}"
            assert not sub or sub in registered[command], f"/{command} {sub} in {page.name}"
            named.add((command, sub))
    for command in ("index", "config", "forget", "privacy"):
        assert registered[command] <= {sub for one, sub in named if one == command} | {
            "opt-in",
            "opt-out",
        }


def test_the_pages_link_to_files_that_exist() -> None:
    for page in PAGES[:2]:
        for link in re.findall(r"\]\(((?!https?:|#)[^)#]+)\)", page.read_text()):
            if link != "../compose.yaml":  # comes with the containers
                assert (page.parent / link).exists(), f"{link} in {page.name}"
