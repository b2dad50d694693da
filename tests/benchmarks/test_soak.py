from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from benchmarks.hostile import Attack
from benchmarks.memory import MB
from benchmarks.server_process import RunningServer, run_server
from benchmarks.soak import Observed, SoakOptions, bench_soak, judge
from benchmarks.valid import Question, questions

RIGHT, LIVES, SERVING, MEMORY, FILES, ENDINGS = (
    "every valid call is answered right",
    "the process lives and stops cleanly",
    "health stays SERVING",
    "no growth: resident memory, MB, rises by at most 16",
    "no growth: number of open files rises by at most 8",
    "hostile calls end as they should",
)
RESIDENT = "resident memory of the server at most 400 MB"


BOMB = Attack(name="bomb", run=AsyncMock(), expected=frozenset({"INVALID_ARGUMENT"}))


def good() -> Observed:
    observed = Observed(exit_status=0, probes=600)
    observed.answers.right = 1000
    observed.attacks["bomb"].update(INVALID_ARGUMENT=50)
    observed.memory = [(float(second), (200 + second % 60) * MB) for second in range(600)]
    observed.files = [(float(second), 20 + second % 5) for second in range(600)]
    return observed


def grow(samples: list[tuple[float, float]], rate: float) -> None:
    samples[:] = [(second, value + second * rate) for second, value in samples]


def verdicts(observed: Observed, *kinds: Attack) -> dict[str, bool | None]:
    return {target.name: target.met for target in judge(observed, kinds, tolerance_mb=16)}


def test_a_good_run_meets_every_target() -> None:
    met = dict.fromkeys((RIGHT, LIVES, SERVING, MEMORY, FILES), True)
    assert verdicts(good(), BOMB) == {**met, ENDINGS: True}
    assert verdicts(good()) == {**met, RESIDENT: True}


FAULTS: list[tuple[Callable[[Observed], Any], str]] = [
    (lambda seen: setattr(seen.answers, "wrong", 1), RIGHT),
    (lambda seen: seen.answers.failed.update(["late"]), RIGHT),
    (lambda seen: setattr(seen.answers, "right", 0), RIGHT),
    (lambda seen: setattr(seen, "died", True), LIVES),
    (lambda seen: setattr(seen, "exit_status", -9), LIVES),
    (lambda seen: setattr(seen, "unwell", 1), SERVING),
    (lambda seen: grow(seen.memory, 0.1 * MB), MEMORY),
    (lambda seen: seen.memory.__delitem__(slice(100, None)), MEMORY),  # too short to tell
    (lambda seen: grow(seen.files, 0.1), FILES),
    (lambda seen: seen.attacks["bomb"].update(OK=1), ENDINGS),
]


@pytest.mark.parametrize(("spoil", "name"), FAULTS)
def test_each_fault_misses_its_target_alone(spoil: Callable[[Observed], Any], name: str) -> None:
    observed = good()
    spoil(observed)
    unmet = {target: met for target, met in verdicts(observed, BOMB).items() if not met}
    assert unmet == {name: None if len(observed.memory) == 100 else False}


def test_a_server_that_dies_ends_the_soak(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[RunningServer] = []

    @contextmanager
    def doomed(model: Path) -> Iterator[RunningServer]:
        with run_server(model) as server:
            servers.append(server)
            yield server

    def kill(_: str, done: float) -> None:
        if done > 0:
            servers[0].process.kill()

    monkeypatch.setattr("benchmarks.soak.run_server", doomed)
    report = bench_soak(SoakOptions(model=model, minutes=60), kill)
    assert report.missed
    assert (LIVES, "it died: exit status -9") in {(one.name, one.found) for one in report.targets}


def test_a_wrong_answer_is_seen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_wrong(*given: Any) -> list[Question]:
        first, second, *others = questions(*given)
        return [Question(picture=first.picture, embedding=second.embedding), second, *others]

    monkeypatch.setattr("benchmarks.soak.questions", one_wrong)
    report = bench_soak(SoakOptions(model=model, requests=64), lambda what, done: None)
    assert {one.name: one.met for one in report.targets}[RIGHT] is False
    assert 0 < report.data["wrong"] < report.data["right"]
    assert report.data["right"] + report.data["wrong"] == 64
