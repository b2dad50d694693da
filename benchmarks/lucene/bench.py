"""`mapseek bench lucene`: exact and approximate search in Apache Lucene, by the number of vectors.

Atlas's search server is Lucene. Here Lucene is asked as `bot.archive.atlas` asks Atlas, of one
segment, by one thread, without network, database or anything else that Atlas puts around it.
"""

import subprocess
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.latency import Latency
from benchmarks.machine import this_machine
from benchmarks.report import Cell, Progress, Report, Table, Target
from benchmarks.vectors import MATCHES, Maps, Truth, draw_maps
from bot.archive.port import Vector
from bot.settings import BotSettings
from inference.errors import StartupError

Quantization = Literal["none", "scalar"]

# What `AtlasArchive` asks for where three matches are wanted, and for each, so many candidates.
ASKED = 2 * MATCHES + 10
PER_HIT = (5, 10, 20, 50)

_PROGRAM = Path(__file__).with_name("Lucene.java")
_NEEDED = "org/apache/lucene/codecs/lucene99/Lucene99HnswScalarQuantizedVectorsFormat.class"
_EXACT = 0
_BATCH = 1000
_MIN_RECALL = 0.99
_TAIL = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class LuceneOptions:
    """What to measure.

    Attributes:
        jar: A jar with Lucene 9.9.
        java: The command that runs Java, 17 or newer.
        sizes: Indexes of how many vectors.
        model: Folder of the model whose vectors are indexed.
        maps: How many maps are drawn and embedded; the other vectors are grown from theirs.
        searches: How many different queries.
        rounds: How often each is asked in each way.
    """

    jar: Path
    java: str
    sizes: Sequence[int]
    model: Path
    maps: int
    searches: int
    rounds: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured at one size, of one way to search.

    Attributes:
        pictures: The size.
        quantization: How the index keeps vectors.
        candidates: How many are looked at; None compares every vector.
        latency: Of the searches.
        recall: Share of the true three nearest among the first three hits.
        reranked: The same when all hits are put into order by their true vectors first.
    """

    pictures: int
    quantization: Quantization
    candidates: int | None
    latency: Latency
    recall: float
    reranked: float


@dataclass(slots=True, kw_only=True)
class _Found:
    """What Lucene answered in one way of searching: times, and the hits of each query."""

    seconds: list[float] = field(default_factory=list)
    hits: dict[int, list[int]] = field(default_factory=dict)


def bench_lucene(options: LuceneOptions, progress: Progress) -> tuple[Report, list[Row]]:
    """Indexes vectors with and without quantization at each size, and searches them.

    Raises:
        StartupError: Java or Lucene is missing, or does not work.
    """
    _check(options)
    maps = draw_maps(options.model, maps=options.maps, queries=options.searches, progress=progress)
    rows: list[Row] = []
    # The word of the program about itself.
    told: list[str] = []
    complete = True
    try:
        _measure(options, maps, rows, told, progress)
    except KeyboardInterrupt:
        complete = False
    report = Report(
        command="mapseek bench lucene",
        machine=this_machine(),
        model_id=maps.model_id,
        settings=asdict(options),
        tables=[_table(rows, maps, told)],
        targets=_targets(rows),
        data={"rows": rows, "versions": told[:1]},
        complete=complete,
    )
    return report, rows


def _check(options: LuceneOptions) -> None:
    try:
        with zipfile.ZipFile(options.jar) as jar:
            found = _NEEDED in jar.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise StartupError(f"{options.jar} is no jar that can be read: {error}.") from None
    if not found:
        raise StartupError(
            f"There is no Lucene 9.9 in {options.jar}: take lucene-core-9.9.1.jar from Maven, or "
            "the jar in the wheel of pyserini 0.24.0 from PyPI."
        )
    try:
        subprocess.run(  # noqa: S603  what the operator named
            [options.java, "-version"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise StartupError(
            f"Java does not run ({error}): install a JDK, 17 or newer, or name its `java` with "
            "--java."
        ) from None


def _measure(
    options: LuceneOptions, maps: Maps, rows: list[Row], told: list[str], progress: Progress
) -> None:
    sizes = sorted(set(options.sizes))
    work, done = 2 * sum(sizes), 0
    truth = Truth(maps.queries)
    dimensions = maps.drawn.shape[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maps.queries.astype("<f4").tofile(folder / "queries.f32")
        for filled, size in pairwise((0, *sizes)):
            with (folder / "vectors.f32").open("ab") as file:
                for start in range(filled, size, _BATCH):
                    vectors = maps.vectors(start, min(_BATCH, size - start))
                    vectors.astype("<f4").tofile(file)
                    truth.add(vectors)
            stored: Vector = np.memmap(folder / "vectors.f32", "<f4", "r").reshape(-1, dimensions)
            for quantization in ("none", "scalar"):
                what = f"{size:,} vectors, quantization {quantization}"
                found: defaultdict[int, _Found] = defaultdict(_Found)
                with _running(options, folder, quantization, size, dimensions) as lines:
                    for doing, count in _taken_in(lines, found, told, size):
                        progress(f"{doing} {what}", (done + count) / work)
                done += size
                for candidates, one in found.items():
                    recall, reranked = _recalls(one, maps, stored, truth)
                    rows.append(
                        Row(
                            pictures=size,
                            quantization=quantization,
                            candidates=None if candidates == _EXACT else candidates,
                            latency=Latency.of(one.seconds),
                            recall=recall,
                            reranked=reranked,
                        )
                    )


def _taken_in(
    lines: Iterable[str], found: dict[int, _Found], told: list[str], size: int
) -> Iterator[tuple[str, int]]:
    """Takes in the program's lines; gives what it does, and how many vectors that is through."""
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "lucene":
            told.append(line.strip())
        elif kind == "indexed":
            yield "indexing", int(rest)
        elif kind == "found":
            candidates, query, took_ns, *hits = map(int, rest.split())
            found[candidates].seconds.append(took_ns / 1e9)
            found[candidates].hits[query] = hits
            yield "searching", size


@contextmanager
def _running(
    options: LuceneOptions, folder: Path, quantization: Quantization, size: int, dimensions: int
) -> Iterator[Iterable[str]]:
    """The program's lines, for the length of the block."""
    with tempfile.TemporaryDirectory(dir=folder) as index, tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(  # noqa: S603  our own program
            [
                *(options.java, "-cp", str(options.jar)),
                # Where Java is new enough, Lucene computes with SIMD; older ones only ignore it.
                *("--add-modules", "jdk.incubator.vector"),
                *(str(_PROGRAM), str(folder), index, str(dimensions), str(size), quantization),
                *(str(ASKED), str(options.rounds)),
                *(str(candidates) for candidates in (_EXACT, *(ASKED * one for one in PER_HIT))),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends it
        )
        with process:
            try:
                yield process.stdout or ()
                ended = process.wait()
            finally:
                process.kill()
        if ended:
            words.seek(0)
            raise StartupError(f"The program in Java failed:\n{words.read()[-_TAIL:]}")


def _recalls(found: _Found, maps: Maps, stored: Vector, truth: Truth) -> tuple[float, float]:
    """Of the first hits as they came, and when all are put into order by their true vectors."""
    scores = [
        [float(score) for score in stored[found.hits[number]] @ query]
        for number, query in enumerate(maps.queries)
    ]
    return (
        truth.recall(some[:MATCHES] for some in scores),
        truth.recall(sorted(some, reverse=True)[:MATCHES] for some in scores),
    )


def _table(rows: Sequence[Row], maps: Maps, told: Sequence[str]) -> Table:
    scalar = {(row.pictures, row.candidates): row for row in rows if row.quantization == "scalar"}
    cells: list[Sequence[Cell]] = []
    for row in rows:
        if row.quantization == "none":
            quantized = scalar.get((row.pictures, row.candidates))
            cells.append(
                (
                    row.pictures,
                    "exact" if row.candidates is None else f"{row.candidates} candidates",
                    *_cells(row),
                    *(("-",) * 3 if quantized is None else _cells(quantized)),
                    None if quantized is None else f"{quantized.reranked:.4f}",
                )
            )
    return Table(
        title=f"Lucene, vectors of {maps.drawn.shape[1]} numbers, {ASKED} hits asked for",
        columns=(
            *("pictures", "search", "p50 ms", "p99 ms", f"recall@{MATCHES}"),
            *("int8 p50 ms", "int8 p99 ms", f"int8 recall@{MATCHES}", "re-ranked"),
        ),
        rows=cells,
        notes=[
            *told[:1],
            f"{len(maps.drawn):,} vectors are of drawn maps, the others lie between neighbours.",
            "The queries are views and near-copies of maps.",
            "One segment, one thread; nothing of MongoDB is in these times.",
        ],
    )


def _cells(row: Row) -> tuple[Cell, Cell, Cell]:
    return (row.latency.p50_ms, row.latency.p99_ms, f"{row.recall:.4f}")


def _targets(rows: Sequence[Row]) -> list[Target]:
    """What searches find with the settings that mapseek comes with."""
    fields = BotSettings.model_fields
    limit, per_hit = fields["atlas_exact_limit"].default, fields["atlas_candidates"].default
    asked = [
        row
        for row in rows
        if row.candidates == (None if row.pictures <= limit else ASKED * per_hit)
    ]
    kinds = {
        "": [row.recall for row in asked if row.quantization == "none"],
        ", int8 re-ranked": [row.reranked for row in asked if row.quantization == "scalar"],
    }
    return [
        Target.at_least(
            f"recall@{MATCHES} as mapseek searches{kind} at least {_MIN_RECALL}",
            min(recalls),
            _MIN_RECALL,
        )
        for kind, recalls in kinds.items()
        if recalls
    ]
