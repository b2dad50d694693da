from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bot.importer import discord_html
from bot.importer.found import Found, SetAside
from bot.importer.source import Kind, open_source
from bot.links import embedded_id, media_id, media_ids
from tests.bot.importer import pages
from tests.bot.importer.exports import CHANNEL, FIRST_MESSAGE, GUILD, media, picture_bytes

PNG = picture_bytes(0)
PAGE = "page"
URL = "https://cdn.discordapp.com/attachments/200/5001/map.png"
NAME = f"map-{next(iter(sorted(media_ids(URL), key=len, reverse=True)))[6:]}.png"


def scan(page: Path, **options: Any) -> tuple[list[Found], list[SetAside]]:
    items = list(discord_html.scan(page, **options))
    return (
        [item for item in items if isinstance(item, Found)],
        [item for item in items if isinstance(item, SetAside)],
    )


def file(folder: Path, name: str = NAME, data: bytes = PNG) -> str:
    return media(folder, name, data, export=PAGE)


def test_an_attached_picture(tmp_path: Path) -> None:
    url = file(tmp_path)
    page = pages.write(
        tmp_path, [pages.group(pages.message(1, pages.picture(url, hidden=True), author="A & B"))]
    )
    ((found,), aside) = scan(page)
    assert aside == []
    assert found == Found(
        key=found.key,
        path=(tmp_path / url).resolve(),
        guild_id=GUILD,
        channel_id=CHANNEL,
        user_id="42",
        message_link=f"https://discord.com/channels/{GUILD}/{CHANNEL}/{FIRST_MESSAGE + 1}",
        posted_at=datetime(2015, 1, 1, tzinfo=UTC)
        + timedelta(milliseconds=FIRST_MESSAGE + 1 >> 22),
        spoiler=True,
        author="A & B",
        channel="map-archive",
        by_file=True,
    )
    assert found.key.message_id == str(FIRST_MESSAGE + 1)
    assert found.key.attachment_id in media_ids(URL + "?ex=1&is=2&hm=3")


def test_followers_of_a_group_have_its_author_and_their_own_spoilers(tmp_path: Path) -> None:
    first, second, third = (file(tmp_path, f"{name}-0000{name}.png") for name in "123")
    page = pages.write(
        tmp_path,
        [
            pages.group(
                pages.message(1, pages.picture(first, hidden=True), pages.picture(second)),
                pages.message(2, pages.embedded(third), first=False),
            )
        ],
    )
    found, _ = scan(page)
    assert [(one.user_id, one.author) for one in found] == [("42", "Alice")] * 3
    assert [one.spoiler for one in found] == [True, False, False]
    assert [one.key.message_id for one in found] == [
        str(FIRST_MESSAGE + number) for number in (1, 1, 2)
    ]


def test_avatars_scripts_and_words_are_no_pictures(tmp_path: Path) -> None:
    file(tmp_path, "avatar-00000.png")
    (tmp_path / "evil.png").write_bytes(PNG)
    page = pages.write(tmp_path, [pages.group(pages.message(1))])
    assert scan(page) == ([], [])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (URL, "is not in the export: export again with --media"),
        ("page_Files/gone-00000.png", "is missing from the export's folder"),
        ("../outside-00000.png", "lies outside the export's folder"),
        ("page_Files/404-00000.png", "is no picture; perhaps it was gone already"),
    ],
)
def test_what_cannot_be_used_is_set_aside_with_its_reason(
    tmp_path: Path, url: str, reason: str
) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (tmp_path / "outside-00000.png").write_bytes(PNG)
    file(folder, "404-00000.png", b"<html>404</html>")
    page = pages.write(folder, [pages.group(pages.message(1, pages.picture(url)))])
    found, (aside,) = scan(page)
    assert found == []
    assert aside.reason.startswith(reason)
    assert aside.name == f"map.png in message {FIRST_MESSAGE + 1}"


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("", False),
        (pages.JUMP, True),
        (f"<img src=https://cdn.discordapp.com/icons/{GUILD}/abc.png>", True),
        # A link into another channel says nothing, and two that contradict each other neither.
        ("https://discord.com/channels/999/998/1", False),
        (pages.JUMP + f" https://discord.com/channels/999/{CHANNEL}/1", False),
    ],
)
def test_the_server_is_told_by_links_or_must_be_given(
    tmp_path: Path, head: str, *, told: bool
) -> None:
    url = file(tmp_path)
    page = pages.write(tmp_path, [pages.group(pages.message(1, pages.picture(url)))], head=head)
    found, aside = scan(page)
    if told:
        assert [one.guild_id for one in found] == [GUILD]
    else:
        assert found == []
        assert aside[0].reason.endswith("say so with --guild ID")
    ((given,), _) = scan(page, guild_id="7")
    assert given.message_link.startswith(f"https://discord.com/channels/7/{CHANNEL}/")


def test_embeds_of_hidden_links_are_spoilers(tmp_path: Path) -> None:
    link = '<a href="https://i.imgur.com/x.png">https://i.imgur.com/x.png</a>'
    bars = '<span class="chatlog__markdown-spoiler chatlog__markdown-spoiler--hidden">'
    words = (
        f"{bars}<span>here:</span> {link}</span>",
        f"{bars}first</span> {link} {bars}last</span>",
        link,
    )
    urls = [file(tmp_path, f"x{number}-0123456789abcde{number}.png") for number in range(6)]
    messages = [
        pages.message(number, text, pages.embedded(urls[number]), pages.picture(urls[3 + number]))
        for number, text in enumerate(words)
    ]
    found, aside = scan(pages.write(tmp_path, [pages.group(*messages)]))
    assert aside == []
    hidden = {one.path.name[:2]: one.spoiler for one in found}
    assert hidden == dict.fromkeys(("x1", "x2", "x3", "x4", "x5"), False) | {"x0": True}


def test_the_channel_is_told_by_the_files_name(tmp_path: Path) -> None:
    groups = [pages.group(pages.message(1, pages.picture(file(tmp_path))))]
    for behind in (
        " [part 2]",
        " (after 2024-05-01)",
        " (before 2024-05-01) [part 3]",
        " (2023-01-01 to 2024-05-01)",
    ):
        part = pages.write(tmp_path, groups, name=f"G - general [{CHANNEL}]{behind}.html")
        ((found,), _) = scan(part)
        assert (found.channel_id, found.channel) == (CHANNEL, "general")
    nameless = pages.write(tmp_path, groups, name="page.html")
    _, (aside,) = scan(nameless)
    assert "rename it to NAME [CHANNEL ID].html" in aside.reason


@pytest.mark.parametrize("tail", ["<img class='", "<script>", "<!--", "<a " + "x" * 50])
def test_a_part_without_end_is_damage_and_fills_no_memory(tmp_path: Path, tail: str) -> None:
    url = file(tmp_path)
    page = pages.write(tmp_path, [pages.group(pages.message(1, pages.picture(url)))])
    with page.open("a") as more:
        more.write(tail + "y" * 3_000_000)
    found, aside = scan(page)
    assert len(found) == 1
    assert aside[0].reason.startswith("is damaged; what came before that is imported")


def test_hostile_ids_and_nesting_are_harmless(tmp_path: Path) -> None:
    url = file(tmp_path)
    evil = pages.message(1, pages.picture(url)).replace(str(FIRST_MESSAGE + 1), "../../etc")
    deep = "<div>" * 200_000
    page = pages.write(tmp_path, [evil, deep, pages.group(pages.message(2, pages.picture(url)))])
    found, aside = scan(page)
    assert [one.key.message_id for one in found] == [str(FIRST_MESSAGE + 2)]
    assert aside == []


def test_pages_are_found_in_folders_beside_json(tmp_path: Path) -> None:
    url = file(tmp_path)
    pages.write(tmp_path, [pages.group(pages.message(1, pages.picture(url)))])
    (tmp_path / "notes.html").write_text("<p>no export</p>")
    assert len(list(open_source(tmp_path)())) == 1
    assert len(list(open_source(tmp_path / pages.NAME, kind=Kind.DISCORD, guild="8")())) == 1


@pytest.mark.parametrize(
    ("name", "id_"),
    [
        ("map-1f2e3d4c5b6a7988.png", "media-1f2e3d4c5b6a7988"),
        ("a-b-1F2E3.PNG", "media-1f2e3"),
        ("map-1f2e3", "media-1f2e3"),
        ("map.png", ""),
        ("map-12345678.png", ""),
    ],
)
def test_the_exporters_names_are_understood(name: str, id_: str) -> None:
    assert media_id(name) == id_


def test_a_renamed_file_is_known_by_its_name(tmp_path: Path) -> None:
    url = file(tmp_path, "my map.png")
    page = pages.write(tmp_path, [pages.group(pages.message(1, pages.picture(url)))])
    ((found,), _) = scan(page)
    assert found.key.attachment_id == embedded_id("my map.png")
