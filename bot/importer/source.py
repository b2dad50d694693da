"""Looks at what `mapseek index` was given and chooses how to read it."""

from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path

from bot.importer import discord, folder
from bot.importer.found import Found, SetAside, Source, SourceError


class Kind(StrEnum):
    """What a path holds."""

    AUTO = "auto"
    FOLDER = "folder"
    DISCORD = "discord"


def open_source(path: Path, *, kind: Kind = Kind.AUTO, media: Path | None = None) -> Source:
    """Chooses the importer for a path.

    A JSON file, or a folder with exports in it, is read as exports of DiscordChatExporter (all of
    them, in the order of their names); any other folder or file as pictures.

    Args:
        path: A folder or a file.
        kind: What it must be; `AUTO` looks.
        media: A further folder where an export's media may lie.

    Raises:
        SourceError: There is nothing to read, or not what was asked for.
    """
    if not path.exists():
        raise SourceError(f"There is no file or folder {path}.")
    if media is not None and not media.is_dir():
        raise SourceError(f"There is no folder {media} for the media.")
    try:
        exports = [] if kind is Kind.FOLDER else _exports(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}.") from error
    if exports:
        return partial(_all, exports, media)
    if kind is Kind.DISCORD or path.suffix.lower() == ".json":
        raise SourceError(
            f"{path} is no JSON export of DiscordChatExporter: export with `--format Json --media`."
        )
    if media is not None:
        raise SourceError("--media is for exports of DiscordChatExporter, and there is none here.")
    return partial(folder.scan, path)


def _exports(path: Path) -> list[Path]:
    """The exports at a path. Their media folders are not searched: anybody's files lie there."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return [file for file in files if file.is_file() and discord.is_export(file)]


def _all(exports: list[Path], media: Path | None) -> Iterator[Found | SetAside]:
    for export in exports:
        yield from discord.scan(export, media=media)
