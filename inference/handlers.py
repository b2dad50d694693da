"""Wrapping what answers a call: the part that the server's interceptors share."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

# In quotes, because only the stubs of this class are generic.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continue: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
Answer: TypeAlias = Callable[[Any, Any], Any]


def wrapped(
    handler: Any,
    *,
    unary: Callable[[Answer], Answer],
    stream: Callable[[Answer], Answer],
    parse: Callable[[bytes], Any] | None = None,
) -> "Handler":
    """A handler around another one; None and kinds that no service has pass as they are.

    Args:
        handler: What the next interceptor gave.
        unary: Makes the answer to a call of one message out of the handler's, a coroutine.
        stream: The same for a bidirectional stream.
        parse: Reads messages in the place of the handler's own.
    """
    make: Any
    if handler is not None and handler.unary_unary:
        make, answer = grpc.unary_unary_rpc_method_handler, unary(handler.unary_unary)
    elif handler is not None and handler.unary_stream:
        make, answer = grpc.unary_stream_rpc_method_handler, unary(handler.unary_stream)
    elif handler is not None and handler.stream_stream:
        make, answer = grpc.stream_stream_rpc_method_handler, stream(handler.stream_stream)
    else:
        return handler  # type: ignore[no-any-return]  # it is what came in
    around: Handler = make(
        answer,
        request_deserializer=parse or handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return around


async def answer_stream(answer: Answer, requests: AsyncIterator[Any], context: Any) -> None:
    """Has a stream answered, by a coroutine or (reflection does so) by what yields its answers."""
    answered = answer(requests, context)
    if isinstance(answered, AsyncIterator):
        async for response in answered:
            await context.write(response)
    else:
        await answered
