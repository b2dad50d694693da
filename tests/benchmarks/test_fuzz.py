"""Spoilt pictures by Hypothesis, spoilt calls to a real server, and that findings are seen."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import FuzzOptions, Seen, bench_fuzz, judge, try_picture
from benchmarks.mutations import seeds, spoilt
from inference.artifact import Preprocessing
from inference.preprocess import Preprocessor

CORPUS = list(seeds().items())
DECODE = Preprocessor(
    Preprocessing(image_size=8, resize="squash", interpolation="bilinear"),
    max_image_bytes=100_000,
    max_image_pixels=1_000_000,
)


@pytest.mark.parametrize(("name", "data"), CORPUS)
def test_the_seeds_are_pictures(name: str, data: bytes) -> None:
    assert DECODE(data).shape == (8, 8, 3)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(chance=st.randoms(use_true_random=False))
def test_a_spoilt_picture_is_decoded_or_refused(chance: random.Random) -> None:
    seen = Seen()
    try_picture(DECODE, CORPUS, chance, seen)
    assert not seen.findings, seen.findings


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), chance=st.randoms(use_true_random=False))
def test_anything_can_be_spoilt(data: bytes, chance: random.Random) -> None:
    assert isinstance(spoilt(data, b"other", chance), bytes)


def test_spoilt_calls_leave_the_server_well(model: Path, tmp_path: Path) -> None:
    options = FuzzOptions(model=model, examples=500, out=tmp_path / "findings")
    report = bench_fuzz(options, lambda what, done: None)
    assert [target.found for target in report.targets if target.met is False] == []
    assert not (tmp_path / "findings").exists()


def test_findings_are_targets_missed() -> None:
    seen = Seen()
    seen.valid[True] = 1
    assert not any(target.met is False for target in judge(seen, exit_status=0))
    seen.found("picture", b"x", "KeyError")
    assert [target.met for target in judge(seen, exit_status=-11)][:3] == [False, True, False]
