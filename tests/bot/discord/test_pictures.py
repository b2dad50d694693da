"""Which parts of a message count as its pictures."""

from typing import Any

import pytest

from bot.pictures import in_payload

ATTACHMENT = {
    "id": "5",
    "filename": "map.png",
    "content_type": "image/png",
    "url": "https://cdn.discordapp.com/attachments/1/5/map.png?ex=1&is=2&hm=3",
    "width": 128,
    "height": 256,
}


def message(**parts: Any) -> dict[str, Any]:
    return {
        "id": "10",
        "channel_id": "20",
        "author": {"id": "30", "username": "alice", "global_name": None},
        "timestamp": "2024-05-01T10:00:00+00:00",
        **parts,
    }


def test_an_attachment_is_kept_with_a_lasting_link() -> None:
    (found,) = in_payload(message(attachments=[ATTACHMENT]), guild=None)
    assert found.key.message_id == "10"
    assert found.key.attachment_id == "5"
    assert found.fetch_url == ATTACHMENT["url"]
    assert found.image_url == "https://cdn.discordapp.com/attachments/1/5/map.png"
    assert (found.width, found.height, found.spoiler) == (128, 256, False)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"content_type": "video/mp4"}, False),
        ({"content_type": None}, True),
        ({"flags": 1 << 1}, False),
        ({"width": None, "height": None}, True),
    ],
)
def test_covers_and_other_files_are_no_pictures(change: dict[str, Any], *, kept: bool) -> None:
    attachment = {k: v for k, v in (ATTACHMENT | change).items() if v is not None}
    assert bool(in_payload(message(attachments=[attachment]), guild=None)) is kept


@pytest.mark.parametrize("change", [{"flags": 1 << 3}, {"filename": "SPOILER_map.png"}])
def test_both_ways_of_marking_a_spoiler_count(change: dict[str, Any]) -> None:
    (found,) = in_payload(message(attachments=[ATTACHMENT | change]), guild=None)
    assert found.spoiler


def test_an_embedded_picture_is_fetched_from_discords_copy_and_named_by_its_address() -> None:
    media = {"url": "https://maps.example/a.png", "proxy_url": "https://media.discordapp.net/x"}
    link = {"type": "image", "url": media["url"], "thumbnail": media}
    rich = {"type": "rich", "image": media, "thumbnail": {"url": "https://maps.example/icon.png"}}
    article = {"type": "article", "thumbnail": {"url": "https://maps.example/icon.png"}}
    found = in_payload(message(embeds=[link, rich, article]), guild=None)
    assert [one.fetch_url for one in found] == ["https://media.discordapp.net/x"]
    assert found[0].image_url == media["url"]


@pytest.mark.parametrize("url", ["attachment://map.png", "javascript:alert(1)", ""])
def test_an_embed_that_leads_nowhere_is_left_alone(url: str) -> None:
    assert in_payload(message(embeds=[{"type": "rich", "image": {"url": url}}]), guild=None) == []


def test_a_forwarded_picture_belongs_to_the_message_that_forwards_it() -> None:
    snapshots = [{"message": {"attachments": [ATTACHMENT], "embeds": []}}]
    (found,) = in_payload(message(message_snapshots=snapshots), guild=None)
    assert found.key.message_id == "10"


@pytest.mark.parametrize(
    ("author", "member", "name"),
    [
        ({"global_name": "Alice A."}, {"nick": "Ally"}, "Ally"),
        ({"global_name": "Alice A."}, {"nick": None}, "Alice A."),
        ({"global_name": None}, {}, "alice"),
    ],
)
def test_the_author_is_named_as_the_guild_knows_them(
    author: dict[str, Any], member: dict[str, Any], name: str
) -> None:
    payload = message(attachments=[ATTACHMENT], member=member)
    payload["author"] |= author
    (found,) = in_payload(payload, guild=None)
    assert found.author == name
