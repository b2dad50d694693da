"""`mapseek bench soak`: hostile traffic beside valid traffic, for as long as you like.

It checks that every valid call is answered right, that no hostile one gets an answer that it should
not, and that the process lives, stays SERVING, does not grow, and stops cleanly at the end.
"""

import asyncio
import itertools
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.hostile import HUNG, Attack, Victim, attacks
from benchmarks.machine import this_machine
from benchmarks.memory import MB, Growth, open_files, rss_bytes
from benchmarks.pictures import screenshots
from benchmarks.report import Progress, Report, Table, Target
from benchmarks.server_process import RunningServer, run_server
from benchmarks.valid import Answers, Question, ask_in_bulk, ask_one_by_one, questions
from inference.artifact import Artifact
from inference.client import ClientSettings, EmbeddingClient

_SAMPLE_S = 0.25
# Giant pictures fill the allocator's pools for a while; a shorter run would call that growth.
_SETTLED_S = 180.0
_PROBE_PATIENCE_S = 10.0
# The longest that a single attack may keep an attacker.
_ATTACK_S = 60.0
_CALLERS_WITHOUT_HOSTILITY = 8
# Connections come and go; a leak of one in a hundred attacks is more than this in ten minutes.
_FILES_TOLERANCE = 8
# What is promised of the server without hostility; giant pictures take more for a moment.
_MAX_RESIDENT_MB = 400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakOptions:
    """How long, and how hard.

    Attributes:
        model: The model folder to serve.
        minutes: How long hostile and valid traffic go on.
        requests: Instead: this many valid requests and no hostile ones.
        attackers: Hostile clients at the same time.
        callers: Well-behaved callers at the same time; one stream comes on top.
        tolerance_mb: By how much the floor of the resident memory may rise.
        seed: Which attacks come when.
    """

    model: Path
    minutes: float = 10.0
    requests: int | None = None
    attackers: int = 4
    callers: int = 2
    tolerance_mb: float = 16.0
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
        last_words: What it printed last, if it did.
        exit_status: Its exit status after SIGTERM.
    """

    answers: Answers = field(default_factory=Answers)
    attacks: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    memory: list[tuple[float, float]] = field(default_factory=list)
    files: list[tuple[float, float]] = field(default_factory=list)
    probes: int = 0
    unwell: int = 0
    died: bool = False
    last_words: list[str] = field(default_factory=list)
    exit_status: int | None = None


def bench_soak(options: SoakOptions, progress: Progress) -> Report:
    """Runs the soak on a server of its own; Ctrl-C ends it with the report so far.

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
        if observed.died:
            observed.last_words = server.last_words()
    observed.exit_status = server.process.returncode
    return Report(
        command="mapseek bench soak",
        machine=machine,
        model_id=artifact.manifest.model_id,
        settings={name: getattr(options, name) for name in SoakOptions.__dataclass_fields__},
        tables=_tables(observed, kinds),
        targets=judge(observed, kinds, tolerance_mb=options.tolerance_mb),
        data={
            "right": observed.answers.right,
            "wrong": observed.answers.wrong,
            "failed": observed.answers.failed,
            "worst_difference": observed.answers.worst,
            "last_words": observed.last_words,
            "attacks": observed.attacks,
            "memory_bytes": observed.memory,
            "open_files": observed.files,
            "cold_start_s": server.cold_start_s,
        },
        complete=not stopped_early,
    )


def judge(observed: Observed, kinds: Sequence[Attack], *, tolerance_mb: float) -> list[Target]:
    """Holds what was seen against what is promised."""
    answers = observed.answers
    failures = "; ".join(f"{count} x {what}" for what, count in answers.failed.most_common(3))
    memory = observed.memory
    if kinds and (not memory or memory[-1][0] < _SETTLED_S):
        memory = []
    ended = f"exit status {observed.exit_status}"
    targets = [
        Target(
            name="every valid call is answered right",
            met=answers.right > 0 and answers.right == answers.total,
            found=f"{answers.right} right, {answers.wrong} wrong, {answers.failed.total()} failed"
            + (f" ({failures})" if failures else ""),
            ratio=answers.right / answers.total if answers.total else None,
        ),
        Target(
            name="the process lives and stops cleanly",
            met=not observed.died and observed.exit_status == 0,
            found=f"it died: {ended}" if observed.died else ended,
        ),
        Target(
            name="health stays SERVING",
            met=observed.probes > 0 and not observed.unwell,
            found=f"{observed.probes - observed.unwell} of {observed.probes} probes",
        ),
        _flat("resident memory, MB,", memory, scale=MB, tolerance=tolerance_mb),
        _flat("number of open files", observed.files, scale=1, tolerance=_FILES_TOLERANCE),
    ]
    if kinds:
        targets.append(_statuses(observed, kinds))
    elif observed.memory:
        highest = max(size for _, size in observed.memory) / MB
        name = f"resident memory of the server at most {_MAX_RESIDENT_MB:g} MB"
        targets.append(Target.at_most(name, highest, _MAX_RESIDENT_MB))
    return targets


def _flat(
    what: str, samples: Sequence[tuple[float, float]], *, scale: float, tolerance: float
) -> Target:
    """The floor of a series must not rise by more than the tolerance."""
    name = f"no growth: {what} rises by at most {tolerance:g}"
    growth = Growth.of(samples)
    if growth is None:
        return Target(name=name, met=None, found="too short to tell")
    highest = max(value for _, value in samples)
    return Target(
        name=name,
        met=growth.rise <= tolerance * scale,
        found=f"{growth.before / scale:.0f} -> {growth.after / scale:.0f} "
        f"in {growth.seconds:.0f} s; {highest / scale:.0f} at most",
        ratio=growth.rise / scale / tolerance if tolerance else None,
    )


def _statuses(observed: Observed, kinds: Sequence[Attack]) -> Target:
    odd = [
        f"{kind.name}: {ending} {count}"
        for kind in kinds
        for ending, count in observed.attacks.get(kind.name, Counter()).items()
        if ending not in kind.expected
    ]
    total = sum(endings.total() for endings in observed.attacks.values())
    return Target(
        name="hostile calls end as they should",
        met=total > 0 and not odd,
        found="; ".join(odd) or f"all {total}",
    )


def _tables(observed: Observed, kinds: Sequence[Attack]) -> list[Table]:
    rows = [
        (
            kind.name,
            endings.total(),
            ", ".join(f"{end} {count}" for end, count in endings.most_common()),
        )
        for kind in kinds
        if (endings := observed.attacks.get(kind.name))
    ]
    tables = [Table(title="Hostile traffic", columns=("attack", "times", "ended"), rows=rows)]
    if observed.died:
        lines = [(line,) for line in observed.last_words or ["(none)"]]
        tables.append(Table(title="The server's last words", columns=("",), rows=lines))
    return tables if kinds else tables[1:]


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
        # Not `load`: what the operator has set is for their own server.
        settings = ClientSettings.model_construct(server=self._server.address, attempts=100)
        async with EmbeddingClient(settings) as client, asyncio.TaskGroup() as group:
            traffic = group.create_task(self._traffic(client))
            group.create_task(self._probe())
            group.create_task(self._watch(progress, traffic))
        return self._interrupted

    def _interrupt(self) -> None:
        self._interrupted = True
        self._stop.set()

    async def _traffic(self, client: EmbeddingClient) -> None:
        if self._options.requests is not None:
            await self._only_valid(client, self._options.requests)
        else:
            await self._with_hostility(client)
        self._stop.set()

    async def _only_valid(self, client: EmbeddingClient, requests: int) -> None:
        tickets = iter(range(requests))
        async with asyncio.TaskGroup() as callers:
            for number in range(_CALLERS_WITHOUT_HOSTILITY):
                asked = [*self._asked[number:], *self._asked[:number]]
                callers.create_task(
                    ask_one_by_one(client, asked, self._observed.answers, self._stop, tickets)
                )

    async def _with_hostility(self, client: EmbeddingClient) -> None:
        model = await client.wait_ready(_PROBE_PATIENCE_S)
        answers = self._observed.answers
        async with asyncio.TaskGroup() as traffic:
            for _ in range(self._options.callers):
                traffic.create_task(
                    ask_one_by_one(client, self._asked, answers, self._stop, itertools.repeat(None))
                )
            traffic.create_task(ask_in_bulk(client, self._asked, answers, self._stop))
            for number in range(self._options.attackers):
                victim = Victim(
                    self._server.address,
                    [question.picture for question in self._asked],
                    max_image_bytes=model.limits.max_image_bytes,
                    max_message_bytes=model.limits.max_message_bytes,
                    seed=self._options.seed * 1000 + number,
                )
                traffic.create_task(self._attack(victim))
            await self._pause(self._options.minutes * 60)
            self._stop.set()

    async def _attack(self, victim: Victim) -> None:
        """Attacks again and again; every kind once before any comes twice."""
        weights = [kind.weight for kind in self._kinds]
        first = victim.chance.sample(self._kinds, len(self._kinds))
        async with victim.channel:
            while not self._stop.is_set() and self._server.alive:
                kind = first.pop() if first else victim.chance.choices(self._kinds, weights)[0]
                try:
                    async with asyncio.timeout(_ATTACK_S):
                        ending = await kind.run(victim)
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

    async def _watch(self, progress: Progress, traffic: asyncio.Task[None]) -> None:
        """Samples the process and tells how far it has come; without it, ends the traffic."""
        while not self._stop.is_set():
            elapsed_s = time.monotonic() - self._begin
            try:
                memory = rss_bytes(self._server.pid)
                files = open_files(self._server.pid)
            except psutil.Error:
                if self._server.alive:
                    raise
            if not self._server.alive:
                self._stop.set()
                traffic.cancel()  # its callers would wait for the server to come back
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
                f"{answers.right} right, {bad} not; {hostile} attacks; {memory / MB:.0f} MB",
                min(done, 1.0),
            )
            await self._pause(_SAMPLE_S)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
