"""A folder of pictures as one array on disk, so that training never decodes a file twice.

``python -m exporter.training.corpus FOLDER FILE.npy``
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from exporter.training.art import load_picture, picture_paths

SIDE: Final = 160
"""Pixels along a cached picture: a map's 128, and room to crop."""


def build(folder: Path, cache: Path, *, workers: int = 1) -> int:
    """Decode every readable picture below a folder into one ``.npy`` file.

    The file appears whole or not at all. Unreadable pictures are left out, and so are blank ones.

    Args:
        folder: Where the pictures are, at any depth.
        cache: The file to write: ``uint8`` of shape (n, 160, 160, 3).
        workers: Decoding processes.

    Returns:
        The number of pictures.
    """
    with ProcessPoolExecutor(workers) as pool:
        decoded = pool.map(_decode, picture_paths(folder), chunksize=16)
        pictures = [picture for picture in decoded if picture is not None]
    partial = cache.with_suffix(".partial.npy")
    partial.parent.mkdir(parents=True, exist_ok=True)
    np.save(partial, np.stack(pictures))
    partial.replace(cache)
    return len(pictures)


def load(cache: Path) -> npt.NDArray[np.uint8]:
    """Map a cache into memory, read-only, ``uint8`` of shape (n, 160, 160, 3)."""
    pictures: npt.NDArray[np.uint8] = np.load(cache, mmap_mode="r")
    return pictures


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a command be given caches to draw from, as ``corpus``."""
    parser.add_argument(
        "--corpus",
        type=Path,
        action="append",
        default=[],
        metavar="NPY",
        help="pictures cached by exporter.training.corpus; may be given several times",
    )


def _decode(path: Path) -> npt.NDArray[np.uint8] | None:
    """Read one picture over a ground that its own name decides, or None if it is of no use."""
    # White behind every clip art would make all of them look alike from afar.
    rng = np.random.default_rng(list(path.name.encode()))
    red, green, blue = (int(channel) for channel in rng.integers(0, 256, 3))
    ground = (255, 255, 255) if rng.random() < 0.3 else (red, green, blue)
    # Clip art of hundreds of megapixels is left out; Pillow's warning below its limit is no news.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        picture = load_picture(path, (SIDE, SIDE), ground)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return picture if picture.std() > 8 else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m exporter.training.corpus",
        description="Cache a folder of pictures that may lawfully be trained on.",
        epilog="The bundled model used Debian's openclipart-png, which is in the public domain.",
    )
    parser.add_argument("folder", type=Path, help="pictures, at any depth")
    parser.add_argument("cache", type=Path, help="the .npy file to write")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args(argv)
    count = build(arguments.folder, arguments.cache, workers=arguments.workers)
    sys.stdout.write(f"{count} pictures in {arguments.cache}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
