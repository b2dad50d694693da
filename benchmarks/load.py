"""Load on a server, from a process of its own so that it never shares a lock with what it measures.

`LoadProcess` starts `python -m benchmarks.load` and sends it jobs, one JSON object a line; each is
answered with one line. The process does as little as it can: requests are serialised beforehand,
answers are not parsed beyond their length. Its own CPU time is part of the answer.
"""

import asyncio
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import grpc
import grpc.aio
import uvloop
from mapseek.v1 import embedding_pb2 as pb

from benchmarks.http2 import Http2Channel
from benchmarks.latency import poisson_arrivals
from benchmarks.peers.http import HttpChannel, as_body
from inference.errors import StartupError

_METHOD = "/mapseek.v1.EmbeddingService/Embed"
_STREAM_METHOD = "/mapseek.v1.EmbeddingService/EmbedStream"
_CONNECT_S = 10.0
_HTTP = "http://"
Body = Literal["image", "json"]
_REFUSED = "RESOURCE_EXHAUSTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """Callers who send the next request as soon as they have the answer.

    Attributes:
        callers: How many.
        seconds: For how long their requests count.
        warm_s: For how long they run before that. They all begin at once, as callers never do, and
            their first requests wait for each other.
    """

    callers: int
    seconds: float
    warm_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """Independent callers who send when they like, however the server does.

    Attributes:
        rate: Requests per second on average.
        seconds: For how long they come.
        timeout_s: How long each waits for its answer.
        seed: Which Poisson arrivals.
        bulk: Images a message of an EmbedStream that is kept full meanwhile; 0 for none.
    """

    rate: float
    seconds: float
    timeout_s: float
    seed: int
    bulk: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One EmbedStream, sent into as fast as the server takes it.

    Attributes:
        images: Images a message.
        seconds: For how long its results count.
        warm_s: For how long it runs before that.
    """

    images: int
    seconds: float
    warm_s: float = 0.5


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
        refused_s: How long those that found the server full waited to be told, from the moment of
            sending, in seconds.
        bulk: Results a second of the EmbedStream beside it.
        late_s: By how much the open loop's worst request left later than intended, in seconds.
        cpu_s: CPU time of the load process.
    """

    seconds: float
    sent: int
    latencies_s: Sequence[float]
    codes: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    refused_s: Sequence[float] = ()
    bulk: float = 0.0
    late_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def throughput(self) -> float:
        """Good answers per second."""
        return len(self.latencies_s) / self.seconds


def codes_of(loads: Iterable[Load | None]) -> dict[str, int]:
    """How many requests of all loads that there are ended with which gRPC status."""
    total: Counter[str] = Counter()
    for load in loads:
        total.update(load.codes if load else {})
    return dict(total)


class LoadProcess:
    """The load process, ready for jobs; a context manager.

    Args:
        address: The server's HOST:PORT, or http://HOST:PORT/PATH of another kind of server.
        pictures: A folder of encoded pictures to send, round and round.
        token: The server's bearer token, if it wants one.
        body: What a POST to such a server holds: the file, or JSON with the file in base64.
    """

    def __init__(
        self, address: str, pictures: Path, *, token: str = "", body: Body = "image"
    ) -> None:
        self._setup = {"address": address, "pictures": str(pictures), "token": token, "body": body}
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

    def run(self, job: ClosedLoop | OpenLoop | Stream) -> Load:
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
        channel: To the server, for single calls.
        requests: Serialised `EmbedRequest` messages, sent round and round.
        metadata: Sent with every request.
        streams: To the server, for streams; None where it has none.
    """

    def __init__(
        self,
        channel: Any,
        requests: Sequence[bytes],
        metadata: Sequence[tuple[str, str]] = (),
        streams: Any = None,
    ) -> None:
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
        self._streams = streams
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
        if job.bulk:
            return await self._beside_bulk(job)
        latencies: list[float] = []
        refused: list[float] = []
        codes: Counter[str] = Counter()
        worst_late_s = 0.0
        last_answer = 0.0

        async def one(intended: float) -> None:
            nonlocal last_answer
            sent = time.perf_counter()
            code = await self._send(job.timeout_s)
            last_answer = time.perf_counter()
            codes[code] += 1
            if code == _REFUSED:
                refused.append(last_answer - sent)
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
            refused_s=refused,
            late_s=worst_late_s,
            cpu_s=time.process_time() - cpu,
        )

    async def stream(self, job: Stream) -> Load:
        """Keeps one EmbedStream full."""
        begin = time.perf_counter() + job.warm_s
        codes: Counter[str] = Counter()
        async with self._streaming(job.images) as results:
            async for moment, code in results:
                if moment >= begin + job.seconds:
                    break
                if moment >= begin:
                    codes[code] += 1
        return Load(
            seconds=job.seconds,
            sent=sum(codes.values()),
            # Nobody waits for one image of a stream: only their number says something.
            latencies_s=[math.nan] * codes["OK"],
            codes=dict(codes),
            answered=codes["OK"],
        )

    async def _beside_bulk(self, job: OpenLoop) -> Load:
        answered: list[float] = []

        async def keep_full(full: asyncio.Event) -> None:
            async with self._streaming(job.bulk) as results:
                async for moment, code in results:
                    full.set()
                    if code == "OK":
                        answered.append(moment)

        full = asyncio.Event()
        bulk = asyncio.create_task(keep_full(full))
        try:
            waiting = asyncio.create_task(full.wait())
            await asyncio.wait({waiting, bulk}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            begin = time.perf_counter()
            load = await self.open(replace(job, bulk=0))
            end = time.perf_counter()
        finally:
            bulk.cancel()
            await asyncio.gather(bulk, return_exceptions=True)
        meanwhile = sum(begin <= moment < end for moment in answered)
        return replace(load, bulk=meanwhile / (end - begin))

    @asynccontextmanager
    async def _streaming(self, images: int) -> AsyncIterator[AsyncIterator[tuple[float, str]]]:
        """A stream that is sent into without end, and the moment and status of each result."""
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        method = self._streams.stream_stream(_STREAM_METHOD)
        call = method(metadata=self._metadata)
        messages = self._bulk_messages(images)

        async def send() -> None:
            for message in itertools.cycle(messages):
                await call.write(message)

        async def results() -> AsyncIterator[tuple[float, str]]:
            async for answer in call:
                moment = time.perf_counter()
                for result in pb.EmbedStreamResponse.FromString(answer).results:
                    yield moment, "OK" if result.HasField("embedding") else "FAILED"

        sender = asyncio.create_task(send())
        try:
            yield results()
        finally:
            call.cancel()
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    def _bulk_messages(self, images: int) -> list[bytes]:
        """Messages with all pictures in turn, until the next would begin with the first again."""
        pictures = [pb.EmbedRequest.FromString(request).image for request in self._requests]
        return [
            pb.EmbedStreamRequest(
                images=[
                    pb.StreamImage(id=number, image=pictures[number % len(pictures)])
                    for number in range(first, first + images)
                ]
            ).SerializeToString()
            for first in range(0, math.lcm(images, len(pictures)), images)
        ]

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
    if setup["address"].startswith(_HTTP):
        await _serve_http(setup)
        return
    requests = _requests(Path(setup["pictures"]))
    metadata = [("authorization", f"Bearer {setup['token']}")] if setup["token"] else []
    async with (
        Http2Channel(setup["address"]) as channel,
        grpc.aio.insecure_channel(
            setup["address"], options=[("grpc.max_send_message_length", -1)]
        ) as streams,
    ):
        try:
            await asyncio.wait_for(streams.channel_ready(), _CONNECT_S)
        except TimeoutError:
            _answer({"error": f"No server answers on {setup['address']}."})
            return
        await _do_jobs(LoadGenerator(channel, requests, metadata, streams))


async def _serve_http(setup: dict[str, str]) -> None:
    pictures = [pb.EmbedRequest.FromString(one).image for one in _requests(Path(setup["pictures"]))]
    bodies = [as_body(picture, setup["body"]) for picture in pictures]
    async with HttpChannel(setup["address"].removeprefix(_HTTP)) as channel:
        await _do_jobs(LoadGenerator(channel, bodies))


async def _do_jobs(generator: LoadGenerator) -> None:
    _answer({})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        job = json.loads(line)
        match job.pop("job"):
            case "ClosedLoop":
                _answer(asdict(await generator.closed(ClosedLoop(**job))))
            case "Stream":
                _answer(asdict(await generator.stream(Stream(**job))))
            case "OpenLoop":
                _answer(asdict(await generator.open(OpenLoop(**job))))


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(_serve())
