"""`mapseek bench chaos`: what can go wrong goes wrong, under load, and every answer is checked.

Each scenario injects one fault into a real server process (see `benchmarks.faults`) while callers
ask for embeddings that are known, and a probe asks for the health twenty times a second.
"""

import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc

from benchmarks.faults import NO_NUMBERS, POISON
from benchmarks.hostile import Victim, attacks
from benchmarks.machine import this_machine
from benchmarks.pictures import plain, screenshots
from benchmarks.report import Progress, Report, Table, Target
from benchmarks.server_process import RunningServer, run_server
from benchmarks.valid import TOLERANCE, Question, questions
from inference.artifact import Artifact
from inference.errors import StartupError
from inference.server import EXIT_CONFIGURATION, EXIT_ENGINE_FAILED, EXIT_ENGINE_HUNG

_FAULTY = "import sys; from benchmarks.faults import main; sys.exit(main())"
# Of the servers here, so that a run takes a minute: what counts as hung, and what is given up.
_WATCHDOG_S = 1.0
_GRACE_S = 2.0
_HANG_S = 3.0
_FOR_GOOD_S = 3600.0
# A call that takes longer is lost.
_PATIENCE_S = 30.0
_PROBE_S = 0.05
_CALLERS = 6
# How long something may take that a server does by itself, before the run gives up on it.
_END_S = 60.0

OK, INTERNAL, UNAVAILABLE = "OK", "INTERNAL", "UNAVAILABLE"
FULL, WRONG = "RESOURCE_EXHAUSTED", "WRONG ANSWER"
# Broken off by the end of the process. gRPC has several words for it.
GONE = frozenset({UNAVAILABLE, "CANCELLED"})
# Attacks of `bench soak` whose clients are slow or leave.
_CLIENTS = frozenset(
    {
        "call cancelled",
        "connection dropped in a call",
        "tiny deadline",
        "stream left in the middle",
        "stream that does not read",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """What to break, and how patiently to look.

    Attributes:
        model: The model folder to serve.
        seconds: How long each fault lasts, beside the time that it takes by itself.
        within_s: How late health may tell the truth.
        only: Scenarios to run, by their names; all of them if empty.
        seed: Decides everything random.
    """

    model: Path
    seconds: float = 3.0
    within_s: float = 1.0
    only: Sequence[str] = ()
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one scenario.

    Attributes:
        statuses: How calls for known pictures ended; `WRONG` for another embedding.
        poisoned: How calls for poisoned pictures ended.
        late_s: How late health told the truth, at worst.
        faults: What was not as it should be.
        exit_status: Of the process, where the scenario ends it.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    poisoned: Counter[str] = field(default_factory=Counter)
    late_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    exit_status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One fault.

    Attributes:
        name: What goes wrong.
        inflict: Does it.
        allowed: How calls may end meanwhile.
        exit_status: What the process has to end with; None where it lives on.
        settings: Settings of its server.
    """

    name: str
    inflict: "Callable[[Chaos], Awaitable[None]]"
    allowed: frozenset[str]
    exit_status: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


class Chaos:
    """One scenario at work: traffic, a probe of the health, and what was seen.

    Attributes:
        outcome: What was seen so far.
    """

    def __init__(
        self, options: ChaosOptions, server: RunningServer, asked: Sequence[Question]
    ) -> None:
        self.options = options
        self.outcome = Outcome()
        self._server = server
        self._asked = asked
        self._stop = asyncio.Event()
        self._state = True
        self._changed = asyncio.Condition()

    async def run(self, scenario: Scenario) -> None:
        """Lets it go wrong, and checks what can be seen."""
        tasks = [asyncio.create_task(self._probe())]
        tasks += [asyncio.create_task(self._ask(number)) for number in range(_CALLERS)]
        try:
            async with asyncio.timeout(_END_S + self.options.seconds):
                await self.during(lambda: self.outcome.statuses[OK] >= _CALLERS)
                await scenario.inflict(self)
        except TimeoutError:
            self.outcome.faults.append("it did not come to an end")
        self._stop.set()
        await asyncio.gather(*tasks)
        odd = {code: n for code, n in self.outcome.statuses.items() if code not in scenario.allowed}
        self.outcome.faults += [f"{code} {count}" for code, count in odd.items()]

    def inflict(self, command: str) -> None:
        """Tells the faulty engine what to do."""
        assert self._server.process.stdin is not None  # noqa: S101  it was started with one
        self._server.process.stdin.write(command.encode() + b"\n")
        self._server.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Sends the process a signal."""
        self._server.process.send_signal(number)

    async def last(self) -> None:
        """Lets the fault last for a while."""
        await asyncio.sleep(self.options.seconds)

    async def during(self, condition: Callable[[], bool]) -> None:
        """Waits until a state is reached that traffic brings about."""
        while not condition():  # noqa: ASYNC110  nothing announces it
            await asyncio.sleep(_PROBE_S)

    async def health_says(self, serving: bool, *, after_s: float = 0.0) -> None:  # noqa: FBT001
        """Waits until probes are told so, and notes how late it was.

        Args:
            serving: What is true from now on.
            after_s: How long the server itself needs to find out.
        """
        since = time.monotonic()
        async with self._changed:
            await self._changed.wait_for(lambda: self._state is serving)
        late_s = max(0.0, time.monotonic() - since - after_s)
        self.outcome.late_s = max(self.outcome.late_s, late_s)
        if late_s > self.options.within_s:
            word = "SERVING" if serving else "NOT_SERVING"
            self.outcome.faults.append(f"health said {word} {late_s:.1f} s late")

    def must_be_healthy(self) -> None:
        """Notes it as a fault where health says anything but SERVING."""
        if not self._state:
            self.outcome.faults.append("health says NOT_SERVING")

    async def ended(self) -> None:
        """Waits until the process has ended."""
        await self.during(lambda: not self._server.alive)
        self.outcome.exit_status = self._server.process.returncode

    async def poison(self) -> None:
        """Sends poisoned pictures beside the others for a while."""
        until = time.monotonic() + self.options.seconds
        async with self._stub() as stub:
            for colour in itertools.cycle((POISON, NO_NUMBERS)):
                if time.monotonic() > until:
                    return
                request = pb.EmbedRequest(image=plain(colour))
                self.outcome.poisoned[await _status(stub, request, None)] += 1
                await asyncio.sleep(0)

    async def annoy(self) -> None:
        """Lets slow and vanishing clients come for a while."""
        kinds = [kind for kind in attacks() if kind.name in _CLIENTS]
        victim = Victim(
            self._server.address,
            [question.picture for question in self._asked],
            max_image_bytes=2**24,
            max_message_bytes=2**24 + 2**20,
            seed=self.options.seed,
        )
        until = time.monotonic() + self.options.seconds
        async with victim.channel:
            for kind in itertools.cycle(kinds):
                ending = await kind.run(victim)
                if ending not in kind.expected:
                    self.outcome.faults.append(f"{kind.name}: {ending}")
                if time.monotonic() > until:
                    return

    async def _ask(self, first: int) -> None:
        async with self._stub() as stub:
            for question in itertools.islice(itertools.cycle(self._asked), first, None):
                if self._stop.is_set():
                    return
                request = pb.EmbedRequest(image=question.picture)
                status = await _status(stub, request, question)
                self.outcome.statuses[status] += 1
                if status != OK:  # as callers should; and a vanished server answers very quickly
                    await asyncio.sleep(_PROBE_S)

    async def _probe(self) -> None:
        async with self._channel() as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while not self._stop.is_set():
                try:
                    answer = await health.Check(
                        health_pb2.HealthCheckRequest(), timeout=_PATIENCE_S
                    )
                    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
                except grpc.aio.AioRpcError:
                    serving = False
                async with self._changed:
                    self._state = serving
                    self._changed.notify_all()
                await asyncio.sleep(_PROBE_S)

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(
            self._server.address, options=[("grpc.use_local_subchannel_pool", 1)]
        )

    @asynccontextmanager
    async def _stub(self) -> "AsyncIterator[embedding_pb2_grpc.EmbeddingServiceAsyncStub]":
        async with self._channel() as channel:
            yield embedding_pb2_grpc.EmbeddingServiceStub(channel)


async def _status(
    stub: "embedding_pb2_grpc.EmbeddingServiceAsyncStub",
    request: pb.EmbedRequest,
    question: Question | None,
) -> str:
    """Makes one call, without retries, and returns how it ended."""
    try:
        answer = await stub.Embed(request, timeout=_PATIENCE_S)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    if question is None:
        return OK
    values = np.array(answer.embedding.values, np.float32)
    if values.shape != question.embedding.shape:
        return WRONG
    right = np.abs(values - question.embedding).max() <= TOLERANCE
    return OK if right else WRONG


async def _errors(chaos: Chaos) -> None:
    for _ in range(3):
        chaos.inflict("fail 2")
        await asyncio.sleep(chaos.options.seconds / 3)
    chaos.inflict("mend")
    await chaos.health_says(True)


async def _breaks(chaos: Chaos) -> None:
    chaos.inflict("break")
    await chaos.health_says(False)
    await chaos.last()
    chaos.inflict("mend")
    await chaos.health_says(True)
    right = chaos.outcome.statuses[OK]
    await chaos.during(lambda: chaos.outcome.statuses[OK] > right)


async def _hangs(chaos: Chaos) -> None:
    chaos.inflict(f"hang {_HANG_S}")
    await chaos.health_says(False, after_s=_WATCHDOG_S)
    await chaos.health_says(True, after_s=_HANG_S - _WATCHDOG_S)


async def _memory(chaos: Chaos) -> None:
    chaos.inflict("memory 1")
    await chaos.last()
    chaos.must_be_healthy()


async def _no_memory(chaos: Chaos) -> None:
    chaos.inflict("memory 0")
    await chaos.health_says(False)
    chaos.inflict("mend")
    await chaos.health_says(True)


async def _poison(chaos: Chaos) -> None:
    await chaos.poison()
    chaos.must_be_healthy()
    wrong = {code: count for code, count in chaos.outcome.poisoned.items() if code != INTERNAL}
    chaos.outcome.faults += [f"poisoned: {code} {count}" for code, count in wrong.items()]


async def _clients(chaos: Chaos) -> None:
    await chaos.annoy()
    chaos.must_be_healthy()


async def _clock(chaos: Chaos) -> None:
    for jump in (86_400.0, -86_400.0 * 365, 0.0):
        chaos.inflict(f"clock {jump}")
        await asyncio.sleep(chaos.options.seconds / 3)
    chaos.must_be_healthy()


async def _sigterm(chaos: Chaos) -> None:
    chaos.signal(signal.SIGTERM)
    await chaos.health_says(False)
    await chaos.ended()


async def _sigkill(chaos: Chaos) -> None:
    chaos.signal(signal.SIGKILL)
    await chaos.health_says(False)
    await chaos.ended()


async def _hangs_for_good(chaos: Chaos) -> None:
    chaos.inflict(f"hang {_FOR_GOOD_S}")
    await chaos.health_says(False, after_s=_WATCHDOG_S)
    await chaos.ended()


async def _breaks_for_good(chaos: Chaos) -> None:
    chaos.inflict("break")
    await chaos.health_says(False)
    await chaos.ended()


async def _sigterm_while_it_hangs(chaos: Chaos) -> None:
    chaos.inflict(f"hang {_FOR_GOOD_S}")
    await chaos.health_says(False, after_s=_WATCHDOG_S)
    chaos.signal(signal.SIGTERM)
    await chaos.ended()


_PATIENT = {"watchdog_grace_s": "0"}
SCENARIOS = (
    Scenario(name="engine errors", inflict=_errors, allowed=frozenset({OK, INTERNAL, UNAVAILABLE})),
    Scenario(
        name="engine breaks and recovers",
        inflict=_breaks,
        allowed=frozenset({OK, INTERNAL, UNAVAILABLE}),
        settings=_PATIENT,
    ),
    Scenario(
        name="engine hangs and returns",
        inflict=_hangs,
        allowed=frozenset({OK, UNAVAILABLE}),
        settings=_PATIENT,
    ),
    Scenario(name="memory for one picture at a time", inflict=_memory, allowed=frozenset({OK})),
    Scenario(
        name="no memory at all",
        inflict=_no_memory,
        allowed=frozenset({OK, FULL, UNAVAILABLE}),
        settings=_PATIENT,
    ),
    Scenario(name="poisoned pictures", inflict=_poison, allowed=frozenset({OK})),
    Scenario(name="slow and vanishing clients", inflict=_clients, allowed=frozenset({OK, FULL})),
    Scenario(name="wall clock jumps", inflict=_clock, allowed=frozenset({OK})),
    Scenario(
        name="SIGTERM under load", inflict=_sigterm, allowed=frozenset({OK, *GONE}), exit_status=0
    ),
    Scenario(
        name="SIGKILL under load",
        inflict=_sigkill,
        allowed=frozenset({OK, *GONE}),
        exit_status=-signal.SIGKILL,
    ),
    Scenario(
        name="engine hangs for good",
        inflict=_hangs_for_good,
        allowed=frozenset({OK, *GONE}),
        exit_status=EXIT_ENGINE_HUNG,
    ),
    Scenario(
        name="engine breaks for good",
        inflict=_breaks_for_good,
        allowed=frozenset({OK, INTERNAL, *GONE}),
        exit_status=EXIT_ENGINE_FAILED,
    ),
    Scenario(
        name="SIGTERM while the engine hangs",
        inflict=_sigterm_while_it_hangs,
        allowed=frozenset({OK, *GONE}),
        exit_status=0,
        settings=_PATIENT,
    ),
)
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
        tables=[_table(outcomes)],
        targets=judge(outcomes),
        data={"outcomes": outcomes},
        complete=not interrupted.is_set(),
    )


def judge(outcomes: Mapping[str, Outcome]) -> list[Target]:
    """Holds what was seen against what is promised, scenario by scenario."""
    return [
        Target(
            name=name,
            met=not outcome.faults,
            found="; ".join(outcome.faults) or "as it should be",
        )
        for name, outcome in outcomes.items()
    ]


def _play(options: ChaosOptions, scenario: Scenario, asked: Sequence[Question]) -> Outcome:
    settings = {
        "watchdog_s": str(_WATCHDOG_S),
        "watchdog_grace_s": str(_GRACE_S),
        "log_level": "error",
        **scenario.settings,
    }
    with run_server(options.model, settings, program=_FAULTY) as server:
        chaos = Chaos(options, server, asked)
        asyncio.run(chaos.run(scenario))
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


def _table(outcomes: Mapping[str, Outcome]) -> Table:
    def counts(statuses: Counter[str]) -> str:
        return ", ".join(f"{status} {count}" for status, count in statuses.most_common())

    return Table(
        title="Chaos",
        columns=("what goes wrong", "calls ended", "poisoned ended", "health late, s", "exit"),
        rows=[
            (name, counts(one.statuses), counts(one.poisoned), one.late_s, one.exit_status)
            for name, one in outcomes.items()
        ],
        notes=("The wall clock of the server's Python jumps, not that of the machine.",),
    )
