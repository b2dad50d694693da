"""A few faults in real server processes, and that the run sees what it must see."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import chaos
from benchmarks.chaos import NO_MODEL, SCENARIOS, ChaosOptions, Outcome, bench_chaos, judge
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
    assert outcomes["engine hangs for good"].statuses["UNAVAILABLE"] > 0


def test_a_wrong_answer_is_seen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_wrong(*given: Any) -> list[Question]:
        first, second, *others = questions(*given)
        return [Question(picture=first.picture, embedding=second.embedding), second, *others]

    monkeypatch.setattr(chaos, "questions", one_wrong)
    report = run(model, "wall clock jumps")
    assert report.missed
    assert "WRONG ANSWER" in found(report)["wall clock jumps"]


def test_an_exit_that_means_something_else_is_seen(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (killed,) = [one for one in SCENARIOS if one.name == "SIGKILL under load"]
    pretended = chaos.Scenario(
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
