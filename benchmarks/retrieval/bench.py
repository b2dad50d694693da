"""`mapseek bench retrieval`: draws the set, embeds it, ranks, and tells what was found."""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.latency import Latency
from benchmarks.machine import Provider, this_machine
from benchmarks.report import Progress, Report, Table
from benchmarks.retrieval import report as tables
from benchmarks.retrieval.artwork import Half, collect
from benchmarks.retrieval.builds import plan
from benchmarks.retrieval.distractors import Distractors, draw_distractors
from benchmarks.retrieval.embedders import (
    VIEWS,
    Embedder,
    LocalModel,
    PerceptualHash,
    ServedModel,
    Vectors,
    embed_files,
    embed_views,
    latency_s,
)
from benchmarks.retrieval.pictures import GALLERY, Map, draw_set, fingerprint
from benchmarks.retrieval.plots import plot_recall, plot_similarities
from benchmarks.retrieval.report import Run
from benchmarks.retrieval.scores import (
    Answers,
    Ranking,
    calibrate,
    mean_reciprocal_rank,
    rank,
    recall,
)
from benchmarks.retrieval.sheets import Case, draw_sheet, write_sheets
from benchmarks.retrieval.unseen import UNSEEN, draw_unseen
from exporter.training.scenes import Kind
from inference.artifact import Artifact, Thresholds, replace_manifest
from inference.client import ClientSettings
from inference.errors import StartupError

_TIMED = 40
_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalOptions:
    """What to measure.

    Attributes:
        art: Folder of artwork.
        models: Model folders; the first one's failures are drawn.
        server: A running server to measure besides, or None.
        baseline: Whether the perceptual hash is measured besides.
        half: Which half of the artwork.
        maps: How many maps.
        seed: Decides everything random.
        distractors: How many other maps are put into the archive.
        views: Ways in which the models look at the queries, by name.
        calibrate: Whether thresholds are written into the first model's manifest, chosen by the
            first of the views.
        failures: How many failures of each kind of query are drawn.
        show: Sources whose pictures `examples.png` may show; none: all.
        cache: Folder of what is drawn and embedded.
        out: Folder of plots and sheets.
        workers: Drawing processes.
        provider: Where the models run.
    """

    art: Path
    models: Sequence[Path]
    server: ClientSettings | None = None
    baseline: bool = False
    half: Half = Half.TEST
    maps: int = 3000
    seed: int = 0
    distractors: int = 0
    views: Sequence[str] = ("full",)
    calibrate: bool = False
    failures: int = 120
    show: Sequence[str] = ()
    cache: Path
    out: Path
    workers: int
    provider: Provider = "auto"


@dataclass(slots=True)
class _Bench:
    """The set, and what has been found so far."""

    options: RetrievalOptions
    progress: Progress
    maps: list[Map]
    folder: Path
    distractors: Distractors
    runs: list[Run] = field(default_factory=list)

    def measure(self, embedder: Embedder, views: str) -> None:
        """Rank every query of both kinds in both archives."""
        named = embedder.name if views == "full" else f"{embedder.name}, {views}"
        archives = {
            archive: self._embed(embedder, kind)
            for archive, kind in (("gallery", GALLERY), ("posts", str(Kind.POST)))
        }
        others = {
            archive: self._embed_distractors(embedder, archive, files)
            for archive, files in (
                ("gallery", self.distractors.gallery),
                ("posts", self.distractors.posts),
            )
            if files
        }
        rankings: dict[tuple[str, str], Ranking] = {}
        crowded: dict[tuple[str, str], Ranking] = {}
        ranked = partial(
            rank, discount=VIEWS[views].discount, together=VIEWS[views].combine == "agreed"
        )
        for query in tables.QUERIES:
            vectors = self._queries(embedder, query, views)
            for archive, known in archives.items():
                rankings[archive, query] = ranked(vectors, known)
                if archive in others:
                    full = np.concatenate([known, others[archive]])
                    crowded[archive, query] = ranked(vectors, full)
        unseen = ranked(self._queries(embedder, UNSEEN, views), archives["posts"])
        files = [one.files[query] for one in self.maps[:_TIMED] for query in tables.QUERIES]
        self.say(f"timing {named}")(0)
        latency = Latency.of(latency_s(embedder, files, VIEWS[views]))
        self.runs.append(
            Run(
                name=named,
                rankings=rankings,
                crowded=crowded,
                unseen=unseen,
                latency_ms=latency.p50_ms,
            )
        )

    def _queries(self, embedder: Embedder, query: str, views: str) -> Vectors:
        files = [one.files[query] for one in self.maps]
        cache = _vectors(self.folder, embedder) / VIEWS[views].file_name(query)
        say = self.say(f"{embedder.name}: {query} queries, {views}")
        return embed_views(embedder, files, VIEWS[views], cache, say)

    def _embed(self, embedder: Embedder, kind: str) -> Vectors:
        files = [one.files[kind] for one in self.maps]
        cache = _vectors(self.folder, embedder) / f"{kind}.npy"
        return embed_files(embedder, files, cache, self.say(f"{embedder.name}: {kind}"))[:, 0]

    def _embed_distractors(
        self, embedder: Embedder, archive: str, files: Sequence[Path]
    ) -> Vectors:
        cache = _vectors(files[0].parents[1], embedder) / f"{archive}.npy"
        say = self.say(f"{embedder.name}: distractors for {archive}")
        return embed_files(embedder, files, cache, say)[:, 0]

    def may_show(self, one: Map) -> bool:
        """Whether a map may be on the sheet of examples."""
        return not self.options.show or one.source in self.options.show

    def say(self, what: str) -> Callable[[float], None]:
        """Progress of one step."""
        return lambda share: self.progress(what, share)


def bench_retrieval(options: RetrievalOptions, progress: Progress) -> Report:
    """Measures every model, with every way of looking at the queries, on one set.

    Raises:
        StartupError: There is not enough artwork, a model cannot be loaded, or no threshold can be
            chosen.
        EmbeddingError: The server failed.
    """
    machine = this_machine()
    # Before anything is drawn: a mistake in the command must not cost minutes.
    planned = _planned(options)
    pieces = collect(
        options.art, options.cache / _art_cache(options.art), options.workers, progress
    )
    maps = draw_set(
        options.art,
        pieces,
        options.cache,
        half=options.half,
        count=options.maps,
        seed=options.seed,
        workers=options.workers,
        progress=progress,
    )
    name = fingerprint(pieces, options.half, options.seed)
    folder = options.cache / f"{options.half}-{name}"
    unseen = draw_unseen(
        options.art,
        plan(pieces, options.half, options.maps, options.seed),
        folder,
        seed=options.seed,
        workers=options.workers,
        progress=progress,
    )
    for one, file in zip(maps, unseen, strict=True):
        one.files[UNSEEN] = file
    distractors = Distractors([], [])
    if options.distractors:
        distractors = draw_distractors(
            options.cache, options.distractors, options.workers, progress
        )
    bench = _Bench(options, progress, maps, folder, distractors)
    complete = True
    try:
        for embedder, views in planned:
            bench.measure(embedder, views)
    except KeyboardInterrupt:
        complete = False
        if not bench.runs:
            raise
    first = bench.runs[0]
    options.out.mkdir(parents=True, exist_ok=True)
    answers = _answers(first, maps)
    found = _calibrated(bench, first) if options.calibrate and complete else None
    _draw(bench, first, answers, found)
    return Report(
        command="mapseek bench retrieval",
        machine=machine,
        model_id=", ".join(run.name for run in bench.runs),
        settings={
            "half": options.half,
            "maps": options.maps,
            "seed": options.seed,
            "set": name,
            "distractors": options.distractors,
            "views": options.views,
            "pieces": len(pieces),
        },
        tables=_tables(bench, first, answers, found),
        targets=tables.targets(first, options.half),
        data={
            "runs": [_data(run) for run in bench.runs],
            "families": tables.families(first, maps).rows,
            "unseen": tables.unseen(bench.runs, maps).rows,
            "relations": tables.relations(first, maps).rows,
            "thresholds": None if found is None else found.model_dump(),
        },
        complete=complete,
    )


def _planned(options: RetrievalOptions) -> list[tuple[Embedder, str]]:
    """What is measured, and how it looks at the queries."""
    models: list[Embedder] = [LocalModel(folder, options.provider) for folder in options.models]
    if options.server is not None:
        models.append(ServedModel(options.server))
    if options.calibrate and not options.models:
        raise StartupError("--calibrate writes into a model folder: name one with --model DIR.")
    planned = list(itertools.product(models, options.views))
    if options.baseline:
        planned.append((PerceptualHash(), "full"))
    return planned


def _art_cache(folder: Path) -> str:
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return f"artwork-{digest}.json"


def _vectors(folder: Path, embedder: Embedder) -> Path:
    """Where the vectors of what was drawn into a folder stay."""
    name = embedder.name
    named = "".join(letter if letter.isalnum() or letter in "@.-_" else "_" for letter in name)
    return folder / "vectors" / named


def _answers(run: Run, maps: Sequence[Map], parity: int | None = None) -> Answers:
    """First answers among posts, of good and poor queries alike; of every second group only."""
    chosen = np.array([parity is None or one.group % 2 == parity for one in maps])
    rankings = run.crowded or run.rankings
    return Answers.of([rankings["posts", query].of(chosen) for query in tables.QUERIES])


def _calibrated(bench: _Bench, run: Run) -> Thresholds:
    """Choose thresholds on one half of the groups, measure on the other, and write the manifest."""
    options = bench.options
    found = calibrate(
        _answers(run, bench.maps, 0),
        _answers(run, bench.maps, 1),
        archive=len(bench.maps) + options.distractors,
        queries=len(tables.QUERIES) * sum(one.group % 2 for one in bench.maps),
        half=options.half,
    )
    if found is None:
        raise StartupError(
            f"{run.name} gives no answers that are right often enough to call them the same map: "
            "its manifest is left as it is. Measure more maps, or train it further."
        )
    artifact = Artifact.load(options.models[0])
    replace_manifest(artifact, artifact.manifest.model_copy(update={"thresholds": found}))
    return found


def _tables(bench: _Bench, first: Run, answers: Answers, found: Thresholds | None) -> list[Table]:
    shown = [tables.comparison(bench.runs, len(bench.maps))]
    if bench.options.distractors:
        shown.append(tables.crowd(bench.runs, bench.options.distractors))
    return [
        *shown,
        tables.families(first, bench.maps),
        tables.unseen(bench.runs, bench.maps),
        tables.relations(first, bench.maps),
        tables.false_matches(first, answers, found),
    ]


def _data(run: Run) -> dict[str, object]:
    def figures(rankings: Mapping[tuple[str, str], Ranking]) -> list[dict[str, object]]:
        return [
            {
                "archive": archive,
                "query": query,
                "queries": len(ranking.rank),
                **{f"recall@{within}": recall(ranking.rank, within) for within in (1, 3, 10)},
                "mrr": mean_reciprocal_rank(ranking.rank),
            }
            for (archive, query), ranking in rankings.items()
        ]

    return {
        "name": run.name,
        "latency_ms": run.latency_ms,
        "tasks": figures(run.rankings),
        "with_distractors": figures(run.crowded),
    }


def _draw(bench: _Bench, run: Run, answers: Answers, found: Thresholds | None) -> None:
    """Plots, and sheets of what the first model missed among posts, the surest mistakes first."""
    out, maps = bench.options.out, bench.maps
    title = f"{len(maps):,} maps, {bench.options.half} half"
    bars = {
        each.name: [
            (f"{query}\nin {archive}", recall(each.rankings[archive, query].rank, 1))
            for archive, query in tables.tasks()
        ]
        for each in bench.runs
    }
    plot_recall(bars, title, out / "recall.png")
    lines = {} if found is None else {"same": found.same, "similar": found.similar}
    plot_similarities(answers, lines, f"{run.name}: {title}", out / "similarities.png")
    examples: list[Case] = []
    for query in tables.QUERIES:
        ranking = run.rankings["posts", query]
        missed = np.flatnonzero(ranking.rank > 1)
        surest = missed[np.argsort(ranking.own[missed] - ranking.rival[missed])]
        cases = [_case(bench, ranking, query, int(index)) for index in surest]
        say = bench.say(f"drawing the {query} failures")
        write_sheets(cases[: bench.options.failures], out / "failures", query, say)
        if query is Kind.POOR:
            rng = np.random.default_rng(bench.options.seed)
            for group in (np.flatnonzero(ranking.rank == 1), missed):
                shown = [index for index in rng.permutation(group) if bench.may_show(maps[index])]
                for index in shown[:_EXAMPLES]:
                    case = _case(bench, ranking, query, int(index))
                    rival = maps[int(ranking.rival_index[index])]
                    hidden = ranking.rank[index] > 1 and not bench.may_show(rival)
                    examples.append(replace(case, found=None) if hidden else case)
    if examples:
        draw_sheet(examples, 1).save(out / "examples.png")


def _case(bench: _Bench, ranking: Ranking, query: Kind, index: int) -> Case:
    one, place = bench.maps[index], int(ranking.rank[index])
    rival = bench.maps[int(ranking.rival_index[index])]
    found = one if place == 1 else rival
    hard = ", ".join(sorted(one.queries[query].families)) or str(query)
    best = max(float(ranking.own[index]), float(ranking.rival[index]))
    return Case(
        query=one.files[query],
        found=found.files[Kind.POST],
        right=one.files[GALLERY],
        captions=(
            f"{index}: {hard}"[:44],
            f"found {found.number}, {best:.3f}",
            f"right: place {place}, {float(ranking.own[index]):.3f}",
        ),
    )
