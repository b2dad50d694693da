"""What scores are called."""

import pytest

from bot.search import Verdict, judge
from inference.client import Thresholds

THRESHOLDS = Thresholds(same=0.9, similar=0.6)


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (1.0, Verdict.SAME),
        (0.9, Verdict.SAME),
        (0.8999, Verdict.SIMILAR),
        (0.6, Verdict.SIMILAR),
        (0.5999, Verdict.NOTHING),
        (-1.0, Verdict.NOTHING),
    ],
)
def test_scores_in_words(score: float, verdict: Verdict) -> None:
    assert judge(score, THRESHOLDS) is verdict
    assert judge(score, None) is None
