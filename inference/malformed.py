"""Messages that are no protobuf: the caller's fault, and said so.

gRPC itself answers them with UNKNOWN and logs a traceback for every one, so that whoever can reach
the port could fill the log.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from inference.errors import InvalidInputError

# In quotes, because only the stubs of this class are generic.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continue: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

# Stands in the place of a message that cannot be parsed, until there is a call to answer.
_MALFORMED = object()


class MalformedInterceptor(grpc.aio.ServerInterceptor):
    """Answers what cannot be parsed with INVALID_ARGUMENT.

    Args:
        services: Full names of the services to guard; their methods are unary or bidirectional
            coroutines, or yield their answers.
    """

    def __init__(self, *services: str) -> None:
        self._prefixes = tuple(f"/{service}/" for service in services)

    async def intercept_service(
        self, continuation: Continue, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Guards the methods of the service, and passes all others on."""
        handler: Any = await continuation(handler_call_details)
        # grpc.aio gives the method as text, against its own type.
        method = str(handler_call_details.method)
        known = handler is not None and (handler.unary_unary or handler.stream_stream)
        if not known or not method.startswith(self._prefixes):
            return handler  # type: ignore[no-any-return]  # it is what came in
        name = method.rpartition("/")[2]
        error = f"The message is no request of {name}: it is damaged, or meant for another method."
        make, answer = (
            (grpc.unary_unary_rpc_method_handler, _unary(handler.unary_unary, error))
            if handler.unary_unary
            else (grpc.stream_stream_rpc_method_handler, _stream(handler.stream_stream, error))
        )
        guarded: Handler = make(
            answer,
            request_deserializer=_marking(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return guarded


def _marking(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse_or_mark(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _MALFORMED

    return parse_or_mark


def _unary(answer: Callable[[Any, Any], Awaitable[Any]], error: str) -> Any:
    async def guarded(request: Any, context: Any) -> Any:
        if request is _MALFORMED:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error)
        return await answer(request, context)

    return guarded


def _stream(answer: Callable[[Any, Any], Any], error: str) -> Any:
    async def checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            if request is _MALFORMED:
                raise InvalidInputError(error)
            yield request

    async def guarded(requests: AsyncIterator[Any], context: Any) -> None:
        try:
            answered = answer(checked(requests), context)
            if isinstance(answered, AsyncIterator):  # reflection answers by yielding
                async for response in answered:
                    await context.write(response)
            else:
                await answered
        except InvalidInputError as failure:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(failure))

    return guarded
