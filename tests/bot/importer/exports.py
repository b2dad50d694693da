"""Writes folders as DiscordChatExporter's `--format Json --media` does."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GUILD = "100"
CHANNEL = "200"
FIRST_MESSAGE = 1_200_000_000_000_000_000


def picture_bytes(seed: int, *, format: str = "PNG", side: int = 16) -> bytes:  # noqa: A002 - Pillow's name
    """A small picture that is different for every seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    pixels = blocks.repeat(side // 4, axis=0).repeat(side // 4, axis=1)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format)
    return out.getvalue()


def message(number: int, **fields: Any) -> dict[str, Any]:
    """A message, with every key that an export of one has."""
    return {
        "id": str(FIRST_MESSAGE + number),
        "type": "Default",
        "timestamp": f"2024-05-01T10:{number % 60:02}:00.1230000+02:00",
        "timestampEdited": None,
        "callEndedTimestamp": None,
        "isPinned": False,
        "content": f"map {number}",
        "author": {
            "id": "42",
            "name": "alice",
            "discriminator": "0000",
            "nickname": "Alice",
            "color": None,
            "isBot": False,
            "roles": [],
            "avatarUrl": "export.json_Files/avatar-0123456789abcdef.png",
        },
        "attachments": [],
        "embeds": [],
        "stickers": [],
        "reactions": [],
        "mentions": [],
        "inlineEmojis": [],
    } | fields


def attachment(number: int, url: str, name: str | None = None) -> dict[str, Any]:
    return {
        "id": str(5000 + number),
        "url": url,
        "fileName": name or Path(url.replace("\\", "/")).name,
        "fileSizeBytes": 1234,
    }


def document(messages: Iterable[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    listed = list(messages)
    return {
        "guild": {"id": GUILD, "name": "Map guild", "iconUrl": "https://cdn.discordapp.com/i.png"},
        "channel": {
            "id": CHANNEL,
            "type": "GuildTextChat",
            "categoryId": "150",
            "category": "Archive",
            "name": "map-archive",
            "topic": None,
        },
        "dateRange": {"after": None, "before": None},
        "exportedAt": "2026-08-01T12:00:00.0000000+00:00",
        "messages": listed,
        "messageCount": len(listed),
    } | fields


def write(path: Path, messages: Iterable[dict[str, Any]], **fields: Any) -> Path:
    """Writes one export; pictures go into `media` beforehand."""
    path.write_text(json.dumps(document(messages, **fields)), encoding="utf-8")
    return path


def media(folder: Path, name: str, data: bytes, *, export: str = "export.json") -> str:
    """Puts a file where `--media` would, and returns the `url` that the export would hold."""
    files = folder / f"{export}_Files"
    files.mkdir(exist_ok=True)
    (files / name).write_bytes(data)
    return f"{export}_Files/{name}"
