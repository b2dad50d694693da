"""A few faults in real server processes, and that the run sees what it must see."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from mapseek.v1 import embedding_pb2 as pb

from benchmarks.chaos import bench as chaos
from benchmarks.chaos import traffic
from benchmarks.chaos.bench import NO_MODEL, bench_chaos
from benchmarks.chaos.outcome import LOST, TWICE, ChaosOptions, Outcome, judge
from benchmarks.chaos.scenarios import SCENARIOS, Scenario
from benchmarks.report import Report
from benchmarks.valid import Question, questions

# Late by the clock of a busy machine is no fault of the server's.
PATIENCE_S = 60.0


def run(model: Path, *only: str) -> Report:
    options = ChaosOptions(model=model, seconds=0.3, within_s=PATIENCE_S, only=only)
    return bench_chaos(options, lambda what, done: None)


def found(report: Report) -> dict[str, str]:
    return {target.name: target.found for target in report.targets}


def test_faults_lose_no_answer_and_exits_mean_something(model: Path) -> None:
    exits = {
        "engine hangs and returns": 0,
        "poisoned pictures": 0,
        "memory for one picture at a time": 0,
        "SIGTERM under load": 0,
        "engine hangs for good": 75,
        "engine breaks for good": 70,
        NO_MODEL: 78,
    }
    report = run(model, *exits)
    assert found(report) == dict.fromkeys(exits, "as it should be")
    outcomes: dict[str, Outcome] = report.data["outcomes"]
    assert {name: one.exit_status for name, one in outcomes.items()} == exits
    assert set(outcomes["poisoned pictures"].poisoned) == {"INTERNAL"}
    for way, statuses in outcomes["engine hangs for good"].statuses.items():
        assert statuses["UNAVAILABLE"] > 0, way
    for name, outcome in outcomes.items():
        if name != NO_MODEL:
            assert all(statuses["OK"] > 0 for statuses in outcome.statuses.values()), name


def test_a_wrong_answer_is_seen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_wrong(*given: Any) -> list[Question]:
        first, second, *others = questions(*given)
        return [Question(picture=first.picture, embedding=second.embedding), second, *others]

    monkeypatch.setattr(chaos, "questions", one_wrong)
    report = run(model, "wall clock jumps")
    assert report.missed
    sentence = found(report)["wall clock jumps"]
    for way in ("Embed", "EmbedStream", "ModelStreamInfer"):
        assert f"{way}: WRONG ANSWER" in sentence


async def test_a_stream_that_answers_twice_or_not_at_all_is_seen() -> None:
    """By a server that answers the first image twice and the second never, and then ends well."""
    embedding = np.array([1.0, 0.0], np.float32)

    async def answer(requests: AsyncIterator[pb.EmbedStreamRequest], context: Any) -> None:
        request = await anext(requests)
        values = pb.Embedding(values=embedding.tolist())
        results = [
            pb.StreamResult(id=image.id, embedding=values)
            for image in (request.images[0], request.images[0], *request.images[2:])
        ]
        for result in results:
            await context.write(pb.EmbedStreamResponse(results=[result]))
        stop.set()

    stop, statuses = asyncio.Event(), Counter[str]()
    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(
        answer,
        request_deserializer=pb.EmbedStreamRequest.FromString,
        response_serializer=pb.EmbedStreamResponse.SerializeToString,
    )
    name = "mapseek.v1.EmbeddingService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(name, {"EmbedStream": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    asked = [Question(picture=b"", embedding=embedding)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await traffic.over_stream(channel, asked, statuses, stop)
    await server.stop(None)
    assert statuses[TWICE] == 1
    assert statuses[LOST] >= 1
    assert statuses["OK"] == 2


def test_an_exit_that_means_something_else_is_seen(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (killed,) = [one for one in SCENARIOS if one.name == "SIGKILL under load"]
    pretended = Scenario(
        name="killed", inflict=killed.inflict, allowed=frozenset({"OK"}), exit_status=0
    )
    monkeypatch.setattr(chaos, "SCENARIOS", (pretended,))
    (sentence,) = found(run(model, "killed")).values()
    assert "exit status -9 instead of 0" in sentence


def test_faults_are_targets_missed() -> None:
    targets = judge({"a": Outcome(), "b": Outcome(faults=["late", "lost"])})
    assert [(target.met, target.found) for target in targets] == [
        (True, "as it should be"),
        (False, "late; lost"),
    ]
