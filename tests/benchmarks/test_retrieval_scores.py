import math

import numpy as np
import pytest

from benchmarks.retrieval.embedders import Vectors
from benchmarks.retrieval.scores import (
    SAME_PRECISION,
    Answers,
    Ranking,
    calibrate,
    mean_reciprocal_rank,
    rank,
    recall,
)
from bot.looks import SHARPNESS


def unit(*rows: tuple[float, ...]) -> Vectors:
    values: Vectors = np.array(rows, np.float32)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return values


def test_ranks_count_what_is_closer() -> None:
    archive = unit((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0))
    queries = unit((1, 0.1, 0), (1, 0.9, 0), (0, 0, 1))[:, None]

    found = rank(queries, archive)

    assert found.rank.tolist() == [1, 3, 1]
    assert found.rival_index.tolist()[:2] == [3, 3]
    assert found.own[1] == pytest.approx(0.9 / math.hypot(1, 0.9))
    assert found.rival[1] > found.own[1]


def test_ties_are_lost() -> None:
    archive = unit((1, 0), (1, 0), (0, 1))
    assert rank(unit((1, 0), (1, 0), (0, 1))[:, None], archive).rank.tolist() == [2, 2, 1]


def test_of_several_views_the_best_counts() -> None:
    archive = unit((1, 0), (0, 1))
    queries = np.stack([unit((0, 1), (0.2, 1)), unit((0, 1), (1, 0.3))])
    assert rank(queries, archive).rank.tolist() == [2, 1]


def test_all_views_but_the_first_count_less() -> None:
    archive = unit((1, 0), (0, 1))
    whole, part = unit((1, 0.9), (0.9, 1)), unit((0.1, 1), (1, 0.1))
    queries = np.stack([whole, part], axis=1)  # the parts see the other map
    for discount, ranks in ((0.0, [2, 2]), (0.2, [2, 2]), (0.26, [1, 1])):
        found = rank(queries, archive, discount)
        assert found.rank.tolist() == ranks
        seen_by = 0.9 / math.hypot(1, 0.9), 1 / math.hypot(1, 0.1) - discount
        assert found.rival == pytest.approx([max(seen_by)] * 2)
    assert rank(queries, archive).own == pytest.approx(rank(queries, archive, 0.5).own)


def test_views_that_agree_may_count_more() -> None:
    archive = unit((1, 0, 0), (0, 1, 0))
    alone, twice = (0.9, 0, math.sqrt(0.19)), (0, 0.89, math.sqrt(1 - 0.89**2))
    queries = np.stack([unit(alone, twice, twice), unit(alone, twice, twice)])
    assert rank(queries, archive).rank.tolist() == [1, 2]
    found = rank(queries, archive, together=True)
    assert found.rank.tolist() == [2, 1]
    assert found.own[1] == pytest.approx(0.89 + math.log(2) / SHARPNESS, abs=1e-5)


def test_many_queries_are_ranked_in_blocks() -> None:
    rng = np.random.default_rng(0)
    archive = rng.normal(size=(700, 8)).astype(np.float32)
    archive /= np.linalg.norm(archive, axis=1, keepdims=True)
    found = rank(archive[:600, None], archive)
    assert (found.rank == 1).all()
    assert found.own == pytest.approx(np.ones(600), abs=1e-5)
    assert (found.rival_index != np.arange(600)).all()


def test_recall_has_wilsons_interval() -> None:
    ranks = np.array([1] * 8 + [2, 40])
    first = recall(ranks, 1)
    # Worked out by hand from Wilson's formula.
    assert (first.value, first.low, first.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert recall(ranks, 3).value == pytest.approx(0.9)
    assert math.isnan(recall(ranks[:0], 1).value)


def test_the_mean_reciprocal_rank_is_inside_its_interval() -> None:
    found = mean_reciprocal_rank(np.array([1, 2, 4, 1] * 50))
    assert found.value == pytest.approx((1 + 0.5 + 0.25 + 1) / 4)
    assert found.low < found.value < found.high


def ranking(own: Vectors, rival: Vectors) -> Ranking:
    places = np.where(own > rival, 1, 2)
    return Ranking(places, own, rival, np.zeros(len(own), np.int64))


def test_precision_counts_absent_maps_too() -> None:
    own = np.array([0.9, 0.8, 0.3], np.float32)
    rival = np.array([0.5, 0.85, 0.4], np.float32)
    answers = Answers.of([ranking(own, rival)])
    # At 0.6: one right, one wrong; and without their maps the second still gets its wrong one.
    assert answers.counts(0.6) == (1, 3)
    assert answers.precision(0.88) == 1
    assert answers.false_match_rate(0.6) == pytest.approx(1 / 3)
    assert answers.false_match_rate(0.45) == pytest.approx(2 / 3)
    assert math.isnan(answers.precision(0.95))


def test_thresholds_mean_what_they_say() -> None:
    rng = np.random.default_rng(1)
    own = rng.normal(0.8, 0.1, 4000).clip(-1, 1).astype(np.float32)
    rival = rng.normal(0.5, 0.08, 4000).clip(-1, 1).astype(np.float32)
    answers = Answers.of([ranking(own, rival)])

    found = calibrate(answers, answers, archive=4000, queries=4000, half="test")

    assert found is not None
    assert found.measured is not None
    assert 0.5 < found.similar < found.same < 0.9
    assert found.measured.same_precision is not None
    assert found.measured.same_precision >= SAME_PRECISION
    assert answers.precision(found.same - 0.01) < SAME_PRECISION
    assert found.measured.similar_precision is not None
    assert 0.5 < found.measured.similar_precision < 0.99
    assert found.measured.nothing_precision is not None
    assert found.measured.nothing_precision < 0.5
    assert found.measured.same_false_match_rate < found.measured.similar_false_match_rate
    assert found.measured.same_found == pytest.approx(float((own >= found.same).mean()), abs=0.02)


def test_a_model_that_guesses_gets_no_thresholds() -> None:
    rng = np.random.default_rng(1)
    own, rival = rng.normal(0.5, 0.1, (2, 500)).astype(np.float32)
    answers = Answers.of([ranking(own, rival)])
    assert calibrate(answers, answers, archive=500, queries=500, half="test") is None
