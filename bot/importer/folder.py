"""Imports a tree of picture files. A file's place is its identity, and its link."""

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bot.archive.port import PictureKey
from bot.importer.files import FORMATS_IN_WORDS, claims_picture, is_picture, tree
from bot.importer.found import Found, SetAside

# What stands for the guild of pictures that no guild has posted.
GUILD_ID = "files"


def scan(root: Path) -> Iterator[Found | SetAside]:
    """Yields the pictures of a folder and the folders below it, or of a single file.

    Hidden files and folders and links to folders are left out. What is no picture is passed over,
    unless its name promises one: then it is set aside.

    Args:
        root: The folder or file.
    """
    root = root.resolve()
    if root.is_file():
        yield from _look_at(root, root.parent)
        return
    unreadable: list[OSError] = []
    for path in tree(root, hidden=False, unreadable=unreadable.append):
        yield from _look_at(path, root)
    for error in unreadable:
        yield SetAside(name=_shown(error.filename), reason=f"cannot be read: {error.strerror}")


def _look_at(path: Path, root: Path) -> Iterator[Found | SetAside]:
    claimed = claims_picture(path.name)
    try:
        if not path.is_file() or not is_picture(path):
            if claimed:
                yield SetAside(name=_shown(path), reason=f"is no picture ({FORMATS_IN_WORDS})")
            return
        if not path.resolve().is_relative_to(root):
            yield SetAside(name=_shown(path), reason="is a link that leads out of the folder")
            return
        status = path.stat()
        str(path).encode()
    except OSError as error:
        if claimed:
            yield SetAside(name=_shown(path), reason=f"cannot be read: {error.strerror}")
        return
    except UnicodeEncodeError:
        yield SetAside(name=_shown(path), reason="has a name that is no UTF-8: rename it")
        return
    yield Found(
        key=PictureKey(
            message_id="file-" + hashlib.sha256(os.fsencode(path)).hexdigest()[:32],
            # A file that was changed in its place is another picture, and replaces the old one.
            attachment_id=f"{status.st_size:x}-{status.st_mtime_ns:x}",
        ),
        replaces_message=True,
        path=path,
        guild_id=GUILD_ID,
        channel_id=str(path.parent),
        user_id="",
        message_link=path.as_uri(),
        posted_at=_modified(status),
        channel=path.parent.relative_to(root.parent).as_posix(),
    )


def _modified(status: os.stat_result) -> datetime:
    try:
        return datetime.fromtimestamp(status.st_mtime, UTC)
    except (OverflowError, ValueError):  # a date that no calendar has
        return datetime.fromtimestamp(0, UTC)


def _shown(path: str | Path) -> str:
    """A path for showing, whatever bytes its name has."""
    return os.fsencode(path).decode(errors="backslashreplace")
