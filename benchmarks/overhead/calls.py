"""Calls on a server, and the processor time that they cost it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import psutil

from benchmarks.overhead.empty_server import ANSWER_BYTES
from benchmarks.overhead.kinds import Kind
from inference.errors import StartupError

# Unary calls and their images that are under way at a time: enough to keep a server busy, and fewer
# than it takes.
MOST_CALLERS, IN_FLIGHT = 16, 128
# How long a kind runs before it counts.
_WARM_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What some calls of a kind cost.

    Attributes:
        seconds: For how long they were made.
        calls: Calls or, of a stream, messages that were answered.
        process_s: CPU time of the server's process.
        loop_s: CPU time of its event loop's thread.
        alone_s: Latency of each call of a single caller, in seconds; empty for streams.
    """

    seconds: float
    calls: float
    process_s: float
    loop_s: float
    alone_s: list[float] = field(default_factory=list)


def measure(address: str, pid: int, kind: Kind, seconds: float) -> Cost:
    """Makes calls of a kind for a while, and a third of it with a single caller where it is unary.

    Raises:
        StartupError: A call was not answered as it should be.
    """
    try:
        return asyncio.run(_measure(address, pid, kind, seconds))
    except grpc.aio.AioRpcError as error:
        raise StartupError(f"{kind.name}: {error.code().name}: {error.details()}") from error
    except ValueError as error:
        raise StartupError(f"{kind.name}: {error}") from error


async def _measure(address: str, pid: int, kind: Kind, seconds: float) -> Cost:
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        metadata = grpc.aio.Metadata((ANSWER_BYTES, str(kind.answer_bytes)))
        if kind.streams:
            return await _streamed(channel, metadata, pid, kind, seconds)
        call: Any = channel.unary_unary(kind.method)
        alone_s: list[float] = []
        await _closed(call, metadata, kind, callers=1, seconds=_WARM_S)
        await _closed(call, metadata, kind, callers=1, seconds=seconds / 3, latencies_s=alone_s)
        callers = max(1, min(MOST_CALLERS, IN_FLIGHT // kind.images))
        await _closed(call, metadata, kind, callers=callers, seconds=_WARM_S)
        before = _cpu_s(pid)
        started = time.perf_counter()
        calls = await _closed(call, metadata, kind, callers=callers, seconds=seconds)
        return _cost(started, before, pid, calls=calls, alone_s=alone_s)


async def _closed(
    call: Any,
    metadata: grpc.aio.Metadata,
    kind: Kind,
    *,
    callers: int,
    seconds: float,
    latencies_s: list[float] | None = None,
) -> int:
    """Callers who send the next call as soon as they have the answer; returns how many it were."""
    end = time.perf_counter() + seconds
    calls = 0
    checked = False

    async def caller() -> None:
        nonlocal calls, checked
        while (sent := time.perf_counter()) < end:
            answer = await call(kind.message, metadata=metadata)
            if latencies_s is not None:
                latencies_s.append(time.perf_counter() - sent)
            if not checked:
                checked = True
                _check(kind, answer)
            calls += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return calls


async def _streamed(
    channel: grpc.aio.Channel, metadata: grpc.aio.Metadata, pid: int, kind: Kind, seconds: float
) -> Cost:
    async with _full_stream(channel, metadata, kind) as answers:
        warm_until = time.perf_counter() + _WARM_S
        images = 0
        started = before = None
        async for answer in answers:
            now = time.perf_counter()
            if started is None:
                if now >= warm_until:
                    _check(kind, answer)
                    started, before = now, _cpu_s(pid)
                continue
            # An empty server answers a message with one; ours puts together what is ready.
            images += _embedded(kind, answer)
            if now >= started + seconds:
                break
        if started is None or before is None:
            raise ValueError("the stream ended by itself")
        return _cost(started, before, pid, calls=images / kind.images)


@asynccontextmanager
async def _full_stream(
    channel: grpc.aio.Channel, metadata: grpc.aio.Metadata, kind: Kind
) -> AsyncIterator[AsyncIterator[bytes]]:
    """A stream that is sent into as fast as the server takes it."""
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
    method = channel.stream_stream(kind.method)
    call: Any = method(metadata=metadata)

    async def send() -> None:
        while True:
            await call.write(kind.message)

    sender = asyncio.create_task(send())
    try:
        yield call
    finally:
        call.cancel()
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)


def _is_empty(answer: bytes) -> bool:
    """Whether it is an empty server's: no message of ours begins with a zero."""
    return answer[:1] == b"\x00"


def _check(kind: Kind, answer: bytes) -> None:
    if not _is_empty(answer):
        embedded = kind.embedded(answer)
        if not kind.streams and embedded != kind.images:
            raise ValueError(f"{embedded} embeddings for {kind.images} images")


def _embedded(kind: Kind, answer: bytes) -> int:
    return kind.images if _is_empty(answer) else kind.embedded(answer)


def _cpu_s(pid: int) -> tuple[float, float]:
    """CPU time of a process, and of its first thread: that runs the event loop."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    threads = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    return float(times.user + times.system), float(threads.get(pid, float("nan")))


def _cost(
    started: float,
    before: tuple[float, float],
    pid: int,
    *,
    calls: float,
    alone_s: list[float] | None = None,
) -> Cost:
    seconds = time.perf_counter() - started
    process_s, loop_s = (now - then for now, then in zip(_cpu_s(pid), before, strict=True))
    return Cost(
        seconds=seconds, calls=calls, process_s=process_s, loop_s=loop_s, alone_s=alone_s or []
    )
