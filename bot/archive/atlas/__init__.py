"""The archive in MongoDB Atlas with Vector Search, through motor."""

from bot.archive.atlas.adapter import AtlasArchive

__all__ = ["AtlasArchive"]
