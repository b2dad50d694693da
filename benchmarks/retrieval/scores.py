"""Ranks, and what follows from them: recall, its intervals, false matches, thresholds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.retrieval.embedders import Vectors
from bot.looks import agreed
from inference.artifact import Calibration, Thresholds

_BLOCK = 256
_RESAMPLES = 1000
_Z = 1.959964
"""Of a normal distribution, 95 % lies within so many standard deviations."""

# What the words mean: of the answers that say so, this fraction has to be right. One in a hundred
# is wrong however similar it is: the set has maps that hardly differ. So at 0.99, a handful of
# answers would decide.
SAME_PRECISION = 0.985
SIMILAR_PRECISION = 0.6
# Fewer answers than this prove nothing.
_LEAST_ANSWERS = 30


@dataclass(frozen=True, slots=True)
class Ranking:
    """Where each query's own map came, and what else came close.

    Attributes:
        rank: 1 where it came first; a tie counts as lost. (n,)
        own: Similarity to its own map, (n,).
        rival: The highest similarity to any other picture, (n,).
        rival_index: That picture's place in the archive, (n,).
    """

    rank: NDArray[np.int64]
    own: Vectors
    rival: Vectors
    rival_index: NDArray[np.int64]

    def of(self, chosen: NDArray[np.bool_]) -> "Ranking":
        """The ranking of some of the queries."""
        return Ranking(
            self.rank[chosen], self.own[chosen], self.rival[chosen], self.rival_index[chosen]
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """A share or a mean, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As a table shows it."""
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def rank(
    queries: Vectors, archive: Vectors, discount: float = 0.0, *, together: bool = False
) -> Ranking:
    """Search an archive for each query.

    Args:
        queries: Unit vectors (n, V, D).
        archive: Unit vectors (m, D), m >= n; row i is query i's own map.
        discount: By how much the similarities of all views but the first count less.
        together: Whether views that agree count more; else the most similar of them counts.
    """
    ranks, owns, rivals, indices = [], [], [], []
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        similar = (block.reshape(-1, block.shape[2]) @ archive.T).reshape(*block.shape[:2], -1)
        similar[:, 1:] -= discount
        similar = agreed(similar, 1) if together else similar.max(axis=1)
        rows = np.arange(len(block))
        own = similar[rows, start + rows].copy()
        similar[rows, start + rows] = -np.inf
        ranks.append(1 + (similar >= own[:, None]).sum(axis=1))
        indices.append(similar.argmax(axis=1))
        rivals.append(similar[rows, indices[-1]])
        owns.append(own)
    return Ranking(*(np.concatenate(parts) for parts in (ranks, owns, rivals, indices)))


def recall(ranks: NDArray[np.int64], within: int) -> Figure:
    """The share of queries whose map is among the first ones, with Wilson's interval.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    count = len(ranks)
    if count == 0:
        return Figure(math.nan, math.nan, math.nan)
    share = float((ranks <= within).mean())
    middle = share + _Z**2 / (2 * count)
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    whole = 1 + _Z**2 / count
    return Figure(share, max(0.0, (middle - spread) / whole), min(1.0, (middle + spread) / whole))


def mean_reciprocal_rank(ranks: NDArray[np.int64]) -> Figure:
    """The mean of 1 / rank, with a bootstrap's interval."""
    if len(ranks) == 0:
        return Figure(math.nan, math.nan, math.nan)
    reciprocal = 1 / ranks
    rng = np.random.default_rng(0)
    means = [
        float(reciprocal[rng.integers(0, len(ranks), len(ranks))].mean()) for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return Figure(float(reciprocal.mean()), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Answers:
    """First answers to queries whose map is in the archive, and to the same ones where it is not.

    Attributes:
        right: Similarities of the right answers, in ascending order.
        wrong: Of the wrong answers where the right map was there.
        false: Of the answers where it was not: all of these are wrong.
    """

    right: Vectors
    wrong: Vectors
    false: Vectors

    @classmethod
    def of(cls, rankings: Sequence[Ranking]) -> "Answers":
        """Pool the first answers of several rankings.

        Every query counts twice: once with its map in the archive and once without.
        """
        first = [ranking.rank == 1 for ranking in rankings]
        pairs = list(zip(rankings, first, strict=True))
        return cls(
            np.sort(np.concatenate([ranking.own[won] for ranking, won in pairs])),
            np.sort(np.concatenate([ranking.rival[~won] for ranking, won in pairs])),
            np.sort(np.concatenate([ranking.rival for ranking in rankings])),
        )

    def counts(self, low: float, high: float = math.inf) -> tuple[int, int]:
        """How many answers of a similarity in [low, high) are right, and how many there are."""

        def within(values: Vectors) -> int:
            return int(np.searchsorted(values, high) - np.searchsorted(values, low))

        right = within(self.right)
        return right, right + within(self.wrong) + within(self.false)

    def precision(self, low: float, high: float = math.inf) -> float:
        """The share of answers of a similarity in [low, high) that are right; NaN of none."""
        right, given = self.counts(low, high)
        return right / given if given else math.nan

    def false_match_rate(self, low: float) -> float:
        """The share of queries without their map that still get an answer this similar."""
        return 1 - float(np.searchsorted(self.false, low)) / len(self.false)


def thresholds(answers: Answers) -> tuple[float, float] | None:
    """Choose where "same map" and "similar" begin; None where no answer can be trusted so far.

    The first is the lowest similarity from which on `SAME_PRECISION` of the answers are right; the
    second the lowest below it with at least `SIMILAR_PRECISION` right in between.
    """
    # Hundredths: a finer choice would only fit the sample.
    steps = np.round(np.arange(0, 1, 0.005), 3).tolist()
    same = next(
        (
            step
            for step in steps
            if answers.precision(step) >= SAME_PRECISION
            and answers.counts(step)[1] >= _LEAST_ANSWERS
        ),
        None,
    )
    if same is None:
        return None
    similar = same
    for step in reversed([step for step in steps if step < same]):
        right, given = answers.counts(step, same)
        if given and right / given < SIMILAR_PRECISION:
            break
        similar = step
    return same, similar


def calibrate(
    chosen_on: Answers, measured_on: Answers, *, archive: int, queries: int, half: str
) -> Thresholds | None:
    """Choose thresholds on one part of the queries and measure what they mean on another.

    Returns:
        The thresholds with what was measured, or None where the model reaches no such precision.
    """
    chosen = thresholds(chosen_on)
    if chosen is None:
        return None
    same, similar = chosen

    def shown(value: float) -> float | None:
        return None if math.isnan(value) else round(value, 4)

    return Thresholds(
        same=same,
        similar=similar,
        measured=Calibration(
            same_precision=shown(measured_on.precision(same)),
            similar_precision=shown(measured_on.precision(similar, same)),
            nothing_precision=shown(measured_on.precision(-1, similar)),
            same_false_match_rate=round(measured_on.false_match_rate(same), 4),
            similar_false_match_rate=round(measured_on.false_match_rate(similar), 4),
            same_found=round(measured_on.counts(same)[0] / queries, 4),
            queries=queries,
            archive=archive,
            pictures=f"mapseek bench retrieval, {half} half",
        ),
    )
