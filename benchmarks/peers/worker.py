"""The same decoding and model for every peer: mapseek's own, called by the peer's worker."""

import os
from pathlib import Path

from inference.artifact import Artifact
from inference.engine import Engine, EngineOptions, Pixels, load_image_engine
from inference.preprocess import Preprocessor
from inference.settings import ServerSettings

MODEL = "MAPSEEK_MODEL"
"""Environment variable that names the model folder."""

MAX_BATCH = 8
"""Most pictures in a batch: what the engine runs at most, and what mapseek's own server takes."""
MAX_WAIT_S = 0.001
"""How long a batch waits for more: with 5 ms mosec is slower, and LitServe as fast."""


def preprocessor() -> Preprocessor:
    """The decoding, within the server's default limits."""
    limits = ServerSettings.model_construct()
    return Preprocessor(
        _artifact().manifest.preprocessing,
        max_image_bytes=limits.max_image_bytes,
        max_image_pixels=limits.max_image_pixels,
    )


def engine() -> Engine:
    """The model, warm, on one thread: every peer has one for each core."""
    options = EngineOptions(provider="cpu", threads=1, max_batch=MAX_BATCH)
    loaded = load_image_engine(_artifact(), options)
    loaded.warm_up()
    return loaded


def _artifact() -> Artifact:
    return Artifact.load(Path(os.environ[MODEL]))


__all__ = ["MAX_BATCH", "MAX_WAIT_S", "MODEL", "Pixels", "engine", "preprocessor"]
