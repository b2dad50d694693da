"""Messages that are no protobuf: the caller's fault, and said so.

gRPC itself answers them with UNKNOWN and logs a traceback for every one, so that whoever can reach
the port could fill the log. It does so for metadata that is no UTF-8, too, and writes the value
down, a secret as it may be.
"""

import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from inference.errors import InvalidInputError
from inference.handlers import Answer, Continue, Handler, answer_stream, wrapped

# Stands in the place of a message that cannot be parsed, until there is a call to answer.
_MALFORMED = object()

# Who logs metadata that is no UTF-8, and in which words; it is read as Latin-1 then.
_METADATA_LOGGER, _NO_TEXT = "grpc._cython.cygrpc", "Invalid encoding on"


class MalformedInterceptor(grpc.aio.ServerInterceptor):
    """Answers what cannot be parsed with INVALID_ARGUMENT.

    Args:
        services: Full names of the services to guard; their methods are coroutines, or
            bidirectional and yield their answers.
    """

    def __init__(self, *services: str) -> None:
        self._prefixes = tuple(f"/{service}/" for service in services)
        # By method: the handler that was wrapped, and what became of it.
        self._wrapped: dict[str, tuple[Any, Handler]] = {}
        logging.getLogger(_METADATA_LOGGER).addFilter(_is_not_of_metadata)

    async def intercept_service(
        self, continuation: Continue, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Guards the methods of the service, and passes all others on."""
        handler: Any = await continuation(handler_call_details)
        # grpc.aio gives the method as text, against its own type.
        method = str(handler_call_details.method)
        # A refusal reads no message, and stands for whatever method a stranger makes up.
        if (
            handler is None
            or handler.request_deserializer is None
            or not method.startswith(self._prefixes)
        ):
            return handler  # type: ignore[no-any-return]  # it is what came in
        known = self._wrapped.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        name = method.rpartition("/")[2]
        error = f"The message is no request of {name}: it is damaged, or meant for another method."
        around = wrapped(
            handler,
            unary=partial(_unary, error=error),
            stream=partial(_stream, error=error),
            parse=_marking(handler.request_deserializer),
        )
        self._wrapped[method] = handler, around  # there are only so many methods
        return around


def _is_not_of_metadata(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_NO_TEXT)


def _marking(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse_or_mark(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _MALFORMED

    return parse_or_mark


def _unary(answer: Answer, error: str) -> Answer:
    async def guarded(request: Any, context: Any) -> Any:
        if request is _MALFORMED:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error)
        return await answer(request, context)

    return guarded


def _stream(answer: Answer, error: str) -> Answer:
    async def checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            if request is _MALFORMED:
                raise InvalidInputError(error)
            yield request

    async def guarded(requests: AsyncIterator[Any], context: Any) -> None:
        try:
            await answer_stream(answer, checked(requests), context)
        except InvalidInputError as failure:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(failure))

    return guarded
