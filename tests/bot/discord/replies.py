"""Draws real replies for the README, and measures how long members wait for one.

    make replies

The bot, the server and the model are the real ones; Discord is the loopback. What is drawn is what
arrived there: the text, the picture sheet and the buttons.
"""

import argparse
import asyncio
import io
import re
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import disnake.http
import numpy as np
from PIL import Image, ImageDraw

from benchmarks.sample_archive import map_pixels, sample_maps
from benchmarks.server_process import run_server
from bot.lettering import font_of
from exporter.training.scenes import Kind, render_file
from inference.settings import BUNDLED_MODEL
from tests.bot.discord.conftest import Bot, encoded
from tests.bot.discord.loopback import Answer, Discord

BOB = 43
FIRST_POST = datetime(2025, 3, 1, 18, tzinfo=UTC)
CHANNELS = {10: "map-archive", 11: "map-chat"}
NAMES = ("Nele", "quartzquartz", "moss", "Tomasz", "Aria", "_Pixel_")
WIDTH = 620
GROUND, TEXT, FAINT, LINK, BUTTON = "#313338", "#dbdee1", "#949ba4", "#c9cdfb", "#4e5058"
MENTION = "#3c4270"


async def main(out: Path, searches: int) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        run_server(BUNDLED_MODEL) as server,
    ):
        async with Discord() as discord:
            disnake.http.Route.BASE = discord.api
            discord.add_guild(1)
            for number, name in CHANNELS.items():
                discord.channels[discord.add_channel(1, number)]["name"] = name
            bot = Bot(Path(folder), discord, server)
            async with bot.running():
                await _scene(bot, discord, out)
                await _measure(discord, searches)


async def _scene(bot: Bot, discord: Discord, out: Path) -> None:
    maps = sample_maps()
    for number, sample in enumerate(maps):
        picture = encoded(Image.fromarray(map_pixels(sample)), "PNG")
        name = NAMES[number % len(NAMES)]
        await discord.post(
            10 + number % 2,
            picture,
            name=name,
            author=100 + number,
            spoiler=number == 2,
            sent_at=FIRST_POST + timedelta(days=9 * number),
        )
    await bot.settled(len(maps))
    # Which map, and which view of it: one of the second hides the spoiler among its answers.
    asked = {"reply": (8, 7), "reply-spoiler": (2, 5)}
    for file, (number, view) in asked.items():
        picture, _ = render_file(map_pixels(maps[number]), np.random.default_rng(view), Kind.GOOD)
        answer = await discord.use_find(picture, member=BOB, channel_id=10)
        assert ("(spoiler)" in answer.content) == (number == 2), "another view shows what it should"
        drawn = draw(answer)
        drawn.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(
            out / f"{file}.png", optimize=True
        )
        print(f"{out / f'{file}.png'}: {drawn.width} x {drawn.height}")
        print(answer.content)


async def _measure(discord: Discord, searches: int) -> None:
    """From the command to the answer, the model included; one after the other."""
    maps = sample_maps()
    pictures = [
        render_file(map_pixels(sample), np.random.default_rng(number), Kind.GOOD)[0]
        for number, sample in enumerate(maps[:8])
    ]
    took_ms = []
    for number in range(searches):
        began = time.perf_counter()
        answer = await discord.use_find(pictures[number % 8], member=BOB, channel_id=10)
        took_ms.append((time.perf_counter() - began) * 1000)
        assert len(answer.links) == 3
    p50, p95 = np.percentile(took_ms, [50, 95])
    print(
        f"{searches} searches, warm: p50 {p50:.0f} ms, p95 {p95:.0f} ms, max {max(took_ms):.0f} ms"
    )


def draw(answer: Answer) -> Image.Image:
    """The answer, roughly as Discord shows it."""
    with Image.open(io.BytesIO(next(iter(answer.files.values())))) as sheet:
        width = WIDTH - 32
        shown = sheet.convert("RGB").resize(
            (width, round(sheet.height * width / sheet.width)), Image.Resampling.LANCZOS
        )
    lines = [_spoken(line) for line in answer.content.splitlines()]
    labels = [
        [c["label"] for c in row["components"] if c["type"] == 2] for row in answer.components
    ]
    height = 20 + 24 * len(lines) + 10 + shown.height + 14 + 44 * len(labels)
    image = Image.new("RGB", (WIDTH, height), GROUND)
    pen = ImageDraw.Draw(image)
    y = 16
    for line in lines:
        _write(pen, 16, y, line)
        y += 24
    y += 8
    image.paste(shown, (16, y))
    y += shown.height + 12
    for row in labels:
        x = 16
        for label in row:
            length = round(font_of(15).getlength(label)) + 28
            pen.rounded_rectangle((x, y, x + length, y + 34), 8, fill=BUTTON)
            pen.text((x + length / 2, y + 17), label, "#ffffff", font=font_of(15), anchor="mm")
            x += length + 8
        y += 44
    return image


def _spoken(line: str) -> str:
    """The line with mentions and moments as the member reads them."""
    line = re.sub(r"<#(\d+)>", lambda m: f"#{CHANNELS.get(int(m[1]), m[1])}", line)
    line = re.sub(r"<t:(\d+):D>", lambda m: _day(int(m[1])), line)
    return re.sub(r"\\([*_~|`\\])", r"\1", line)


def _day(moment_s: int) -> str:
    moment = datetime.fromtimestamp(moment_s, UTC)
    return f"{moment.day} {moment:%B %Y}"


def _write(pen: ImageDraw.ImageDraw, x: float, y: float, line: str) -> None:
    small = line.startswith("-# ")
    font = font_of(13 if small else 16)
    for number, part in enumerate(line.removeprefix("-# ").split("**")):
        colour = FAINT if small else "#ffffff" if number % 2 else TEXT
        for piece in re.split(r"(#[\w-]+)", part):
            length = font.getlength(f"{piece}.") - font.getlength(".")
            if piece.startswith("#"):
                pen.rounded_rectangle((x - 2, y - 1, x + length + 2, y + 20), 3, fill=MENTION)
            pen.text((x, y), piece, LINK if piece.startswith("#") else colour, font=font)
            if number % 2:  # bold
                pen.text((x + 0.6, y), piece, colour, font=font)
            x += length


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--searches", type=int, default=100)
    given = parser.parse_args()
    asyncio.run(main(given.out, given.searches))
