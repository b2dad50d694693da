"""A run on disk: everything that it needs to go on exactly where it stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import torch

FORMAT: Final = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        # Renaming before the data is on disk could leave an empty checkpoint after a power cut.
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        ValueError: It is of another format.
    """
    # weights_only: a checkpoint is data; nothing in it may run.
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if state.get("format") != FORMAT:
        found = state.get("format")
        raise ValueError(f"{path} has format {found}; this version reads {FORMAT}.")
    return state
