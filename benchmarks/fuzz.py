"""`mapseek bench fuzz`: spoilt pictures for the decoder, spoilt messages and frames for the server.

The same seed spoils the same things in the same order. Whatever breaks a promise is written into a
folder, to be made a test of.
"""

import asyncio
import itertools
import random
import resource
import struct
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
from mapseek.v1 import embedding_pb2 as pb

from benchmarks.machine import this_machine
from benchmarks.memory import MB, rss_bytes
from benchmarks.mutations import seeds, spoilt
from benchmarks.report import Progress, Report, Table, Target
from benchmarks.server_process import RunningServer, run_server
from benchmarks.valid import TOLERANCE, Question, questions
from inference.artifact import Artifact
from inference.errors import InvalidInputError
from inference.preprocess import Preprocessor

# Small, so that a picture that asks for more is refused, and one that gets more is noticed.
MAX_PIXELS = 4_000_000
MAX_BYTES = 1024 * 1024
_MOST_CPU_S = 2.0
_MOST_GROWTH_MB = 256.0
_ANSWER_S = 30.0
# How long a connection of raw frames is listened to.
_FRAMES_S = 0.05
# A valid call is made after so many spoilt ones.
_VALID_EVERY = 25
_MOST_FINDINGS = 100

_SERVICE = "/mapseek.v1.EmbeddingService/"
_METHODS = (
    f"{_SERVICE}Embed",
    f"{_SERVICE}EmbedText",
    f"{_SERVICE}GetModel",
    f"{_SERVICE}EmbedStream",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
_STREAMS = (_METHODS[3], _METHODS[5])
# What the contract names for bad input. NOT_FOUND is a probe's for a service that is not there.
ENDED_EARLY = "ended early"
DOCUMENTED = frozenset(
    {"OK", ENDED_EARLY, "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "NOT_FOUND"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FuzzOptions:
    """How long, and where findings go.

    Attributes:
        model: The model folder to serve.
        minutes: How long it goes on.
        examples: Instead: this many spoilt pictures, and a fifth of it spoilt calls.
        out: Folder for what broke a promise.
        seed: Decides what is spoilt how.
    """

    model: Path
    minutes: float = 1.0
    examples: int | None = None
    out: Path = Path("results/fuzz")
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Seen:
    """What came of it.

    Attributes:
        endings: How spoilt things ended, by what they were.
        findings: What broke a promise, by name: what it was, and why.
        slowest_s: Most processor time that a picture took.
        valid: Valid calls that were answered right, and those that were not.
        growth_mb: By how much this process and the server grew at most.
    """

    endings: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    findings: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    slowest_s: float = 0.0
    valid: Counter[bool] = field(default_factory=Counter)
    growth_mb: float = 0.0

    def found(self, what: str, data: bytes, why: str) -> None:
        """Keeps something that broke a promise; a hundred are enough to begin with."""
        if len(self.findings) < _MOST_FINDINGS:
            self.findings[f"{what}-{len(self.findings)}"] = (data, why)


def bench_fuzz(options: FuzzOptions, progress: Progress) -> Report:
    """Spoils things and watches what becomes of them.

    Raises:
        StartupError: The model cannot be loaded, or the server does not start.
    """
    artifact = Artifact.load(options.model)
    corpus = list(seeds().items())
    (question, *_) = questions(artifact, [corpus[0][1]])
    preprocess = Preprocessor(
        artifact.manifest.preprocessing, max_image_bytes=MAX_BYTES, max_image_pixels=MAX_PIXELS
    )
    seen = Seen()
    limits = {"max_image_bytes": str(MAX_BYTES), "max_image_pixels": str(MAX_PIXELS)}
    with run_server(options.model, {**limits, "log_level": "error"}) as server:
        before_mb = _peak_mb()
        chance = random.Random(options.seed)
        complete = True
        try:
            for share in _rounds(options):
                progress(f"{sum(map(Counter.total, seen.endings.values()))} spoilt", share)
                for _ in range(_VALID_EVERY):
                    try_picture(preprocess, corpus, chance, seen)
                asyncio.run(_try_server(server, corpus, chance, question, seen))
                if not server.alive:
                    break
        except KeyboardInterrupt:
            complete = False
        seen.growth_mb = _peak_mb() - before_mb
        if server.alive:
            served_mb = (rss_bytes(server.pid) - server.rss_at_start_bytes) / MB
            seen.growth_mb = max(seen.growth_mb, served_mb)
    _keep(seen, options.out)
    return Report(
        command="mapseek bench fuzz",
        machine=this_machine(),
        model_id=artifact.manifest.model_id,
        settings={name: getattr(options, name) for name in FuzzOptions.__dataclass_fields__},
        tables=[_table(seen)],
        targets=judge(seen, exit_status=server.process.returncode),
        data={
            "endings": seen.endings,
            "findings": {name: why for name, (_, why) in seen.findings.items()},
            "slowest_s": seen.slowest_s,
            "growth_mb": seen.growth_mb,
        },
        complete=complete,
    )


def judge(seen: Seen, *, exit_status: int | None) -> list[Target]:
    """Holds what was seen against what is promised."""
    reasons = "; ".join(sorted({why for _, why in seen.findings.values()})[:3])
    return [
        Target(
            name="nothing but documented errors comes out",
            met=not seen.findings,
            found=f"{len(seen.findings)} findings: {reasons}" if seen.findings else "all of them",
        ),
        Target(
            name="valid calls in between are answered right",
            met=seen.valid[True] > 0 and not seen.valid[False],
            found=f"{seen.valid[True]} right, {seen.valid[False]} not",
        ),
        Target(
            name="the server lives, and stops cleanly",
            met=exit_status == 0,
            found=f"exit status {exit_status}",
        ),
        Target.at_most("processor time of a picture, s", seen.slowest_s, _MOST_CPU_S),
        Target.at_most("growth of memory, MB", seen.growth_mb, _MOST_GROWTH_MB),
    ]


def try_picture(
    preprocess: Preprocessor,
    corpus: list[tuple[str, bytes]],
    chance: random.Random,
    seen: Seen,
) -> None:
    """Spoils a picture and decodes it."""
    (name, data), (_, other) = chance.choice(corpus), chance.choice(corpus)
    data = spoilt(data, other, chance)
    started = time.thread_time()
    ending = "decoded"
    try:
        pixels = preprocess(data)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:  # noqa: PLR2004
            seen.found("pixels", data, f"{name}: {pixels.dtype} {pixels.shape}")
    except InvalidInputError:
        ending = "refused"
    except Exception as error:  # noqa: BLE001  that is what is looked for
        ending = type(error).__name__
        seen.found("picture", data, f"{name}: {error!r}")
    took_s = time.thread_time() - started
    if took_s > _MOST_CPU_S:
        seen.found("slow", data, f"{name}: {took_s:.1f} s of processor time")
    seen.slowest_s = max(seen.slowest_s, took_s)
    seen.endings[name.partition(",")[0]][ending] += 1


async def _try_server(
    server: RunningServer,
    corpus: list[tuple[str, bytes]],
    chance: random.Random,
    question: Question,
    seen: Seen,
) -> None:
    async with grpc.aio.insecure_channel(
        server.address,
        options=[
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
        ],
    ) as channel:
        for _ in range(_VALID_EVERY // 5):
            method = chance.choice(_METHODS)
            message = _message(method, corpus, chance)
            status = await _call(channel, method, message)
            if status == "UNAVAILABLE":  # the server listens anew, see docs/operations.md
                status = await _call(channel, method, message)
            seen.endings[method.rpartition("/")[2]][status] += 1
            if _died(server, message, method, seen):
                return
            if status not in DOCUMENTED:
                seen.found("message", message, f"{method}: {status}")
        frames = _spoilt_frames(corpus, chance)
        seen.endings["raw frames"][await _frames(server.address, frames)] += 1
        if _died(server, frames, "raw frames", seen):
            return
        request = pb.EmbedRequest(image=question.picture)
        embed = channel.unary_unary(
            _METHODS[0],
            request_serializer=pb.EmbedRequest.SerializeToString,
            response_deserializer=pb.EmbedResponse.FromString,
        )
        try:
            answer = await embed(request, timeout=_ANSWER_S, wait_for_ready=True)
        except grpc.aio.AioRpcError:
            seen.valid[False] += 1
            return
        off = np.abs(np.array(answer.embedding.values, np.float32) - question.embedding).max()
        seen.valid[bool(off <= TOLERANCE)] += 1


def _died(server: RunningServer, data: bytes, what: str, seen: Seen) -> bool:
    """Whether the server has ended; if so, keeps what it was sent last."""
    if server.alive:
        return False
    words = " | ".join(server.last_words()[-3:])
    seen.found("killed", data, f"{what}: exit status {server.process.returncode}: {words}")
    return True


def _message(method: str, corpus: list[tuple[str, bytes]], chance: random.Random) -> bytes:
    (_, data), (_, other) = chance.choice(corpus), chance.choice(corpus)
    if chance.random() < 0.1:  # noqa: PLR2004  a tenth is pure chance
        return chance.randbytes(chance.randrange(200))
    images = [pb.StreamImage(id=number, image=data) for number in range(chance.randint(0, 3))]
    whole = {
        "Embed": pb.EmbedRequest(image=data, lane=pb.LANE_BULK),
        "EmbedText": pb.EmbedTextRequest(text="a map of a dragon"),
        "EmbedStream": pb.EmbedStreamRequest(images=images),
    }.get(method.rpartition("/")[2], pb.EmbedTextRequest(text="mapseek.v1.EmbeddingService"))
    return spoilt(whole.SerializeToString(), other, chance)


async def _call(channel: grpc.aio.Channel, method: str, message: bytes) -> str:
    try:
        if method in _STREAMS:
            streaming: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
            streaming = channel.stream_stream(method)
            stream = streaming(iter([message, message]), timeout=_ANSWER_S, wait_for_ready=True)
            async for _ in stream:
                pass
            return str((await stream.code()).name)
        single: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        await single(message, timeout=_ANSWER_S, wait_for_ready=True)
    except grpc.aio.AioRpcError as error:
        # The client's own word for a message that it could not send any more, because the server
        # had answered the one before.
        early = error.details() == "Internal error from Core"
        return ENDED_EARLY if early else str(error.code().name)
    return "OK"


def _spoilt_frames(corpus: list[tuple[str, bytes]], chance: random.Random) -> bytes:
    """An HTTP/2 connection with one call, spoilt behind the preface."""
    headers = b"".join(
        b"\x00" + _text(key) + _text(value)
        for key, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", chance.choice(_METHODS)),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        )
    )
    message = pb.EmbedRequest(image=chance.choice(corpus)[1]).SerializeToString()
    body = b"\x00" + struct.pack(">I", len(message)) + message
    frames = _frame(4, 0, 0, b"") + _frame(1, 4, 1, headers) + _frame(0, 1, 1, body[:16_000])
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + spoilt(frames, headers, chance)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


async def _frames(address: str, data: bytes) -> str:
    """Sends raw bytes, and tells whether the server ended the connection."""
    host, _, port = address.rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return "no connection"
    ending = "closed"
    with suppress(OSError):
        writer.write(data)
        await writer.drain()
        try:
            async with asyncio.timeout(_FRAMES_S):
                while await reader.read(65_536):
                    pass
        except TimeoutError:
            ending = "open"
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return ending


def _rounds(options: FuzzOptions) -> Iterator[float]:
    """Goes on for as long as is asked, and yields which share is over."""
    if options.examples is not None:
        rounds = max(1, options.examples // _VALID_EVERY)
        yield from (number / rounds for number in range(rounds))
        return
    begin, length_s = time.monotonic(), options.minutes * 60
    for _ in itertools.count():
        elapsed_s = time.monotonic() - begin
        if elapsed_s > length_s:
            return
        yield elapsed_s / length_s


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MB if sys.platform == "darwin" else 1024)


def _keep(seen: Seen, folder: Path) -> None:
    if seen.findings:
        folder.mkdir(parents=True, exist_ok=True)
    for name, (data, _) in seen.findings.items():
        (folder / f"{name}.bin").write_bytes(data)


def _table(seen: Seen) -> Table:
    return Table(
        title="Spoilt",
        columns=("what", "times", "ended"),
        rows=[
            (what, ends.total(), ", ".join(f"{end} {count}" for end, count in ends.most_common()))
            for what, ends in sorted(seen.endings.items())
        ],
        notes=[f"{name}.bin: {why}" for name, (_, why) in list(seen.findings.items())[:20]],
    )
