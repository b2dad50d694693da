"""Load on a server, from a process of its own so that it never shares a lock with what it measures.

`LoadProcess` starts `python -m benchmarks.load` and sends it jobs, one JSON object a line; each is
answered with one line. The process does as little as it can: requests are serialised beforehand,
answers are not parsed beyond their length. Its own CPU time is part of the answer.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from mapseek.v1 import embedding_pb2 as pb

from benchmarks.latency import poisson_arrivals
from inference.errors import StartupError

_METHOD = "/mapseek.v1.EmbeddingService/Embed"
_CONNECT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """Callers who send the next request as soon as they have the answer.

    Attributes:
        callers: How many.
        seconds: For how long their requests count.
        warm_s: For how long they run before that.
    """

    callers: int
    seconds: float
    warm_s: float = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """Independent callers who send when they like, however the server does.

    Attributes:
        rate: Requests per second on average.
        seconds: For how long they come.
        timeout_s: How long each waits for its answer.
        seed: Which Poisson arrivals.
    """

    rate: float
    seconds: float
    timeout_s: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of a job.

    Attributes:
        seconds: How long the requests below took together.
        sent: How many were sent.
        latencies_s: Of every request that was answered well, in seconds: in a closed loop from the
            moment of sending, in an open loop from the moment when it should have been sent.
        codes: How many requests ended with which gRPC status.
        answered: Good answers in all, also those before and after the time that counts.
        late_s: By how much the open loop's worst request left later than intended, in seconds.
        cpu_s: CPU time of the load process.
    """

    seconds: float
    sent: int
    latencies_s: Sequence[float]
    codes: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    late_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def throughput(self) -> float:
        """Good answers per second."""
        return len(self.latencies_s) / self.seconds


class LoadProcess:
    """The load process, ready for jobs; a context manager.

    Args:
        address: The server's HOST:PORT.
        pictures: A folder of encoded pictures to send, round and round.
        token: The server's bearer token, if it wants one.
    """

    def __init__(self, address: str, pictures: Path, *, token: str = "") -> None:
        self._setup = {"address": address, "pictures": str(pictures), "token": token}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._ask(self._setup)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def run(self, job: ClosedLoop | OpenLoop) -> Load:
        """Runs a job to its end.

        Raises:
            StartupError: The load process could not reach the server, or died.
        """
        return Load(**self._ask({"job": type(job).__name__, **asdict(job)}))

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("LoadProcess is a context manager: enter it first")
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise StartupError("The load process died; its error is above.") from None
        line = process.stdout.readline()
        if not line:
            raise StartupError("The load process died; its error is above.")
        answer = json.loads(line)
        if "error" in answer:
            raise StartupError(str(answer["error"]))
        return dict(answer)


class LoadGenerator:
    """Sends prepared requests over one channel.

    Args:
        channel: To the server.
        requests: Serialised `EmbedRequest` messages, sent round and round.
        metadata: Sent with every request.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        requests: Sequence[bytes],
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
        self._requests = requests
        self._metadata = grpc.aio.Metadata(*metadata)
        self._next = 0

    async def closed(self, job: ClosedLoop) -> Load:
        """Runs a closed loop."""
        latencies: list[float] = []
        codes: Counter[str] = Counter()
        begin = time.perf_counter() + job.warm_s
        end = begin + job.seconds
        answered_well = 0
        cpu_s = 0.0

        async def caller() -> None:
            nonlocal answered_well
            while (sent := time.perf_counter()) < end:
                code = await self._send(None)
                answered = time.perf_counter()
                answered_well += code == "OK"
                # Counted by the end, so that throughput is what came out within the time.
                if begin <= answered < end:
                    codes[code] += 1
                    if code == "OK":
                        latencies.append(answered - sent)

        async def clock() -> None:
            nonlocal cpu_s
            await asyncio.sleep(job.warm_s)
            before = time.process_time()
            await asyncio.sleep(max(0.0, end - time.perf_counter()))
            cpu_s = time.process_time() - before

        await asyncio.gather(clock(), *(caller() for _ in range(job.callers)))
        return Load(
            seconds=job.seconds,
            sent=sum(codes.values()),
            latencies_s=latencies,
            codes=dict(codes),
            answered=answered_well,
            cpu_s=cpu_s,
        )

    async def open(self, job: OpenLoop) -> Load:
        """Runs an open loop: every latency counts from the intended moment of sending."""
        latencies: list[float] = []
        codes: Counter[str] = Counter()
        worst_late_s = 0.0
        last_answer = 0.0

        async def one(intended: float) -> None:
            nonlocal last_answer
            code = await self._send(job.timeout_s)
            last_answer = time.perf_counter()
            codes[code] += 1
            if code == "OK":
                latencies.append(last_answer - intended)

        cpu = time.process_time()
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as calls:
            for moment in poisson_arrivals(job.rate, job.seconds, seed=job.seed):
                intended = begin + moment
                wait_s = intended - time.perf_counter()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                worst_late_s = max(worst_late_s, time.perf_counter() - intended)
                calls.create_task(one(intended))
        return Load(
            # A backlog that is answered after the last arrival took its time, too.
            seconds=max(job.seconds, last_answer - begin),
            sent=sum(codes.values()),
            latencies_s=latencies,
            codes=dict(codes),
            answered=codes["OK"],
            late_s=worst_late_s,
            cpu_s=time.process_time() - cpu,
        )

    async def _send(self, timeout_s: float | None) -> str:
        request = self._requests[self._next]
        self._next = (self._next + 1) % len(self._requests)
        try:
            answer = await self._call(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK" if answer else "EMPTY"


def _requests(folder: Path) -> list[bytes]:
    return [
        pb.EmbedRequest(image=file.read_bytes()).SerializeToString()
        for file in sorted(folder.iterdir())
    ]


async def _serve() -> None:
    """Answers jobs from stdin until it is closed."""
    setup = json.loads(sys.stdin.readline())
    requests = _requests(Path(setup["pictures"]))
    metadata = [("authorization", f"Bearer {setup['token']}")] if setup["token"] else []
    async with grpc.aio.insecure_channel(
        setup["address"], options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), _CONNECT_S)
        except TimeoutError:
            _answer({"error": f"No server answers on {setup['address']}."})
            return
        _answer({})
        generator = LoadGenerator(channel, requests, metadata)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            job = json.loads(line)
            match job.pop("job"):
                case "ClosedLoop":
                    _answer(asdict(await generator.closed(ClosedLoop(**job))))
                case "OpenLoop":
                    _answer(asdict(await generator.open(OpenLoop(**job))))


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve())
