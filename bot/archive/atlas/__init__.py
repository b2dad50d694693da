"""The archive in MongoDB Atlas with Vector Search, through motor."""

from bot.archive.port import ImageArchive
from bot.settings import BotSettings


def AtlasArchive(settings: BotSettings) -> ImageArchive:  # noqa: N802, D103
    raise NotImplementedError
