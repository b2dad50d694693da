"""Draws the sample archive that `mapseek demo` searches: `python -m benchmarks.sample_archive`.

Every map is procedural art from `exporter.training`, so the archive is the project's own and needs
no credit. It has the shape of a DiscordChatExporter JSON export with media: some posts are clean
renders, some are screenshots, some messages hold two pictures, one picture is a spoiler.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exporter.training.art import FAMILIES
from exporter.training.art import draw as draw_art
from exporter.training.mapart import MAP_SIDE, Blocks, Dither, quantise
from exporter.training.scenes import Kind, render_file

SAMPLE_DIR = Path(__file__).with_name("sample")
EXPORT_NAME = "Cartographers - Archive - map-archive [410000000000000002].json"

_GUILD = {"id": "410000000000000001", "name": "Cartographers", "iconUrl": ""}
_CHANNEL = {
    "id": "410000000000000002",
    "type": "GuildTextChat",
    "categoryId": "410000000000000003",
    "category": "Archive",
    "name": "map-archive",
    "topic": "Every map that a member finished. Post the render and, if you like, a screenshot.",
}
_AUTHORS = (
    "lapis_lena",
    "OldCartographer",
    "redstone_ravi",
    "Nele",
    "quartzquartz",
    "moss",
    "Tomasz",
)
# These messages hold the render and a screenshot of it.
_POSTED_TWICE = frozenset({4, 15, 26, 37})
_FIRST_POST = datetime(2025, 3, 1, 18, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleMap:
    """One map of the archive.

    Attributes:
        title: What its author calls it.
        family: The family of artwork that it is drawn from.
        seed: The artwork's number.
        shape: Maps across and down.
        blocks: What it is built of.
        dither: How its colours are mixed.
        screenshot: Whether it was posted as a screenshot instead of a render.
    """

    title: str
    family: str
    seed: int
    shape: tuple[int, int]
    blocks: Blocks
    dither: Dither
    screenshot: bool


def sample_maps() -> list[SampleMap]:
    """The archive's maps, two of each of most families, in the order of their posts."""
    shapes = ((1, 1), (1, 1), (2, 1), (1, 1), (1, 2), (2, 2), (1, 1))
    blocks = (Blocks.STAIRCASE, Blocks.FLAT, Blocks.STAIRCASE, Blocks.CARPET)
    dithers = (Dither.FLOYD_STEINBERG, Dither.NONE, Dither.FLOYD_STEINBERG, Dither.ORDERED)
    return [
        SampleMap(
            title=f"{family.replace('_', ' ').capitalize()} no. {part + 1}",
            family=family,
            seed=7_000 + 10 * part + number,
            shape=shapes[(number + 3 * part) % len(shapes)],
            blocks=blocks[(number + part) % len(blocks)],
            dither=dithers[(number + 2 * part) % len(dithers)],
            screenshot=(number + part) % 3 == 0,
        )
        for part in range(2)
        for number, family in enumerate(sorted(FAMILIES))
        if part == 0 or number % 8 != 0
    ]


def map_pixels(sample: SampleMap) -> NDArray[np.uint8]:
    """The map as the game stores it: uint8 RGB [128 * down, 128 * across, 3]."""
    across, down = sample.shape
    art = draw_art(sample.seed, (across * MAP_SIDE, down * MAP_SIDE), family=sample.family)
    return quantise(art, sample.blocks, sample.dither)


def draw(folder: Path) -> Path:
    """Writes the export and its pictures into `folder` and returns the JSON file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    media = folder / f"{EXPORT_NAME}_Files"
    media.mkdir(exist_ok=True)
    messages: list[dict[str, object]] = []
    for number, sample in enumerate(sample_maps()):
        files = [_screenshot(sample, number)] if sample.screenshot else [_render(sample)]
        if number in _POSTED_TWICE:
            files = [_render(sample), _screenshot(sample, number)]
        messages.append(_message(sample, number, files, media))
    document = {
        "guild": _GUILD,
        "channel": _CHANNEL,
        "dateRange": {"after": None, "before": None},
        "exportedAt": _timestamp(_FIRST_POST + timedelta(days=400)),
        "messages": messages,
        "messageCount": len(messages),
    }
    path = folder / EXPORT_NAME
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def _render(sample: SampleMap) -> tuple[str, bytes]:
    image = Image.fromarray(map_pixels(sample)).quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "map.png", buffer.getvalue()


def _screenshot(sample: SampleMap, number: int) -> tuple[str, bytes]:
    data, suffix = render_file(map_pixels(sample), np.random.default_rng(number), Kind.POST)
    return f"screenshot{suffix}", data


def _message(
    sample: SampleMap, number: int, files: list[tuple[str, bytes]], media: Path
) -> dict[str, object]:
    message_id = 420000000000000000 + number * 1_000
    author = _AUTHORS[number * 5 % len(_AUTHORS)]
    attachments = []
    for part, (name, data) in enumerate(files):
        shown = f"SPOILER_{name}" if sample.family == "creatures" else name
        stem, extension = shown.rsplit(".", 1)
        stored = f"{stem}-{hashlib.sha256(data).hexdigest()[:16].upper()}.{extension}"
        (media / stored).write_bytes(data)
        attachments.append(
            {
                "id": str(message_id + 100 + part),
                "url": f"{media.name}/{stored}",
                "fileName": shown,
                "fileSizeBytes": len(data),
            }
        )
    across, down = sample.shape
    return {
        "id": str(message_id),
        "type": "Default",
        "timestamp": _timestamp(_FIRST_POST + timedelta(days=8 * number, minutes=37 * number)),
        "timestampEdited": None,
        "callEndedTimestamp": None,
        "isPinned": False,
        "content": f"{sample.title}, {across}x{down}, {sample.blocks}",
        "author": {
            "id": str(430000000000000000 + _AUTHORS.index(author)),
            "name": author,
            "discriminator": "0000",
            "nickname": author,
            "color": None,
            "isBot": False,
            "roles": [],
            "avatarUrl": "",
        },
        "attachments": attachments,
        "embeds": [],
        "stickers": [],
        "reactions": [],
        "mentions": [],
        "inlineEmojis": [],
    }


def _timestamp(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


if __name__ == "__main__":
    print(f"wrote {draw(SAMPLE_DIR)}")
