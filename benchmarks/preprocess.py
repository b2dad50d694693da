"""`mapseek bench preprocess`: what the fast decode path saves, and what it costs in fidelity.

Each kind of picture is decoded by the path that serves and by the plain reference; compared are the
time and the embeddings that the model makes of both results.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.latency import Latency
from benchmarks.machine import this_machine
from benchmarks.pictures import encode, map_art, screenshot
from benchmarks.report import Progress, Report, Table, Target
from exporter.training import mapart, scenes
from inference.artifact import Artifact
from inference.engine import Engine, EngineOptions, Pixels, load_image_engine
from inference.errors import InvalidInputError, StartupError
from inference.preprocess import Preprocessor, reference

# The promise: no picture's embedding moves further than this from the reference's.
MIN_COSINE = 0.99

# Training draws its maps from seeds far above these.
_FIRST_VIEW = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessOptions:
    """What to measure.

    Attributes:
        model: The model folder whose preprocessing and embeddings are compared.
        pictures: How many pictures of each kind; real files besides count as a kind of their own.
        folder: A folder of real pictures to add, its other files left out; None for none.
        rounds: How often each picture is decoded by both paths.
    """

    model: Path
    pictures: int = 12
    folder: Path | None = None
    rounds: int = 5


@dataclass(slots=True, kw_only=True)
class Kind:
    """One kind of picture and what was measured.

    Attributes:
        name: What it is.
        files: The encoded pictures.
        fast_s: Seconds of every decode by the serving path.
        reference_s: Seconds of every decode by the reference.
        run_s: Seconds of the model on every decoded picture alone.
        cosines: Cosine of the two embeddings, by picture.
    """

    name: str
    files: Sequence[bytes]
    fast_s: list[float] = field(default_factory=list)
    reference_s: list[float] = field(default_factory=list)
    run_s: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)


def drawn_kinds(count: int) -> list[Kind]:
    """Draws pictures of the kinds that people post: screenshots and maps in several formats."""

    def shots(width: int, height: int) -> list[Image.Image]:
        return [screenshot(seed, width=width, height=height) for seed in range(count)]

    small, full, large = shots(854, 480), shots(1920, 1080), shots(2560, 1440)
    maps = [Image.fromarray(map_art(np.random.default_rng(seed))) for seed in range(count)]
    posted = [art.resize((512, 512), Image.Resampling.NEAREST) for art in maps]
    faces = [art.quantize(32) for art in maps]

    def kind(name: str, pictures: Sequence[Image.Image], form: str, **options: object) -> Kind:
        return Kind(name=name, files=[encode(picture, form, **options) for picture in pictures])

    return [
        Kind(name="in-game view, well posted", files=_views(count, scenes.Kind.POST)),
        Kind(name="in-game view, poor", files=_views(count, scenes.Kind.POOR)),
        kind("screenshot 854x480 JPEG", small, "JPEG"),
        kind("screenshot 1920x1080 JPEG", full, "JPEG"),
        kind("screenshot 2560x1440 JPEG", large, "JPEG", progressive=True),
        kind("screenshot 1920x1080 PNG", full, "PNG", compress_level=3),
        kind("screenshot 1920x1080 WebP", full, "WEBP", quality=80),
        kind("map 128x128 PNG", maps, "PNG"),
        kind("map 128x128 palette PNG", faces, "PNG"),
        kind("map 512x512 PNG", posted, "PNG"),
    ]


def _views(count: int, kind: scenes.Kind) -> list[bytes]:
    """The views of maps that the models are trained for, of maps that no training has seen."""
    files = []
    for seed in range(_FIRST_VIEW, _FIRST_VIEW + count):
        chance = np.random.default_rng([seed, 1])
        files.append(scenes.render_file(mapart.draw_map(seed), chance, kind)[0])
    return files


def _files(folder: Path, decode: Preprocessor) -> list[bytes]:
    """The pictures among a folder's files."""
    files = []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            data = path.read_bytes()
            with suppress(InvalidInputError):
                decode(data)
                files.append(data)
    if not files:
        raise StartupError(f"{folder} holds no picture that the server would take.")
    return files


def bench_preprocess(options: PreprocessOptions, progress: Progress) -> Report:
    """Measures every kind, both paths in turns, and compares the embeddings.

    Raises:
        StartupError: The model cannot be loaded, or the folder holds no picture.
    """
    machine = this_machine()
    artifact = Artifact.load(options.model)
    manifest = artifact.manifest
    fast = Preprocessor(manifest.preprocessing, max_image_bytes=2**30, max_image_pixels=100_000_000)
    engine = load_image_engine(artifact, EngineOptions())

    def plain(data: bytes) -> Pixels:
        return reference(data, manifest.preprocessing)

    progress("drawing pictures", 0.0)
    kinds = drawn_kinds(options.pictures)
    if options.folder is not None:
        kinds.append(Kind(name=f"{options.folder.name}/", files=_files(options.folder, fast)))
    complete = True
    try:
        for position, kind in enumerate(kinds):
            progress(kind.name, position / len(kinds))
            for data in kind.files:
                one, other = engine.embed([fast(data), plain(data)])
                kind.cosines.append(float(one @ other))
            for number in range(options.rounds):
                _time(kind, fast, plain, engine, number)
        progress("done", 1.0)
    except KeyboardInterrupt:
        complete = False
    cosines = [cosine for kind in kinds for cosine in kind.cosines]
    name = f"every embedding within a cosine of {MIN_COSINE} of the reference's"
    return Report(
        command="mapseek bench preprocess",
        machine=machine,
        model_id=manifest.model_id,
        settings={
            "pictures": options.pictures,
            "folder": options.folder,
            "rounds": options.rounds,
        },
        tables=[_table(kinds)],
        targets=[Target.at_least(name, min(cosines, default=math.nan), MIN_COSINE)],
        data={
            "kinds": [
                {
                    "name": kind.name,
                    "pictures": len(kind.files),
                    "fast": Latency.of(kind.fast_s),
                    "reference": Latency.of(kind.reference_s),
                    "run": Latency.of(kind.run_s),
                    "min_cosine": min(kind.cosines),
                    "mean_cosine": float(np.mean(kind.cosines)),
                }
                for kind in kinds
                if kind.cosines
            ],
        },
        complete=complete,
    )


def _time(
    kind: Kind,
    fast: Callable[[bytes], Pixels],
    plain: Callable[[bytes], Pixels],
    engine: Engine,
    seed: int,
) -> None:
    """Decodes every picture by both paths, one after the other in an order by chance, and runs it.

    The runs tell what the decoding is to be compared with.
    """
    chance = random.Random(seed)
    for data in kind.files:
        paths = [(fast, kind.fast_s), (plain, kind.reference_s)]
        chance.shuffle(paths)
        for path, times in paths:
            started = time.perf_counter()
            pixels = path(data)
            times.append(time.perf_counter() - started)
        started = time.perf_counter()
        engine.embed([pixels])
        kind.run_s.append(time.perf_counter() - started)


def _table(kinds: Sequence[Kind]) -> Table:
    rows = []
    for kind in kinds:
        if not kind.fast_s:
            continue
        fast, plain, run = map(Latency.of, (kind.fast_s, kind.reference_s, kind.run_s))
        rows.append(
            (
                kind.name,
                sum(map(len, kind.files)) / len(kind.files) / 1000,
                plain.p50_ms,
                fast.p50_ms,
                plain.p50_ms / fast.p50_ms,
                100 * plain.p50_ms / (plain.p50_ms + run.p50_ms),
                100 * fast.p50_ms / (fast.p50_ms + run.p50_ms),
                f"{min(kind.cosines):.4f}",
            )
        )
    return Table(
        title="Decoding: the serving path against the plain reference",
        columns=(
            "picture",
            "KB",
            "reference ms",
            "serving ms",
            "x faster",
            "reference %",
            "serving %",
            "min cosine",
        ),
        rows=rows,
        notes=["medians; %: the decoding's share of one decode plus one run of the model alone"],
    )
