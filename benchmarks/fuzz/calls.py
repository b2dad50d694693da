"""Spoilt calls and connections to a server, and valid ones in between."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress

import grpc
import grpc.aio
import numpy as np
from mapseek.v1 import embedding_pb2 as pb

from benchmarks.fuzz.messages import EMBED, Corpus, Method, frames, message
from benchmarks.fuzz.seen import Seen
from benchmarks.server_process import RunningServer
from benchmarks.valid import TOLERANCE, Question
from inference.status import UNFORESEEN

# What the contract names for bad input. NOT_FOUND is for what is asked by a name that is not there.
ENDED_EARLY = "ended early"
TIMED_ITSELF_OUT = "its own timeout"
DOCUMENTED = frozenset(
    {
        "OK",
        ENDED_EARLY,
        TIMED_ITSELF_OUT,
        "INVALID_ARGUMENT",
        "RESOURCE_EXHAUSTED",
        "UNIMPLEMENTED",
        "NOT_FOUND",
    }
)
# Spoilt frames can let the server listen anew, see docs/operations.md. gRPC has two words for it.
_CUT_OFF = frozenset({"UNAVAILABLE", "CANCELLED"})
_ANSWER_S = 30.0
# How long a connection of raw frames is listened to.
_FRAMES_S = 0.05
# What a stream says of one message or image where a single call would end with INTERNAL.
_INTERNAL = (UNFORESEEN.encode(), b"The model ")


async def try_server(
    server: RunningServer,
    methods: Sequence[Method],
    corpus: Corpus,
    chance: random.Random,
    *,
    question: Question,
    seen: Seen,
    calls: int,
) -> None:
    """Makes some spoilt calls and one spoilt connection, and then a valid call."""
    async with grpc.aio.insecure_channel(
        server.address,
        options=[
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
        ],
    ) as channel:
        for _ in range(calls):
            method = chance.choice(methods)
            sent = message(method, corpus, chance)
            status = await _call(channel, method, sent)
            if status in _CUT_OFF:
                status = await _call(channel, method, sent)
            seen.endings[method.name][status] += 1
            if _died(server, sent, method.path, seen):
                return
            if status not in DOCUMENTED:
                seen.found("message", sent, f"{method.path}: {status}")
        connection = frames(corpus, chance)
        seen.endings["raw frames"][await _connect(server.address, connection)] += 1
        if not _died(server, connection, "raw frames", seen):
            seen.valid[await _is_answered_right(channel, question)] += 1
            _died(server, connection, "after raw frames", seen)


async def _is_answered_right(channel: grpc.aio.Channel, question: Question) -> bool:
    embed = channel.unary_unary(
        EMBED,
        request_serializer=pb.EmbedRequest.SerializeToString,
        response_deserializer=pb.EmbedResponse.FromString,
    )
    request = pb.EmbedRequest(image=question.picture)
    for tries_left in (1, 0):
        try:
            answer = await embed(request, timeout=_ANSWER_S, wait_for_ready=True)
            break
        except grpc.aio.AioRpcError as error:
            if error.code().name not in _CUT_OFF or not tries_left:
                return False
    off = np.abs(np.array(answer.embedding.values, np.float32) - question.embedding).max()
    return bool(off <= TOLERANCE)


def _died(server: RunningServer, data: bytes, what: str, seen: Seen) -> bool:
    """Whether the server has ended; if so, keeps what it was sent last."""
    if server.alive:
        return False
    words = " | ".join(server.last_words())
    seen.found("killed", data, f"{what}: exit status {server.process.returncode}: {words}")
    return True


async def _call(channel: grpc.aio.Channel, method: Method, sent: bytes) -> str:
    try:
        if method.streams:
            streaming: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
            streaming = channel.stream_stream(method.path)
            stream = streaming(iter([sent, sent]), timeout=_ANSWER_S, wait_for_ready=True)
            failed = False
            async for answer in stream:
                failed = failed or any(sign in answer for sign in _INTERNAL)
            return "INTERNAL" if failed else str((await stream.code()).name)
        single: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method.path)
        await single(sent, timeout=_ANSWER_S, wait_for_ready=True)
    except grpc.aio.AioRpcError as error:
        # The client's own word for a message that it could not send any more, because the server
        # had answered the one before.
        if error.details() == "Internal error from Core":
            return ENDED_EARLY
        if (error.details() or "").startswith("The request's own timeout"):
            return TIMED_ITSELF_OUT
        return str(error.code().name)
    return "OK"


async def _connect(address: str, data: bytes) -> str:
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
