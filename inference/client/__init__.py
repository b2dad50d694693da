"""The typed async client of the embedding server, for the bot, the importer and the benchmarks.

Usage::

    async with EmbeddingClient(ClientSettings.load()) as client:
        found = await client.embed(image_bytes)
"""

from inference.client.client import EmbeddingClient
from inference.client.results import (
    Embedded,
    Limits,
    ModelInfo,
    StreamItem,
    Thresholds,
    Timings,
)
from inference.client.settings import ClientSettings

__all__ = [
    "ClientSettings",
    "Embedded",
    "EmbeddingClient",
    "Limits",
    "ModelInfo",
    "StreamItem",
    "Thresholds",
    "Timings",
]
