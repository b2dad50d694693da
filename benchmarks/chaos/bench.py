"""`mapseek bench chaos`: what can go wrong goes wrong, under load, and every answer is checked.

Each scenario injects one fault into a real server process (see `benchmarks.chaos.faults`) while
callers ask for embeddings that are known, and a probe asks for the health twenty times a second.
"""

import asyncio
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.chaos.outcome import ChaosOptions, Outcome, judge, table
from benchmarks.chaos.run import Chaos
from benchmarks.chaos.scenarios import GRACE_S, SCENARIOS, WATCHDOG_S, Scenario
from benchmarks.machine import this_machine
from benchmarks.pictures import screenshots
from benchmarks.report import Progress, Report
from benchmarks.server_process import run_server
from benchmarks.valid import Question, questions
from inference.artifact import Artifact
from inference.errors import StartupError
from inference.server import EXIT_CONFIGURATION

_FAULTY = "import sys; from benchmarks.chaos.faults import main; sys.exit(main())"

NO_MODEL = "a model that is not there"
NAMES = (*(scenario.name for scenario in SCENARIOS), NO_MODEL)


def bench_chaos(options: ChaosOptions, progress: Progress) -> Report:
    """Runs the scenarios one after another, each on a server of its own.

    Raises:
        StartupError: The model cannot be loaded, or the server does not start.
    """
    machine = this_machine()
    artifact = Artifact.load(options.model)
    progress("computing the right answers", 0.0)
    asked = questions(artifact, screenshots(16))
    chosen = [one for one in SCENARIOS if not options.only or one.name in options.only]
    outcomes: dict[str, Outcome] = {}
    with _interruptible() as interrupted:
        for number, scenario in enumerate(chosen):
            if interrupted.is_set():
                break
            progress(scenario.name, number / (len(chosen) + 1))
            outcomes[scenario.name] = _play(options, scenario, asked)
        if not interrupted.is_set() and (not options.only or NO_MODEL in options.only):
            outcomes[NO_MODEL] = _without_a_model(options)
    return Report(
        command="mapseek bench chaos",
        machine=machine,
        model_id=artifact.manifest.model_id,
        settings={name: getattr(options, name) for name in ChaosOptions.__dataclass_fields__},
        tables=[table(outcomes)],
        targets=judge(outcomes),
        data={"outcomes": outcomes},
        complete=not interrupted.is_set(),
    )


def _play(options: ChaosOptions, scenario: Scenario, asked: Sequence[Question]) -> Outcome:
    settings = {
        "watchdog_s": str(WATCHDOG_S),
        "watchdog_grace_s": str(GRACE_S),
        "log_level": "error",
        **scenario.settings,
    }
    with run_server(options.model, settings, program=_FAULTY) as server:
        chaos = Chaos(options, server, asked)
        asyncio.run(chaos.run(scenario.inflict, scenario.allowed))
        outcome = chaos.outcome
        if scenario.exit_status is None and not server.alive:
            outcome.faults.append(f"it died with {server.process.returncode}")
        if scenario.exit_status is not None and outcome.exit_status != scenario.exit_status:
            outcome.faults.append(
                f"exit status {outcome.exit_status} instead of {scenario.exit_status}"
            )
    if scenario.exit_status is None:
        outcome.exit_status = server.process.returncode
        if outcome.exit_status != 0:
            outcome.faults.append(f"exit status {outcome.exit_status} after SIGTERM")
    return outcome


def _without_a_model(options: ChaosOptions) -> Outcome:
    outcome = Outcome(exit_status=0)
    try:
        with run_server(options.model / "nowhere", program=_FAULTY):
            outcome.faults.append("it serves")
    except StartupError as error:
        if f"status {EXIT_CONFIGURATION} " in str(error):
            outcome.exit_status = EXIT_CONFIGURATION
        else:
            outcome.faults.append(str(error))
    return outcome


@contextmanager
def _interruptible() -> Iterator[asyncio.Event]:
    """Ctrl-C lets the present scenario end and then no other begin."""
    interrupted = asyncio.Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
