"""Looks at what `mapseek index` was given and chooses how to read it."""

import re
from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path

from bot.importer import discord, discord_html, folder
from bot.importer.files import tree
from bot.importer.found import Found, SetAside, Source, SourceError
from bot.links import media_id

_PAGES = frozenset({".html", ".htm"})
# DiscordChatExporter puts media beside the export, whatever its format.
_MEDIA = re.compile(r"\.(?:json|html?|txt|csv)_Files$", re.IGNORECASE)
_POSTED = "has the name of a posted file, not of an export: index it by itself if it is one"


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

    A JSON or HTML file, or a folder with exports in it or anywhere below, is read as exports of
    DiscordChatExporter (all of them, in the order of their names, and nothing else); any other
    folder or file as pictures.

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
        exports, aside = ([], []) if kind is Kind.FOLDER else _exports(path, media)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}.") from error
    if exports:
        return partial(_all, exports, aside, media, guild)
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


def _exports(path: Path, media: Path | None) -> tuple[list[Path], list[SetAside]]:
    """The exports at a path, and what may be one and is not read.

    Hidden folders and links to folders are left out. Media folders are not searched: anybody's
    files lie there. Where all channels share one, its files are known by their names.
    """
    if not path.is_dir():
        return ([path] if path.is_file() and _is_export(path, alone=True) else []), []
    root, shared = path.resolve(), None
    if media is not None and media.resolve().is_relative_to(root):
        shared = path / media.resolve().relative_to(root)
    unreadable: list[OSError] = []
    files = tree(
        path,
        hidden=False,
        enters=lambda folder: not _MEDIA.search(folder.name) and folder != shared,
        unreadable=unreadable.append,
    )
    told = {file: is_one for file in files if (is_one := _may_be_export(file)) is not False}
    for error in unreadable:
        if Path(error.filename) == path:
            raise error
    posted = [file for file in told if told[file] and file.parent != path and media_id(file.name)]
    exports = [file for file in told if file not in posted]
    # Among exports, what cannot be read is set aside like one; among pictures it is passed over.
    if not any(told[file] for file in exports):
        return [], []
    return exports, [
        *(SetAside(name=str(file), reason=_POSTED) for file in posted),
        *(
            SetAside(name=error.filename, reason=f"cannot be read: {error.strerror}")
            for error in unreadable
        ),
    ]


def _may_be_export(file: Path) -> bool | None:
    """Whether a file of a folder is an export; None where it cannot be read."""
    if file.suffix.lower() not in {".json", *_PAGES}:
        return False
    try:
        return file.is_file() and _is_export(file, alone=False)
    except OSError:
        return None


def _is_export(file: Path, *, alone: bool) -> bool:
    if file.suffix.lower() in _PAGES:
        return discord_html.is_export(file)
    return (alone or file.suffix.lower() == ".json") and discord.is_export(file)


def _all(
    exports: list[Path], aside: list[SetAside], media: Path | None, guild: str | None
) -> Iterator[Found | SetAside]:
    yield from aside
    for export in exports:
        if export.suffix.lower() in _PAGES:
            yield from discord_html.scan(export, media=media, guild_id=guild)
        else:
            yield from discord.scan(export, media=media)
