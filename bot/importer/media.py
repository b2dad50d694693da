"""Finds the files of an export, inside the folders that may be read and nowhere else."""

from pathlib import Path
from urllib.parse import unquote

from bot.importer.files import is_picture


class NotThereError(Exception):
    """A picture is not where the export says; the message is the reason."""


def is_remote(url: str) -> bool:
    """Whether an address leads into the web: then the file was not downloaded."""
    return url.lower().startswith(("https://", "http://"))


def locate(url: str, roots: list[Path]) -> Path:
    """The picture that an export's `url` means, inside one of the folders that may be read.

    Args:
        url: A path relative to the export, or an address.
        roots: The export's folder, then further ones.

    Raises:
        NotThereError: It was not downloaded, is missing, lies elsewhere, or is no picture.
    """
    if is_remote(url):
        raise NotThereError("is not in the export: export again with --media")
    forward = url.replace("\\", "/")
    outside = False
    for name in dict.fromkeys((url, forward, unquote(forward))):
        for root in roots:
            # A media folder that was named by hand may have been moved: there only names count.
            places = [root / name] if root is roots[0] else [root / name, root / Path(name).name]
            for place in places:
                try:
                    path = place.resolve()
                    inside = any(path.is_relative_to(allowed) for allowed in roots)
                    if inside and path.is_file():
                        return _checked(path)
                except (OSError, ValueError, RuntimeError):
                    continue  # no such name can be, or links run in a circle
                outside |= not inside
    if outside:
        raise NotThereError(
            "lies outside the export's folder: if that is right, name its folder with --media"
        )
    raise NotThereError("is missing from the export's folder")


def _checked(path: Path) -> Path:
    try:
        if is_picture(path):
            return path
    except OSError as error:
        raise NotThereError(f"cannot be read: {error.strerror or error}") from error
    # DiscordChatExporter saves whatever a server answers, error pages too.
    raise NotThereError("is no picture; perhaps it was gone already when it was exported")
