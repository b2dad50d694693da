"""Spoilt pictures by Hypothesis, spoilt calls to a real server, and that findings are seen."""

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mapseek.oip import open_inference_pb2 as oip
from mapseek.v1 import embedding_pb2 as pb

from benchmarks.fuzz.bench import FuzzOptions, bench_fuzz, try_picture
from benchmarks.fuzz.messages import message, methods
from benchmarks.fuzz.mutations import seeds, spoilt
from benchmarks.fuzz.seen import Seen, judge
from inference.artifact import Preprocessing
from inference.errors import InvalidInputError
from inference.oip import tensors
from inference.oip.models import IMAGES, PIXELS, Model, Tensor
from inference.oip.wire import parse
from inference.preprocess import Preprocessor

CORPUS = list(seeds().items())
DECODE = Preprocessor(
    Preprocessing(image_size=8, resize="squash", interpolation="bilinear"),
    max_image_bytes=100_000,
    max_image_pixels=1_000_000,
)
METHODS = methods("tiny")
MODEL = Model(
    name="tiny",
    version=1,
    inputs=(IMAGES, Tensor(name=PIXELS, datatype="UINT8", dims=(8, 8, 3))),
    output=Tensor(name="image_embeds", datatype="FP32", dims=(16,)),
    max_batch=192,
)
# Their requests are empty, or any message is one.
ASK_NOTHING = {"ServerLive", "ServerReady", "ServerMetadata"}


def names(file: Any, service: str) -> list[str]:
    return [method.name for method in file.services_by_name[service].methods]


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


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(chance=st.randoms(use_true_random=False))
def test_a_spoilt_question_is_read_or_refused(chance: random.Random) -> None:
    (infer,) = [method for method in METHODS if method.name == "ModelInfer"]
    with suppress(DecodeError, InvalidInputError):
        request = parse(message(infer, CORPUS, chance))
        question = tensors.read(request, MODEL)
        assert len(question.items) == request.inputs[0].shape[0]


def test_questions_are_right_and_wrong_in_turn() -> None:
    chance = random.Random(0)
    (infer,) = [method for method in METHODS if method.name == "ModelInfer"]
    right = 0
    for _ in range(400):
        with suppress(DecodeError, InvalidInputError):
            sent = message(infer, CORPUS, chance)
            right += bool(tensors.read(parse(sent), MODEL).items)
    assert 20 < right < 380


def test_every_method_is_spoilt() -> None:
    services = {"EmbeddingService": pb.DESCRIPTOR, "GRPCInferenceService": oip.DESCRIPTOR}
    offered = {name for service, file in services.items() for name in names(file, service)}
    assert offered - {method.name for method in METHODS} <= ASK_NOTHING


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
