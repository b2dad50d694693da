"""The tables and the targets of `bench retrieval`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.report import Cell, Table, Target
from benchmarks.retrieval.artwork import Half
from benchmarks.retrieval.pictures import Map
from benchmarks.retrieval.scores import (
    Answers,
    Ranking,
    mean_reciprocal_rank,
    recall,
)
from benchmarks.retrieval.unseen import Family as Unseen
from benchmarks.retrieval.unseen import family_of
from exporter.training.scenes import Family, Kind
from inference.artifact import Thresholds

ARCHIVES = ("gallery", "posts")
QUERIES = (Kind.GOOD, Kind.POOR)
# Fewer queries say too little to stand in a row of their own.
_LEAST_ROW = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one model found, with one way of looking at the queries.

    Attributes:
        name: The model, and the views where they are not the whole picture.
        rankings: By archive and kind of query.
        crowded: The same with distractors in the archive; empty where there are none.
        unseen: Of good queries degraded as training never does it, among posts.
        latency_ms: The median time of a query, from its bytes to its vectors.
    """

    name: str
    rankings: Mapping[tuple[str, str], Ranking]
    crowded: Mapping[tuple[str, str], Ranking] = field(default_factory=dict)
    unseen: Ranking
    latency_ms: float


def tasks() -> list[tuple[str, Kind]]:
    """Archive and kind of query, in the order of the tables."""
    return [(archive, query) for archive in ARCHIVES for query in QUERIES]


def comparison(runs: Sequence[Run], maps: int) -> Table:
    """Every model at every task."""
    rows: list[Sequence[Cell]] = []
    for archive, query in tasks():
        for run in runs:
            if (archive, query) not in run.rankings:
                continue
            ranks = run.rankings[archive, query].rank
            rows.append(
                (
                    f"{query} in {archive}",
                    run.name,
                    str(recall(ranks, 1)),
                    round(recall(ranks, 3).value, 3),
                    round(recall(ranks, 10).value, 3),
                    str(mean_reciprocal_rank(ranks)),
                    run.latency_ms,
                )
            )
    return Table(
        title=f"Is the right map of {maps:,} found? Recall with its 95 % interval",
        columns=("query", "model", "@1", "@3", "@10", "MRR", "ms a query"),
        rows=rows,
    )


def crowd(runs: Sequence[Run], distractors: int) -> Table:
    """What more maps in the archive cost."""
    rows = [
        (
            f"{query} in {archive}",
            run.name,
            str(recall(ranking.rank, 1)),
            round(recall(ranking.rank, 3).value, 3),
            round(
                recall(ranking.rank, 1).value - recall(run.rankings[archive, query].rank, 1).value,
                4,
            ),
        )
        for archive, query in tasks()
        for run in runs
        if (ranking := run.crowded.get((archive, query))) is not None
    ]
    return Table(
        title=f"With {distractors:,} other maps in the archive",
        columns=("query", "model", "@1", "@3", "change of @1"),
        rows=rows,
    )


def families(run: Run, maps: Sequence[Map]) -> Table:
    """Poor queries among posts, by what makes them hard."""
    ranking = run.rankings["posts", Kind.POOR]
    belongs = [one.queries[Kind.POOR].families for one in maps]
    rows: list[Sequence[Cell]] = []
    for family in Family:
        has = np.array([family in found for found in belongs])
        rows.append(_split(family, ranking, has))
    return Table(
        title=f"Poor queries among posts, by what makes them hard: {run.name}",
        columns=("", "queries", "@1", "@3", "@1 of the others"),
        rows=rows,
        notes=("Most queries belong to several families.",),
    )


def unseen(runs: Sequence[Run], maps: Sequence[Map]) -> Table:
    """Good queries among posts, with one thing more that training never draws."""
    belongs = [family_of(one.number) for one in maps]
    rows: list[Sequence[Cell]] = []
    for family in (None, *Unseen):
        has = np.array([family is None or family is found for found in belongs])
        for run in runs:
            ranks = run.unseen.of(has).rank
            without = run.rankings["posts", Kind.GOOD].of(has).rank
            rows.append(
                (
                    "all" if family is None else str(family),
                    run.name,
                    len(ranks),
                    str(recall(ranks, 1)),
                    round(recall(ranks, 3).value, 3),
                    round(recall(without, 1).value, 3),
                )
            )
    return Table(
        title="Good queries among posts, degraded as training never does it",
        columns=("", "model", "queries", "@1", "@3", "@1 of good ones of these maps"),
        rows=rows,
    )


def relations(run: Run, maps: Sequence[Map]) -> Table:
    """Queries among posts, by what the maps have in common with others, and by shape and source."""
    rows: list[Sequence[Cell]] = []
    several = {one.number for one in maps if one.shape != (1, 1)}
    groups: dict[str, set[int]] = {}
    for one in maps:
        groups.setdefault(str(one.relation), set()).add(one.number)
    groups["walls of several maps"] = several
    for one in maps:
        groups.setdefault(f"art: {one.source}", set()).add(one.number)
    for name, members in groups.items():
        if len(members) < _LEAST_ROW:
            continue
        has = np.array([one.number in members for one in maps])
        good, poor = (run.rankings["posts", query].of(has).rank for query in QUERIES)
        rows.append((name, len(members), str(recall(good, 1)), str(recall(poor, 1))))
    return Table(
        title=f"Queries among posts, by what the maps are: {run.name}",
        columns=("maps", "", "good @1", "poor @1"),
        rows=rows,
    )


def _split(
    name: str, ranking: Ranking, has: "np.ndarray[tuple[int], np.dtype[np.bool_]]"
) -> list[Cell]:
    own, others = ranking.of(has).rank, ranking.of(~has).rank
    if len(own) < _LEAST_ROW:
        return [name, len(own), None, None, None]
    return [
        name,
        len(own),
        str(recall(own, 1)),
        round(recall(own, 3).value, 3),
        round(recall(others, 1).value, 3),
    ]


def false_matches(run: Run, answers: Answers, found: Thresholds | None) -> Table:
    """What a first answer is worth, and how often another map is taken for a match."""
    marks = {found.same: "same", found.similar: "similar"} if found is not None else {}
    steps = sorted({*np.round(np.arange(0.3, 1, 0.05), 2).tolist(), *marks})
    rows = [
        (
            f"{step:.3f} {marks.get(step, '')}".rstrip(),
            round(answers.precision(step), 4),
            round(answers.false_match_rate(step), 4),
            round(answers.counts(step)[0] / len(answers.false), 4),
        )
        for step in steps
    ]
    return Table(
        title=f"First answers among posts, by their similarity: {run.name}",
        columns=("at least", "precision", "false matches", "found"),
        rows=rows,
        notes=(
            "Each query is asked twice: with its map in the archive and without it.",
            "False matches: of the queries without their map; found: of those with it.",
        ),
    )


def targets(run: Run, half: Half) -> list[Target]:
    """What the bundled model has to reach on the test half."""
    if half is not Half.TEST:
        return []
    bars = (
        ("posts", Kind.GOOD, 1, 0.97),
        ("posts", Kind.POOR, 1, 0.85),
        ("posts", Kind.POOR, 3, 0.92),
        ("gallery", Kind.GOOD, 1, 0.99),
        ("gallery", Kind.POOR, 1, 0.90),
    )
    return [
        Target.at_least(
            f"{query} in {archive}: recall@{within} at least {bar}",
            recall(run.rankings[archive, query].rank, within).value,
            bar,
        )
        for archive, query, within, bar in bars
        if not math.isnan(bar)
    ]
