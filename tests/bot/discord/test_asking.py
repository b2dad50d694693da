"""The ways to ask: a message, a file, a link, words; and what is said where one does not work."""

import io

import pytest
from PIL import Image

from bot.settings import BotSettings
from tests.bot.discord.conftest import Bot, encoded, map_art, photographed
from tests.bot.discord.loopback import Answer, Discord, Json
from tests.bot.discord.toy import ToyServer

BOB = 43


def link(message: Json) -> str:
    return f"https://discord.com/channels/1/{message['channel_id']}/{message['id']}"


def with_url_search(bot: Bot, where: str) -> None:
    bot.settings = BotSettings(**(bot.settings.model_dump() | {"url_search": where}))


async def find(discord: Discord, **what: object) -> Answer:
    return await discord.use_find(member=BOB, channel_id=10, **what)  # type: ignore[arg-type]


async def test_one_thing_is_asked_for_at_a_time(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        none = await find(discord)
        two = await find(discord, image=map_art(1), text="a dragon")
        every = await find(discord, image=map_art(1), url="https://a.example/", text="a dragon")
    assert none.content == two.content == every.content
    assert none.content == "Give one thing to look for: an image, a url or a text."
    assert none.ephemeral


async def test_a_link_to_a_picture_is_looked_up(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        post = await discord.post(10, map_art(1))
        await bot.settled(1)
        url = discord.sign(discord.upload(10, photographed(map_art(1))))["url"]
        answer = await find(discord, url=f" {url} ")
    assert answer.links == [link(post)]
    assert answer.content.startswith("**This map was posted before:**")


async def test_a_link_to_a_message_is_looked_up_like_the_message(
    bot: Bot, discord: Discord
) -> None:
    discord.add_channel(1, 11, hidden_from=BOB)
    discord.add_guild(2)
    discord.add_channel(2, 20)
    async with bot.running():
        asked = await discord.post(10, map_art(1))
        same = await discord.post(10, map_art(1))
        hidden = await discord.post(11, map_art(1))
        abroad = await discord.post(20, map_art(1))
        await bot.settled(4)
        answer = await find(discord, url=link(asked))
        by_ptb = await find(discord, url=link(asked).replace("https://", "https://ptb."))
        refused = [
            await find(discord, url=link(hidden)),
            await find(discord, url=link(hidden).replace("/11/", "/10/")),
            await find(discord, url=link(abroad).replace("/channels/1/", "/channels/2/")),
            await find(discord, url=link(abroad)),
            await find(discord, url="https://discord.com/channels/1/10/1"),
        ]
    assert answer.links == by_ptb.links == [link(same)]
    for one in refused:
        assert one.content == "That message is gone, or is not for you to read."
        assert not one.files


NOT_REACHED = "The picture's host cannot be reached."
NO_ADDRESS = "The link is no web address."
NOT_LISTED = "Pictures are not fetched from maps.example."
TURNED_OFF = "Links are turned off in this bot."


@pytest.mark.parametrize(
    ("where", "refused"),
    [
        (
            "anywhere",
            {
                "http://127.0.0.1/a.png": NOT_REACHED,
                "http://169.254.169.254/latest/": NOT_REACHED,
                "http://localhost/a.png": NOT_REACHED,
                "ftp://maps.example/a.png": NO_ADDRESS,
                "a dragon": NO_ADDRESS,
            },
        ),
        ("discord", {"https://maps.example/a.png": NOT_LISTED, "https://[": NO_ADDRESS}),
        (
            "off",
            {
                "https://maps.example/a.png": TURNED_OFF,
                "https://discord.com/channels/1/10/1": TURNED_OFF,
            },
        ),
    ],
)
async def test_a_link_that_leads_where_it_must_not_is_said_so(
    bot: Bot, discord: Discord, where: str, refused: dict[str, str]
) -> None:
    with_url_search(bot, where)
    async with bot.running():
        for url, said in refused.items():
            answer = await find(discord, url=url)
            assert said in answer.content
            assert not answer.files


async def test_a_dead_link_is_said_to_be_dead(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        discord.links_expire_at_s = 1
        url = discord.sign(discord.upload(10, map_art(1)))["url"]
        answer = await find(discord, url=url)
    assert answer.content.startswith("This picture is no longer there: its link has expired")


async def test_words_find_maps_where_the_model_reads_text(
    bot: Bot, discord: Discord, server: ToyServer
) -> None:
    server.words["a *red* @everyone dragon"] = photographed(map_art(2))
    async with bot.running():
        posts = [await discord.post(10, map_art(seed)) for seed in range(3)]
        await bot.settled(3)
        answer = await find(discord, text="a *red* @everyone dragon")
        shared = await discord.press(answer, "Share", member=BOB, channel_id=10)
    assert answer.links[0] == link(posts[2])
    heading, first, *_ = answer.content.splitlines()
    assert heading == "**The maps that fit “a \\*red\\* @\u200beveryone dragon” best:**"
    assert "similarity" not in first, "scores of words mean something else"
    assert "same map" not in answer.content
    assert list(answer.files) == ["maps.jpg"]
    assert shared.links == answer.links
    assert shared.content.splitlines()[1] == heading


async def test_words_are_declined_where_the_model_reads_none(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        answer = await find(discord, text="a dragon")
    assert answer.content.startswith("The model of this bot reads no text.")


async def test_the_first_frame_of_an_animation_is_looked_up(bot: Bot, discord: Discord) -> None:
    frames = [Image.open(io.BytesIO(map_art(seed))) for seed in (1, 2)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    async with bot.running():
        post = await discord.post(10, map_art(1))
        await discord.post(10, map_art(2))
        await bot.settled(2)
        answer = await find(discord, image=file.getvalue())
    assert answer.links[0] == link(post)


async def test_pictures_of_any_shape_are_looked_up_and_drawn(bot: Bot, discord: Discord) -> None:
    art = Image.open(io.BytesIO(map_art(1)))
    pictures = [encoded(art.resize(size), "PNG") for size in ((9_000, 40), (40, 9_000), (1, 1))]
    async with bot.running():
        for picture in pictures:
            await discord.post(10, picture)
        await bot.settled(3)
        answers = [await find(discord, image=picture) for picture in pictures]
    for answer in answers:
        assert len(answer.links) == 3
        assert max(Image.open(io.BytesIO(answer.files["maps.jpg"])).size) < 1400


async def test_a_message_of_ten_pictures_offers_all_of_them(bot: Bot, discord: Discord) -> None:
    async with bot.running():
        posts = [await discord.post(10, map_art(seed)) for seed in range(10)]
        many = await discord.post(10, *(map_art(seed) for seed in range(10)))
        await bot.settled(11)
        answer = await discord.use_message_command(many, member=BOB)
        select = answer.select
        last = await discord.choose(
            select["custom_id"], select["options"][9]["value"], member=BOB, channel_id=10
        )
    assert [option["label"] for option in select["options"]][::9] == [
        "Picture 1 of 10",
        "Picture 10 of 10",
    ]
    assert answer.links[0] == link(posts[0])
    assert last.links[0] == link(posts[9])


async def test_a_forward_of_a_message_that_was_deleted_still_works(
    bot: Bot, discord: Discord
) -> None:
    """Snapshots outlive what they were made of, and so do their pictures."""
    async with bot.running():
        original = await discord.post(10, map_art(1))
        forward = await discord.post(10, map_art(1), forwarded=True)
        await bot.settled(2)
        await discord.delete(original)
        await bot.settled(1)
        answer = await find(discord, image=photographed(map_art(1)))
        question = await discord.use_message_command(forward, member=BOB)
    assert answer.links == [link(forward)]
    assert question.content.startswith("Nothing found")


async def test_a_link_that_is_unfurled_late_is_indexed_then(bot: Bot, discord: Discord) -> None:
    upload = discord.upload(10, map_art(1))
    media = {"url": "https://maps.example/a.png", "proxy_url": discord.sign(upload)["url"]}
    embed = {"type": "image", "url": media["url"], "thumbnail": media | {"width": 64, "height": 64}}
    async with bot.running():
        post = await discord.post(10, content="||https://maps.example/a.png||")
        await discord.edit(post, embeds=[embed])
        await bot.settled(1)
        answer = await find(discord, image=photographed(map_art(1)))
    assert answer.links == [link(post)]
    assert "(spoiler)" in answer.content, "it stands behind bars"
