"""A grpc.aio server that does nothing: it answers every message with so many bytes.

`python -m benchmarks.overhead.empty_server PORT`; a call's metadata `answer-bytes` says how many.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from benchmarks.overhead.kinds import OPEN_STREAM, OPEN_UNARY, OWN_STREAM, OWN_UNARY

ANSWER_BYTES = "answer-bytes"


async def _unary(_: bytes, context: Any) -> bytes:
    return _answer(context)


async def _stream(requests: AsyncIterator[bytes], context: Any) -> None:
    answer = _answer(context)
    async for _ in requests:
        await context.write(answer)


def _answer(context: Any) -> bytes:
    return bytes(int(dict(context.invocation_metadata())[ANSWER_BYTES]))


class _Everything(grpc.GenericRpcHandler):
    """The methods of both protocols, without their messages."""

    def __init__(self) -> None:
        unary: Any = grpc.unary_unary_rpc_method_handler(_unary)
        stream: Any = grpc.stream_stream_rpc_method_handler(_stream)
        self._handlers = {
            OWN_UNARY: unary,
            OPEN_UNARY: unary,
            OWN_STREAM: stream,
            OPEN_STREAM: stream,
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(str(handler_call_details.method))


async def _serve(port: int) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((_Everything(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
