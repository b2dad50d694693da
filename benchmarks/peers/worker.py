"""The same decoding and model for every peer: mapseek's own, called by the peer's worker."""

import os
from pathlib import Path

from inference.artifact import Artifact
from inference.engine import Engine, EngineOptions, Pixels, load_image_engine
from inference.preprocess import Preprocessor
from inference.settings import ServerSettings

MODEL = "MAPSEEK_MODEL"
"""Environment variable that names the model folder."""


def preprocessor() -> Preprocessor:
    """The decoding, within the server's default limits."""
    limits = ServerSettings.model_construct()
    return Preprocessor(
        _artifact().manifest.preprocessing,
        max_image_bytes=limits.max_image_bytes,
        max_image_pixels=limits.max_image_pixels,
    )


def engine(*, threads: int = 0) -> Engine:
    """The model, warm.

    Args:
        threads: Threads of the model; 0 takes one per core, each with pictures of its own.
    """
    loaded = load_image_engine(_artifact(), EngineOptions(provider="cpu", threads=threads))
    loaded.warm_up()
    return loaded


def _artifact() -> Artifact:
    return Artifact.load(Path(os.environ[MODEL]))


__all__ = ["MODEL", "Pixels", "engine", "preprocessor"]
