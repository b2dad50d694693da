"""What answers a call: adding it to a server, and wrapping it, which the interceptors share."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

# In quotes, because only the stubs of this class are generic.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continue: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
Answer: TypeAlias = Callable[[Any, Any], Any]


def add_to(
    server: grpc.aio.Server,
    descriptor: ServiceDescriptor,
    service: Any,
    *,
    parse: Mapping[type[Any], Callable[[bytes], Any]],
) -> None:
    """Lets a server answer a service's methods, as the generated `add_..._to_server` does.

    Args:
        server: The server.
        descriptor: Of the service.
        service: Has the methods: coroutines of a message, or of an iterator over messages.
        parse: By their class, what reads requests that protobuf's objects would copy.
    """
    handlers = {}
    for method in descriptor.methods:
        kind = GetMessageClass(method.input_type)
        make: Any = (
            grpc.stream_stream_rpc_method_handler
            if method.client_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        handlers[method.name] = make(
            getattr(service, method.name),
            request_deserializer=parse.get(kind, kind.FromString),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    generic = grpc.method_handlers_generic_handler(descriptor.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))


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
        letting_go(answer),
        request_deserializer=parse or handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return around


def letting_go(answer: Answer) -> Answer:
    """The same answer, of which nothing stays when its call is aborted.

    gRPC keeps the error of such a call, which keeps the frames through which it came, which keep
    the call and its message: until Python's collector comes, which a few large ones do not bring.
    """

    async def let_go(request: Any, context: Any) -> Any:
        try:
            return await answer(request, context)
        except grpc.aio.AbortError as aborted:
            del request, context
            aborted.__context__ = None
            raise aborted.with_traceback(None) from None

    return let_go


async def answer_stream(answer: Answer, requests: AsyncIterator[Any], context: Any) -> None:
    """Has a stream answered, by a coroutine or (reflection does so) by what yields its answers."""
    answered = answer(requests, context)
    if isinstance(answered, AsyncIterator):
        async for response in answered:
            await context.write(response)
    else:
        await answered
