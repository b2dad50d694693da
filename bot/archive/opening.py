"""Opens the archive that the settings choose."""

from bot.archive.cached import CachedArchive
from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import ImageArchive
from bot.settings import ArchiveKind, BotSettings


def open_archive(
    kind: ArchiveKind | None, settings: BotSettings, *, create: bool = True
) -> ImageArchive:
    """An archive, ready to be entered (`async with`).

    Args:
        kind: Which one; None takes what the settings choose.
        settings: Where it lies.
        create: Whether an embedded archive is made where it is missing.

    Raises:
        StartupError: Atlas is asked for, and there is no connection string (when entered).
    """
    archive = _adapter(kind or settings.kind, settings, create=create)
    if settings.search_cache == 0:
        return archive
    return CachedArchive(archive, most=settings.search_cache)


def _adapter(kind: ArchiveKind, settings: BotSettings, *, create: bool) -> ImageArchive:
    if kind == "embedded":
        return EmbeddedArchive(settings.archive, create=create)
    from bot.archive.atlas import AtlasArchive  # noqa: PLC0415 - motor comes with the bot extra

    return AtlasArchive(settings)


def name_of(kind: ArchiveKind | None, settings: BotSettings) -> str:
    """What to call an archive in a sentence."""
    if (kind or settings.kind) == "embedded":
        return str(settings.archive)
    return f"Atlas {settings.atlas_database}.{settings.atlas_collection}"
