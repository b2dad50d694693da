"""Looks at what `mapseek index` was given and chooses how to read it."""

from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path

from bot.importer import discord, discord_html, folder
from bot.importer.found import Found, SetAside, Source, SourceError

_PAGES = frozenset({".html", ".htm"})


class Kind(StrEnum):
    """What a path holds."""

    AUTO = "auto"
    FOLDER = "folder"
    DISCORD = "discord"


def open_source(
    path: Path,
    *,
    kind: Kind = Kind.AUTO,
    media: Path | None = None,
    guild: str | None = None,
) -> Source:
    """Chooses the importer for a path.

    A JSON or HTML file, or a folder with exports in it, is read as exports of DiscordChatExporter
    (all of them, in the order of their names); any other folder or file as pictures.

    Args:
        path: A folder or a file.
        kind: What it must be; `AUTO` looks.
        media: A further folder where an export's media may lie.
        guild: The server of HTML exports that do not tell it.

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
        return partial(_all, exports, media, guild)
    if kind is Kind.DISCORD or path.suffix.lower() in {".json", *_PAGES}:
        raise SourceError(
            f"{path} is no export of DiscordChatExporter in JSON or HTML: export with `--format "
            "Json --media`."
        )
    if media is not None or guild is not None:
        raise SourceError(
            "--media and --guild are for exports of DiscordChatExporter, and there is none here."
        )
    return partial(folder.scan, path)


def _exports(path: Path) -> list[Path]:
    """The exports at a path. Their media folders are not searched: anybody's files lie there."""
    if not path.is_dir():
        return [path] if path.is_file() and _is_export(path, alone=True) else []
    told = {file: _may_be_export(file) for file in sorted(path.iterdir()) if file.is_file()}
    # Among exports, what cannot be read is set aside like one; among pictures it is passed over.
    return [file for file in told if told[file] is not False] if True in told.values() else []


def _may_be_export(file: Path) -> bool | None:
    """Whether a file of a folder is an export; None where it cannot be read."""
    try:
        return _is_export(file, alone=False)
    except OSError:
        return None


def _is_export(file: Path, *, alone: bool) -> bool:
    if file.suffix.lower() in _PAGES:
        return discord_html.is_export(file)
    return (alone or file.suffix.lower() == ".json") and discord.is_export(file)


def _all(exports: list[Path], media: Path | None, guild: str | None) -> Iterator[Found | SetAside]:
    for export in exports:
        if export.suffix.lower() in _PAGES:
            yield from discord_html.scan(export, media=media, guild_id=guild)
        else:
            yield from discord.scan(export, media=media)
