"""`mapseek bench soak`: hostile traffic beside valid traffic, for as long as you like.

It promises, and checks: every valid call is answered right; no hostile one gets an answer that it
should not; the process lives, stays SERVING, does not grow, and stops cleanly at the end.
"""

import asyncio
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.hostile import HUNG, Attack, Target, attacks
from benchmarks.machine import this_machine
from benchmarks.memory import MIB, Trend, open_files, rss_bytes, second_half
from benchmarks.pictures import screenshots
from benchmarks.report import Report, Table
from benchmarks.server_process import RunningServer, run_server
from benchmarks.valid import Answers, Question, ask_in_bulk, ask_one_by_one, questions
from inference.artifact import Artifact
from inference.client import ClientSettings, EmbeddingClient

Progress = Callable[[str, float], None]

_SAMPLE_S = 0.5
_PROBE_PATIENCE_S = 10.0
# The longest that a single attack may keep an attacker.
_ATTACK_S = 60.0
_CALLERS_WITHOUT_HOSTILITY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakOptions:
    """How long, and how hard.

    Attributes:
        model: The model folder to serve.
        minutes: How long hostile and valid traffic go on.
        requests: Instead: this many valid requests and no hostile ones.
        attackers: Hostile clients at the same time.
        callers: Well-behaved callers at the same time; one stream comes on top.
        tolerance_mib: By how much the resident memory may grow over the second half.
        seed: Which attacks come when.
    """

    model: Path
    minutes: float = 10.0
    requests: int | None = None
    attackers: int = 4
    callers: int = 2
    tolerance_mib: float = 16.0
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Observed:
    """What was seen from outside.

    Attributes:
        answers: Of the well-behaved callers.
        attacks: How attacks ended, by their name.
        memory: (seconds, bytes) samples of the resident memory.
        files: (seconds, count) samples of the open files.
        probes: Health probes.
        unwell: Those that were not answered SERVING.
        died: Whether the process ended by itself.
        exit_status: Its exit status after SIGTERM.
    """

    answers: Answers = field(default_factory=Answers)
    attacks: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    memory: list[tuple[float, float]] = field(default_factory=list)
    files: list[tuple[float, float]] = field(default_factory=list)
    probes: int = 0
    unwell: int = 0
    died: bool = False
    exit_status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One promise and whether it was kept.

    Attributes:
        name: What was promised.
        kept: Whether it was.
        found: What was seen.
    """

    name: str
    kept: bool
    found: str


def bench_soak(options: SoakOptions, progress: Progress) -> tuple[Report, bool]:
    """Runs the soak on a server of its own; Ctrl-C ends it with the report so far.

    Returns:
        The report, and whether every promise was kept.

    Raises:
        StartupError: The model cannot be loaded, or the server does not start.
    """
    machine = this_machine()
    artifact = Artifact.load(options.model)
    progress("computing the right answers", 0.0)
    asked = questions(artifact, screenshots(32))
    kinds = [] if options.requests else attacks()
    observed = Observed()
    with run_server(options.model) as server:
        soak = _Soak(options, server, asked, kinds, observed)
        stopped_early = asyncio.run(soak.run(progress))
        observed.died = not server.alive
    observed.exit_status = server.process.returncode
    promises = judge(observed, kinds, tolerance_mib=options.tolerance_mib)
    report = Report(
        command="mapseek bench soak",
        machine=machine,
        model_id=artifact.manifest.model_id,
        settings={name: getattr(options, name) for name in SoakOptions.__dataclass_fields__},
        tables=_tables(observed, kinds, promises),
        data={
            "promises": promises,
            "right": observed.answers.right,
            "wrong": observed.answers.wrong,
            "failed": observed.answers.failed,
            "worst_difference": observed.answers.worst,
            "attacks": observed.attacks,
            "memory_bytes": observed.memory,
            "open_files": observed.files,
            "cold_start_s": server.cold_start_s,
        },
        complete=not stopped_early,
    )
    return report, all(promise.kept for promise in promises)


def judge(observed: Observed, kinds: Sequence[Attack], *, tolerance_mib: float) -> list[Promise]:
    """Holds what was seen against what is promised."""
    answers = observed.answers
    failures = "; ".join(f"{count} x {what}" for what, count in answers.failed.most_common(3))
    trend = Trend.through(second_half(observed.memory))
    surprises = {
        kind.name: dict(odd)
        for kind in kinds
        if (odd := _unexpected(kind, observed.attacks.get(kind.name, Counter())))
    }
    promises = [
        Promise(
            name="every valid call is answered right",
            kept=answers.right > 0 and answers.right == answers.total,
            found=f"{answers.right} right, {answers.wrong} wrong, {answers.failed.total()} failed"
            + (f" ({failures})" if failures else ""),
        ),
        Promise(
            name="the process lives and stops cleanly",
            kept=not observed.died and observed.exit_status == 0,
            found="it died" if observed.died else f"exit status {observed.exit_status}",
        ),
        Promise(
            name="health stays SERVING",
            kept=observed.probes > 0 and not observed.unwell,
            found=f"{observed.unwell} of {observed.probes} probes were not answered so",
        ),
        Promise(
            name=f"memory grows by less than {tolerance_mib:g} MiB over the second half",
            kept=trend is None or not trend.grows(tolerance_mib * MIB),
            found=_told(observed.memory, trend),
        ),
    ]
    if kinds:
        promises.append(
            Promise(
                name="hostile calls get the statuses that are meant for them",
                kept=not surprises,
                found=str(surprises) if surprises else "all of them",
            )
        )
    return promises


def _unexpected(kind: Attack, endings: Counter[str]) -> Counter[str]:
    return Counter({end: count for end, count in endings.items() if end not in kind.expected})


def _told(memory: Sequence[tuple[float, float]], trend: Trend | None) -> str:
    if trend is None:
        return "too short to tell"
    first, last = memory[0][1] / MIB, memory[-1][1] / MIB
    highest = max(value for _, value in memory) / MIB
    return (
        f"{trend.growth / MIB:+.1f} MiB over {trend.span:.0f} s "
        f"({trend.slope / MIB * 3600:+.1f} +- {trend.slope_error / MIB * 3600:.1f} MiB an hour); "
        f"at first {first:.0f}, at last {last:.0f}, at most {highest:.0f} MiB"
    )


def _tables(
    observed: Observed, kinds: Sequence[Attack], promises: Sequence[Promise]
) -> list[Table]:
    tables = [
        Table(
            title="Promises",
            columns=("promise", "", "seen"),
            rows=[
                (promise.name, "kept" if promise.kept else "BROKEN", promise.found)
                for promise in promises
            ],
            notes=[f"an embedding was off by {observed.answers.worst:.1e} at most"],
        )
    ]
    if kinds:
        tables.append(
            Table(
                title="Hostile traffic",
                columns=("attack", "times", "ended"),
                rows=[
                    (
                        kind.name,
                        endings.total(),
                        ", ".join(f"{end} {count}" for end, count in endings.most_common()),
                    )
                    for kind in kinds
                    if (endings := observed.attacks.get(kind.name))
                ],
            )
        )
    return tables


class _Soak:
    """All the traffic, on one event loop."""

    def __init__(
        self,
        options: SoakOptions,
        server: RunningServer,
        asked: Sequence[Question],
        kinds: Sequence[Attack],
        observed: Observed,
    ) -> None:
        self._kinds = kinds
        self._options = options
        self._server = server
        self._asked = asked
        self._observed = observed
        self._stop = asyncio.Event()
        self._interrupted = False
        self._begin = time.monotonic()

    async def run(self, progress: Progress) -> bool:
        """Goes on until the time or the requests are over; returns whether it was interrupted."""
        self._begin = time.monotonic()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)
        settings = ClientSettings.load(server=self._server.address, attempts=100)
        async with EmbeddingClient(settings) as client, asyncio.TaskGroup() as group:
            watch = [group.create_task(task) for task in (self._probe(), self._watch(progress))]
            if self._options.requests is not None:
                await self._only_valid(client, self._options.requests)
            else:
                await self._with_hostility(client)
            self._stop.set()
            await asyncio.gather(*watch)
        return self._interrupted

    def _interrupt(self) -> None:
        self._interrupted = True
        self._stop.set()

    async def _only_valid(self, client: EmbeddingClient, requests: int) -> None:
        async with asyncio.TaskGroup() as callers:
            for number in range(_CALLERS_WITHOUT_HOSTILITY):
                asked = [*self._asked[number:], *self._asked[:number]]
                callers.create_task(
                    ask_one_by_one(
                        client, asked, self._observed.answers, self._stop, limit=requests
                    )
                )

    async def _with_hostility(self, client: EmbeddingClient) -> None:
        model = await client.wait_ready(_PROBE_PATIENCE_S)
        answers = self._observed.answers
        async with asyncio.TaskGroup() as traffic:
            for _ in range(self._options.callers):
                traffic.create_task(ask_one_by_one(client, self._asked, answers, self._stop))
            traffic.create_task(ask_in_bulk(client, self._asked, answers, self._stop))
            for number in range(self._options.attackers):
                target = Target(
                    self._server.address,
                    [question.picture for question in self._asked],
                    max_image_bytes=model.limits.max_image_bytes,
                    max_message_bytes=model.limits.max_message_bytes,
                    seed=self._options.seed * 1000 + number,
                )
                traffic.create_task(self._attack(target))
            await self._pause(self._options.minutes * 60)
            self._stop.set()

    async def _attack(self, target: Target) -> None:
        """Attacks again and again; every kind once before any comes twice."""
        weights = [kind.weight for kind in self._kinds]
        first = target.chance.sample(self._kinds, len(self._kinds))
        async with target.channel:
            while not self._stop.is_set() and self._server.alive:
                kind = first.pop() if first else target.chance.choices(self._kinds, weights)[0]
                try:
                    async with asyncio.timeout(_ATTACK_S):
                        ending = await kind.run(target)
                except TimeoutError:
                    ending = HUNG
                self._observed.attacks[kind.name][ending] += 1

    async def _probe(self) -> None:
        """Asks for the health over a connection of its own, as an orchestrator does."""
        async with grpc.aio.insecure_channel(self._server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while not self._stop.is_set():
                self._observed.probes += 1
                try:
                    answer = await health.Check(
                        health_pb2.HealthCheckRequest(), timeout=_PROBE_PATIENCE_S
                    )
                    self._observed.unwell += answer.status != health_pb2.HealthCheckResponse.SERVING
                except grpc.aio.AioRpcError:
                    self._observed.unwell += 1
                await self._pause(_SAMPLE_S)

    async def _watch(self, progress: Progress) -> None:
        """Samples the memory and tells how far it has come."""
        while not self._stop.is_set():
            elapsed_s = time.monotonic() - self._begin
            try:
                memory = rss_bytes(self._server.pid)
                files = open_files(self._server.pid)
            except ProcessLookupError:
                self._stop.set()  # it died; there is nothing left to soak
                return
            self._observed.memory.append((elapsed_s, memory))
            self._observed.files.append((elapsed_s, files))
            answers = self._observed.answers
            done = (
                answers.total / self._options.requests
                if self._options.requests
                else elapsed_s / (self._options.minutes * 60)
            )
            hostile = sum(endings.total() for endings in self._observed.attacks.values())
            bad = answers.total - answers.right
            progress(
                f"{answers.right} right, {bad} not; {hostile} attacks; {memory / MIB:.0f} MiB",
                min(done, 1.0),
            )
            await self._pause(_SAMPLE_S)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return
