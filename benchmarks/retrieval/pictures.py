"""The set on disk: for each map a clean render, a post, a good and a poor query, drawn once.

The folder's name holds a hash of all that decides the pictures, so a set is never mixed with
another one's; what is there already is not drawn again, so an interrupted run goes on where it was.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from benchmarks.retrieval.artwork import Half, Piece
from benchmarks.retrieval.builds import Build, Relation, draw, plan
from benchmarks.workers import worker_pool
from exporter.training import mapart, scenes

# Changed with every change of the code that changes the pictures.
VERSION = 1

GALLERY = "gallery"
KINDS = (GALLERY, *scenes.Kind)

_CHUNK = 8

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Query:
    """What is known about one picture of a map in the world.

    Attributes:
        families: What makes it hard.
        yaw: Degrees to the side of the wall's normal.
        pitch: Degrees below it.
        seen: Fraction of the map inside the picture.
        extent: The larger of the map's extents in the picture, relative to the picture's.
    """

    families: frozenset[str]
    yaw: float
    pitch: float
    seen: float
    extent: float


@dataclass(frozen=True, slots=True)
class Map:
    """One map of the set.

    Attributes:
        number: Its place in the set.
        source: The artwork's source.
        piece: The artwork's path.
        relation: What it has in common with its group.
        group: The number of the group's first map.
        shape: Columns and rows of maps.
        files: Its four pictures, by kind.
        queries: What happened to the three that were taken in the world, by kind.
    """

    number: int
    source: str
    piece: str
    relation: Relation
    group: int
    shape: tuple[int, int]
    files: dict[str, Path]
    queries: dict[str, Query]


def fingerprint(pieces: Sequence[Piece], half: Half, seed: int) -> str:
    """Name a set by all that decides its pictures."""
    own = [(piece.path, piece.width, piece.height) for piece in pieces if piece.half is half]
    document = json.dumps([VERSION, half, seed, own])
    return hashlib.sha256(document.encode()).hexdigest()[:12]


def draw_set(
    folder: Path,
    pieces: Sequence[Piece],
    cache: Path,
    *,
    half: Half,
    count: int,
    seed: int,
    workers: int,
    progress: Callable[[str, float], None],
) -> list[Map]:
    """Draw the pictures that are not on disk yet, and list them all.

    Args:
        folder: Where the artwork lies.
        pieces: What of it can be used.
        cache: Folder of sets.
        half: Which half of the artwork.
        count: How many maps.
        seed: Decides everything random.
        workers: Drawing processes.
        progress: Told what is going on.

    Raises:
        StartupError: The half has not enough artwork.
    """
    builds = plan(pieces, half, count, seed)
    out = cache / f"{half}-{fingerprint(pieces, half, seed)}"
    for kind in (*KINDS, "facts"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    missing = [build for build in builds if not _facts_file(out, build.number).exists()]
    for done in run_chunks(partial(_draw_one, folder, out, seed), missing, workers):
        progress(
            f"drawing {count:,} maps of the {half} half, four pictures each",
            (len(builds) - len(missing) + done) / len(builds),
        )
    return [_read(out, build) for build in builds]


def run_chunks(task: Callable[[T], None], items: Sequence[T], workers: int) -> Iterator[int]:
    """Do a task for each item in processes; tell after each chunk how many are done."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    done = 0
    with worker_pool(workers) as pool:
        waiting = {pool.submit(_run_chunk, task, chunk): len(chunk) for chunk in chunks}
        try:
            while waiting:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    done += waiting.pop(future)
                yield done
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run_chunk(task: Callable[[T], None], chunk: Sequence[T]) -> None:
    for one in chunk:
        task(one)


def _facts_file(out: Path, number: int) -> Path:
    return out / "facts" / f"{number:05}.json"


def _draw_one(folder: Path, out: Path, seed: int, build: Build) -> None:
    """Draw the four pictures of a map, and write its facts last."""
    pixels = draw(folder, build)
    name = f"{build.number:05}"
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    (out / GALLERY / f"{name}.png").write_bytes(encoded.getvalue())
    facts: dict[str, Any] = {
        "shape": (pixels.shape[1] // mapart.MAP_SIDE, pixels.shape[0] // mapart.MAP_SIDE)
    }
    for task, kind in enumerate(scenes.Kind):
        taken = scenes.take(pixels, np.random.default_rng([seed, build.number, task]), kind)
        (out / kind / f"{name}{taken.suffix}").write_bytes(taken.data)
        facts[kind] = {
            "suffix": taken.suffix,
            "families": sorted(taken.families),
            "yaw": round(taken.yaw, 1),
            "pitch": round(taken.pitch, 1),
            "seen": round(taken.seen, 3),
            "extent": round(taken.extent, 3),
        }
    unfinished = out / "facts" / f"{name}.partial"
    unfinished.write_text(json.dumps(facts))
    unfinished.replace(_facts_file(out, build.number))


def _read(out: Path, build: Build) -> Map:
    facts = json.loads(_facts_file(out, build.number).read_text())
    files = {GALLERY: out / GALLERY / f"{build.number:05}.png"}
    queries = {}
    for kind in scenes.Kind:
        known = facts[kind]
        files[kind] = out / kind / f"{build.number:05}{known['suffix']}"
        queries[str(kind)] = Query(
            families=frozenset(known["families"]),
            yaw=known["yaw"],
            pitch=known["pitch"],
            seen=known["seen"],
            extent=known["extent"],
        )
    return Map(
        number=build.number,
        source=build.piece.source,
        piece=build.piece.path,
        relation=build.relation,
        group=build.group,
        shape=tuple(facts["shape"]),
        files=files,
        queries=queries,
    )
