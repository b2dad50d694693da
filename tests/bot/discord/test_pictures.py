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


def gallery(*items: dict[str, Any]) -> dict[str, Any]:
    return {"type": 12, "items": list(items)}


def media(name: str, **parts: Any) -> dict[str, Any]:
    url = f"https://maps.example/{name}.png"
    return {"url": url, "proxy_url": f"https://media.discordapp.net/{name}", **parts}


def test_pictures_laid_out_as_components_are_found_however_deep_they_stand() -> None:
    section = {"type": 9, "components": [], "accessory": {"type": 11, "media": media("thumb")}}
    button = {"type": 9, "components": [], "accessory": {"type": 2, "style": 5}}
    inside = [section, button, gallery({"media": media("a")}, {"media": media("b")})]
    container = {"type": 17, "components": [*inside, {"type": 10, "content": "words"}]}
    found = in_payload(message(components=[container, gallery({"media": media("c")})]), guild=None)
    assert [one.image_url.rsplit("/")[-1] for one in found] == [
        "thumb.png", "a.png", "b.png", "c.png",
    ]  # fmt: skip
    assert found[0].fetch_url == "https://media.discordapp.net/thumb"
    assert not any(one.spoiler for one in found)


def test_an_upload_in_a_gallery_keeps_its_id_and_its_signed_link() -> None:
    upload = media("x", attachment_id="77", url=ATTACHMENT["url"], width=128, height=256)
    (found,) = in_payload(message(components=[gallery({"media": upload})]), guild=None)
    assert found.attachment_id == "77"
    assert found.fetch_url == ATTACHMENT["url"]
    assert found.image_url == "https://cdn.discordapp.com/attachments/1/5/map.png"
    assert (found.width, found.height) == (128, 256)


@pytest.mark.parametrize(
    "component",
    [
        gallery({"media": media("a"), "spoiler": True}),
        {"type": 9, "accessory": {"type": 11, "media": media("a"), "spoiler": True}},
        {"type": 17, "spoiler": True, "components": [gallery({"media": media("a")})]},
        gallery({"media": media("a")}, {"media": media("a"), "spoiler": True}),
        gallery(
            {"media": media("a", attachment_id="1", url="https://cdn.example/1/SPOILER_a.png")}
        ),
    ],
)
def test_components_have_spoilers_of_their_own(component: dict[str, Any]) -> None:
    (found,) = in_payload(message(components=[component]), guild=None)
    assert found.spoiler


def test_a_video_in_a_gallery_is_no_picture() -> None:
    film = {"media": media("a", content_type="video/mp4")}
    assert in_payload(message(components=[gallery(film)]), guild=None) == []


@pytest.mark.parametrize(
    ("content", "spoiler"),
    [("||https://maps.example/a.png||", True), ("||dragon|| https://maps.example/a.png", False)],
)
def test_a_link_behind_bars_is_a_spoiler(content: str, *, spoiler: bool) -> None:
    embed = {"type": "image", "url": media("a")["url"], "thumbnail": media("a")}
    (found,) = in_payload(message(content=content, embeds=[embed]), guild=None)
    assert found.spoiler is spoiler


def test_a_message_that_is_empty_of_everything_has_no_pictures() -> None:
    empty = message(content=None, attachments=None, embeds=None, components=None)
    assert in_payload(empty, guild=None) == []


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
