"""One fault at work: traffic in every way, a probe of the health, and what is seen of both."""

import asyncio
import itertools
import signal
import time
from collections.abc import Awaitable, Callable, Sequence

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc

from benchmarks.chaos import traffic
from benchmarks.chaos.faults import NO_NUMBERS, POISON
from benchmarks.chaos.outcome import OK, OPEN_STREAM, STREAM, UNARY, ChaosOptions, Outcome
from benchmarks.hostile import Victim, attacks
from benchmarks.pictures import plain
from benchmarks.server_process import RunningServer
from benchmarks.valid import Question

_PROBE_S = 0.05
# How long something may take that a server does by itself, before the run gives up on it.
_END_S = 60.0
# Who asks, and how.
_CALLERS: Sequence[tuple[str, traffic.Ask]] = (
    *[(UNARY, traffic.one_by_one)] * 6,
    (STREAM, traffic.over_stream),
    (OPEN_STREAM, traffic.over_open_stream),
)
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

    async def run(
        self, inflict: "Callable[[Chaos], Awaitable[None]]", allowed: frozenset[str]
    ) -> None:
        """Lets it go wrong, and checks what can be seen.

        Args:
            inflict: What goes wrong.
            allowed: How images may be answered meanwhile.
        """
        tasks = [asyncio.create_task(self._probe())]
        tasks += [
            asyncio.create_task(self._ask(way, ask, number))
            for number, (way, ask) in enumerate(_CALLERS)
        ]
        try:
            async with asyncio.timeout(_END_S + self.options.seconds):
                await self.during(self._is_answered)
                await inflict(self)
        except TimeoutError:
            self.outcome.faults.append("it did not come to an end")
        self._stop.set()
        await asyncio.gather(*tasks)
        self.outcome.faults += [
            f"{way}: {status} {count}"
            for way, statuses in self.outcome.statuses.items()
            for status, count in statuses.items()
            if status not in allowed
        ]

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
        async with self._channel() as channel:
            stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            for colour in itertools.cycle((POISON, NO_NUMBERS)):
                if time.monotonic() > until:
                    return
                request = pb.EmbedRequest(image=plain(colour))
                self.outcome.poisoned[await traffic.status_of(stub, request, None)] += 1
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

    def _is_answered(self) -> bool:
        """Whether everybody has had answers, so that a fault meets them at work."""
        return all(statuses[OK] >= len(_CALLERS) for statuses in self.outcome.statuses.values())

    async def _ask(self, way: str, ask: traffic.Ask, first: int) -> None:
        asked = [*self._asked[first:], *self._asked[:first]]
        async with self._channel() as channel:
            await ask(channel, asked, self.outcome.statuses[way], self._stop)

    async def _probe(self) -> None:
        async with self._channel() as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while not self._stop.is_set():
                try:
                    answer = await health.Check(
                        health_pb2.HealthCheckRequest(), timeout=traffic.PATIENCE_S
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
