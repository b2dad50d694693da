"""The whole: bot, real server, bundled model and embedded archive, asked with bad pictures."""

import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from benchmarks.sample_archive import map_pixels, sample_maps
from benchmarks.server_process import RunningServer, run_server
from exporter.training.scenes import Kind, render_file
from inference.settings import BUNDLED_MODEL
from tests.bot.discord.conftest import Bot, encoded
from tests.bot.discord.loopback import Answer, Discord, Json

BOB = 43
COUNT = 8


@cache
def pixels(number: int) -> NDArray[np.uint8]:
    return map_pixels(sample_maps()[number])


def link(message: Json) -> str:
    return f"https://discord.com/channels/1/{message['channel_id']}/{message['id']}"


def render(number: int) -> bytes:
    return encoded(Image.fromarray(pixels(number)), "PNG")


def reposted(number: int) -> bytes:
    """Shrunk, darkened a little and saved as a JPEG, as a picture is that went through a chat."""
    image = Image.fromarray(pixels(number))
    small = image.resize((image.width * 3 // 4, image.height * 3 // 4))
    return encoded(ImageEnhance.Brightness(small).enhance(0.9), "JPEG")


def screenshot(number: int) -> bytes:
    return render_file(pixels(number), np.random.default_rng(number), Kind.GOOD)[0]


@pytest.fixture(scope="module")
def model_server() -> Iterator[RunningServer]:
    with run_server(BUNDLED_MODEL) as running:
        yield running


@pytest.fixture
def bot(tmp_path: Path, discord: Discord, model_server: RunningServer) -> Bot:
    return Bot(tmp_path, discord, model_server)


async def test_maps_are_found_by_what_became_of_them(bot: Bot, discord: Discord) -> None:
    discord.add_channel(1, 11, hidden_from=BOB)
    async with bot.running():
        posts = [await discord.post(10, render(number)) for number in range(COUNT)]
        hidden = [await discord.post(11, render(number)) for number in range(COUNT)]
        await bot.settled(2 * COUNT)

        async def ask(picture: bytes) -> Answer:
            return await discord.use_find(picture, member=BOB, channel_id=10)

        again = [await ask(reposted(number)) for number in range(COUNT)]
        seen = [await ask(screenshot(number)) for number in range(4)]
    for answer in (*again, *seen):
        assert len(answer.links) == len(set(answer.links)) == 3
        assert not set(answer.links) & set(map(link, hidden))
        with Image.open(io.BytesIO(answer.files["maps.jpg"])) as sheet:
            assert sheet.size == (1252, 383)
    assert [answer.links[0] for answer in again] == list(map(link, posts))
    assert sum(link(post) in answer.links for answer, post in zip(seen, posts, strict=False)) >= 3


async def test_hostile_files_are_refused_in_a_sentence(bot: Bot, discord: Discord) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))
    files = [bomb, render(0)[:100], render(0)[:8] + bytes(500), b"GIF89a"]
    async with bot.running():
        await discord.post(10, render(0))
        await bot.settled(1)
        answers = [await discord.use_find(one, member=BOB, channel_id=10) for one in files]
        after = await discord.use_find(render(0), member=BOB, channel_id=10)
    for answer in answers:
        assert answer.content.startswith("This cannot be looked up: ")
        assert "(Reference: `" in answer.content
        assert "Traceback" not in answer.content
        assert not answer.files
    assert len(after.links) == 1


async def test_an_animation_is_known_by_its_first_frame(bot: Bot, discord: Discord) -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(pixels(number)).resize((128, 128)) for number in (3, 4, 5)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0)
    async with bot.running():
        moving = await discord.post(10, file.getvalue())
        others = [await discord.post(10, render(number)) for number in (0, 1, 2, 4, 5)]
        await bot.settled(1 + len(others))
        answer = await discord.use_find(reposted(3), member=BOB, channel_id=10)
    assert answer.links[0] == link(moving)
