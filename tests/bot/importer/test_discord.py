import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bot.importer import discord
from bot.importer.found import Found, SetAside
from bot.links import embedded_id
from bot.pictures import in_payload
from tests.bot.importer.exports import (
    CHANNEL,
    FIRST_MESSAGE,
    GUILD,
    attachment,
    document,
    media,
    message,
    picture_bytes,
    write,
)

PNG = picture_bytes(0)


def scan(export: Path, **options: Any) -> tuple[list[Found], list[SetAside]]:
    items = list(discord.scan(export, **options))
    return (
        [item for item in items if isinstance(item, Found)],
        [item for item in items if isinstance(item, SetAside)],
    )


def one_attachment(folder: Path, url: str, name: str = "map.png", **options: Any) -> Found | str:
    """What becomes of an export with one attachment: the picture, or the reason against it."""
    export = write(folder / "export.json", [message(1, attachments=[attachment(1, url, name)])])
    found, aside = scan(export, **options)
    assert len(found) + len(aside) == 1
    return found[0] if found else aside[0].reason


def test_an_attached_picture(tmp_path: Path) -> None:
    url = media(tmp_path, "map-1f2e3d4c5b6a7988.png", PNG)
    found = one_attachment(tmp_path, url, "SPOILER_map.png")
    assert isinstance(found, Found)
    assert found == Found(
        key=found.key,
        path=(tmp_path / url).resolve(),
        guild_id=GUILD,
        channel_id=CHANNEL,
        user_id="42",
        message_link=f"https://discord.com/channels/{GUILD}/{CHANNEL}/{FIRST_MESSAGE + 1}",
        posted_at=datetime(2024, 5, 1, 8, 1, 0, 123_000, tzinfo=UTC),
        spoiler=True,
        author="Alice",
        channel="map-archive",
        parent_id="150",
        also="media-1f2e3d4c5b6a7988",
    )
    assert (found.key.message_id, found.key.attachment_id) == (str(FIRST_MESSAGE + 1), "5001")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_the_bytes_decide_and_not_the_name(tmp_path: Path, format: str) -> None:  # noqa: A002
    data = picture_bytes(1, format=format)
    url = media(tmp_path, "file-0123456789abcdef.bin", data)
    assert isinstance(one_attachment(tmp_path, url, "file.bin"), Found)


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    url = media(tmp_path, "map.litematic", b"\x1f\x8b schematic")
    gone = "export.json_Files/video.mp4"
    export = write(
        tmp_path / "export.json",
        [message(1, attachments=[attachment(1, url), attachment(2, gone)])],
    )
    assert scan(export) == ([], [])


def test_windows_separators(tmp_path: Path) -> None:
    url = media(tmp_path, "map.png", PNG)
    assert isinstance(one_attachment(tmp_path, url.replace("/", "\\")), Found)


def test_names_that_only_look_encoded(tmp_path: Path) -> None:
    url = media(tmp_path, "100%25 map#1.png", PNG)
    assert isinstance(one_attachment(tmp_path, url), Found)


def test_encoded_names(tmp_path: Path) -> None:
    media(tmp_path, "my map.png", PNG)
    assert isinstance(one_attachment(tmp_path, "export.json_Files/my%20map.png"), Found)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://cdn.discordapp.com/attachments/1/2/map.png?ex=1&is=2&hm=3", "with --media"),
        ("export.json_Files/gone.png", "is missing"),
        ("../outside.png", "outside the export's folder"),
        ("..\\outside.png", "outside the export's folder"),
        ("%2e%2e/outside.png", "outside the export's folder"),
        ("export.json_Files/../../outside.png", "outside the export's folder"),
        ("file:///etc/hostname", "is missing"),
        ("nul\0byte.png", "is missing"),
        ("x" * 5000, "is missing"),
        (".", "is missing"),
    ],
)
def test_pictures_that_are_not_there(tmp_path: Path, url: str, reason: str) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(PNG)
    said = one_attachment(folder, url)
    assert isinstance(said, str)
    assert reason in said


def test_an_absolute_path_outside_is_refused_unless_it_is_named(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "export", tmp_path / "media"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "map.png").write_bytes(PNG)
    url = str(elsewhere / "map.png")
    said = one_attachment(folder, url)
    assert isinstance(said, str)
    assert "--media" in said
    assert isinstance(one_attachment(folder, url, media=elsewhere), Found)


def test_a_moved_media_folder_is_searched_by_name(tmp_path: Path) -> None:
    folder, moved = tmp_path / "export", tmp_path / "moved"
    folder.mkdir()
    moved.mkdir()
    (moved / "map.png").write_bytes(PNG)
    for url in ("export.json_Files/map.png", "C:\\Users\\me\\media\\map.png"):
        found = one_attachment(folder, url, media=moved)
        assert isinstance(found, Found)
        assert found.path == moved / "map.png"


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    assert "outside" in str(one_attachment(folder, "link.png"))
    assert "missing" in str(one_attachment(folder, "loop.png"))


def test_an_error_page_that_was_saved_as_a_picture(tmp_path: Path) -> None:
    url = media(tmp_path, "map.png", b"This content is no longer available.")
    assert "is no picture" in str(one_attachment(tmp_path, url))


def test_a_forwarded_message(tmp_path: Path) -> None:
    url = media(tmp_path, "orig.png", PNG)
    forward = message(
        7,
        reference={"type": "Forward", "messageId": "900", "channelId": "201", "guildId": "100"},
        forwardedMessage={
            "timestamp": "2023-01-01T00:00:00+00:00",
            "content": "orig",
            "attachments": [attachment(9, url, "SPOILER_orig.png")],
            "embeds": [],
            "stickers": [],
        },
    )
    ((found,), aside) = scan(write(tmp_path / "export.json", [forward]))
    assert aside == []
    assert (found.key.message_id, found.key.attachment_id) == (str(FIRST_MESSAGE + 7), "5009")
    assert found.spoiler
    assert found.posted_at.year == 2024  # of the message that can be gone to


def test_embedded_pictures_have_the_bots_own_ids(tmp_path: Path) -> None:
    link, rich = "https://i.imgur.com/x.png", "https://example.org/art.webp"
    local = [media(tmp_path, name, PNG) for name in ("x.png", "art.webp", "video.png")]
    embeds = [
        # A bare link to a picture.
        {
            "title": "",
            "url": link,
            "description": "",
            "thumbnail": {"url": local[0], "canonicalUrl": link, "width": 256, "height": 256},
            "images": [],
            "fields": [],
        },
        # A page with a picture.
        {
            "title": "Art",
            "url": "https://example.org/",
            "image": {"url": local[1], "canonicalUrl": rich},
            "images": [{"url": local[1], "canonicalUrl": rich}],
            "fields": [],
        },
        # A video with a still: no map.
        {
            "title": "Video",
            "url": "https://youtu.be/x",
            "thumbnail": {"url": local[2], "canonicalUrl": "https://i.ytimg.com/x.jpg"},
            "images": [],
            "fields": [],
        },
    ]
    found, aside = scan(write(tmp_path / "export.json", [message(1, embeds=embeds)]))
    assert aside == []
    # What the bot makes of the same message, so that both are one entry.
    payload = {
        "id": str(FIRST_MESSAGE + 1),
        "channel_id": CHANNEL,
        "timestamp": "2024-05-01T10:00:00+00:00",
        "author": {"id": "42", "username": "alice"},
        "embeds": [
            {"type": "image", "url": link, "thumbnail": {"url": link}},
            {"type": "rich", "url": "https://example.org/", "image": {"url": rich}},
        ],
    }
    assert [one.key for one in found] == [one.key for one in in_payload(payload, guild=None)]


@pytest.mark.parametrize(
    ("content", "hidden"),
    [
        ("look: ||https://i.imgur.com/x.png||", True),
        ("||first|| https://i.imgur.com/x.png ||last||", False),
        (None, False),
    ],
)
def test_a_link_behind_bars_is_a_spoiler_as_in_discord(
    tmp_path: Path, content: str | None, *, hidden: bool
) -> None:
    link = "https://i.imgur.com/x.png"
    url = media(tmp_path, "x.png", PNG)
    embed = {"url": link, "thumbnail": {"url": url, "canonicalUrl": link}, "images": []}
    words = message(1, content=content, embeds=[embed])
    forward = message(2, forwardedMessage={"content": content, "embeds": [embed]})
    found, _ = scan(write(tmp_path / "export.json", [words, forward]))
    assert [one.spoiler for one in found] == [hidden, hidden]


def test_a_picture_that_is_a_spoiler_once_is_one(tmp_path: Path) -> None:
    url = media(tmp_path, "map.png", PNG)
    names = ("map.png", "SPOILER_map.png", "map.png")
    thrice = message(1, attachments=[attachment(1, url, name) for name in names])
    ((found,), _) = scan(write(tmp_path / "export.json", [thrice]))
    assert found.spoiler


def test_embeds_of_older_exports_have_stable_ids_too(tmp_path: Path) -> None:
    link = "https://i.imgur.com/x.png"
    url = media(tmp_path, "x.png", PNG)
    embed = {"title": "", "url": link, "thumbnail": {"url": url}, "images": []}
    ((found,), _) = scan(write(tmp_path / "export.json", [message(1, embeds=[embed])]))
    assert found.key.attachment_id == embedded_id(link)


def test_the_same_picture_twice_in_a_message_is_one(tmp_path: Path) -> None:
    url = media(tmp_path, "map.png", PNG)
    both = message(1, attachments=[attachment(1, url), attachment(1, url)])
    found, _ = scan(write(tmp_path / "export.json", [both]))
    assert len(found) == 1


def test_direct_messages_have_no_guild(tmp_path: Path) -> None:
    url = media(tmp_path, "map.png", PNG)
    export = write(
        tmp_path / "export.json",
        [message(1, attachments=[attachment(1, url)])],
        guild={"id": "0", "name": "Direct Messages", "iconUrl": ""},
    )
    ((found,), _) = scan(export)
    assert found.guild_id == ""
    assert found.message_link.startswith(f"https://discord.com/channels/@me/{CHANNEL}/")


def test_a_date_that_is_missing_comes_from_the_id(tmp_path: Path) -> None:
    url = media(tmp_path, "map.png", PNG)
    messages = [
        message(n, timestamp=stamp, attachments=[attachment(n, url)])
        for n, stamp in enumerate(["", None, "yesterday", "9999-99-99"])
    ]
    found, _ = scan(write(tmp_path / "export.json", messages))
    born = datetime(2015, 1, 1, tzinfo=UTC) + timedelta(milliseconds=FIRST_MESSAGE >> 22)
    assert [one.posted_at for one in found] == [born] * 4


def test_a_truncated_export_gives_what_it_has(tmp_path: Path) -> None:
    url = media(tmp_path, "map.png", PNG)
    text = json.dumps(document(message(n, attachments=[attachment(n, url)]) for n in range(50)))
    export = tmp_path / "export.json"
    export.write_text(text[: len(text) * 3 // 5])
    found, (aside,) = scan(export)
    assert 25 <= len(found) < 35
    assert "cut off" in aside.reason
    assert aside.name == str(export)


@pytest.mark.parametrize(
    "messages",
    [
        [None, 3, "x", [], {}],
        [{"id": 5, "attachments": "none", "embeds": {"a": 1}}],
        [message(1, attachments=[None, {"id": "1"}, {"url": "x"}, {"id": [], "url": {}}])],
        [message(1, author=None, embeds=[{"images": [None]}, {"thumbnail": "x"}])],
        [message(1, forwardedMessage=[], attachments=None)],
    ],
)
def test_nonsense_in_messages_stops_nothing(tmp_path: Path, messages: Any) -> None:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(document([]) | {"messages": messages}))
    assert scan(path) == ([], [])


def test_deep_nesting_is_no_way_to_stop_the_importer(tmp_path: Path) -> None:
    url = media(tmp_path, "map.png", PNG)
    text = json.dumps(document([message(1, attachments=[attachment(1, url)], forwardedMessage=0)]))
    path = tmp_path / "export.json"
    for nested in (
        "[" * 50_000 + "]" * 50_000,
        '{"forwardedMessage":' * 50_000 + "0" + "}" * 50_000,
    ):
        path.write_text(text.replace('"forwardedMessage": 0', f'"forwardedMessage": {nested}'))
        found, (aside,) = scan(path)
        assert found == []
        assert "damaged" in aside.reason


def test_what_has_no_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = media(tmp_path, "map.png", PNG)
    path = tmp_path / "export.json"
    # A value as long as a file: the parser would hold all of it, and be slow about it.
    endless = "x" * 5_000_000
    good = message(1, attachments=[attachment(1, url)])
    found, (aside,) = scan(write(path, [good, good | {"content": endless}, good]))
    assert (len(found), "damaged" in aside.reason) == (1, True)
    assert not discord.is_export(write(path, [good], guild={"id": GUILD, "name": endless}))

    monkeypatch.setattr(discord, "_MOST_PARTS", 1000)
    crowd = {"reactions": [{"users": [{"id": str(n)} for n in range(1000)]}]}
    many = {"attachments": [attachment(n, url) for n in range(1000)]}
    write(path, [message(1, attachments=[attachment(1, url)], **crowd), message(2, **many)])
    found, (aside,) = scan(path)
    assert ([one.key.attachment_id for one in found], "damaged" in aside.reason) == (["5001"], True)


def test_a_message_without_an_id_is_set_aside(tmp_path: Path) -> None:
    url = media(tmp_path, "map.png", PNG)
    bad = [message(n, attachments=[attachment(n, url)]) for n in range(3)]
    for one, wrong in zip(bad, (None, "../../x", "1" * 400), strict=True):
        one["id"] = wrong
    found, aside = scan(write(tmp_path / "export.json", bad))
    assert found == []
    assert len(aside) == 3


def test_strange_characters_in_names(tmp_path: Path) -> None:
    url = media(tmp_path, "map.png", PNG)
    author = {"id": "42", "name": "a\ud800b" + "x" * 5000, "nickname": None}
    ((found,), _) = scan(
        write(
            tmp_path / "export.json",
            [message(1, author=author, attachments=[attachment(1, url)])],
        )
    )
    assert found.author.encode()  # storable
    assert len(found.author) == 200


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    url = media(tmp_path, "map.png", PNG)
    export = write(tmp_path / "export.json", [message(1, attachments=[attachment(1, url)])])
    export.write_bytes(b"\xef\xbb\xbf" + export.read_bytes())
    found, aside = scan(export)
    assert (len(found), aside) == (1, [])


def test_telling_exports_from_other_json(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    write(file, [])
    assert discord.is_export(file)
    for text in ("", "nonsense", "\xff", "[]", '{"messages": []}', '{"guild": {"id": "x"}}', "{}"):
        file.write_text(text, encoding="latin-1")
        assert not discord.is_export(file), text
    found, (aside,) = scan(file)
    assert found == []
    assert "no export" in aside.reason
