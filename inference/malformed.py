"""Messages that are no protobuf, or of too many parts: the caller's fault, and said so.

gRPC itself answers them with UNKNOWN and logs a traceback for every one, so that whoever can reach
the port could fill the log. It does so for metadata that is no UTF-8, too, and writes the value
down, a secret as it may be.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from inference.errors import InvalidInputError
from inference.fields import Bound
from inference.handlers import Answer, Continue, Handler, answer_stream, wrapped

# Who logs metadata that is no UTF-8, and in which words; it is read as Latin-1 then.
_METADATA_LOGGER, _NO_TEXT = "grpc._cython.cygrpc", "Invalid encoding on"


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands in the place of a message that is refused, until there is a call to answer."""

    error: str


class MalformedInterceptor(grpc.aio.ServerInterceptor):
    """Answers what cannot be parsed with INVALID_ARGUMENT.

    Args:
        services: Full names of the services to guard; their methods are coroutines, or
            bidirectional and yield their answers.
        bounds: By the path of a method, how many parts its messages may have.
    """

    def __init__(self, *services: str, bounds: Mapping[str, Bound] | None = None) -> None:
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._bounds = bounds or {}
        # By method: the handler that was wrapped, and what became of it.
        self._wrapped: dict[str, tuple[Any, Handler]] = {}
        logging.getLogger(_METADATA_LOGGER).addFilter(_is_not_of_metadata)

    async def intercept_service(
        self, continuation: Continue, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Guards the methods of the services, and passes all others on."""
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
            unary=_unary,
            stream=_stream,
            parse=_marking(handler.request_deserializer, self._bounds.get(method), error),
        )
        self._wrapped[method] = handler, around  # there are only so many methods
        return around


def _is_not_of_metadata(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_NO_TEXT)


def _marking(
    parse: Callable[[bytes], Any], bound: Bound | None, error: str
) -> Callable[[bytes], Any]:
    def parse_or_mark(data: bytes) -> Any:
        try:
            if bound is not None:
                bound.check(data)
            return parse(data)
        except DecodeError:
            return _Malformed(error)
        except InvalidInputError as refusal:
            return _Malformed(str(refusal))

    return parse_or_mark


def _unary(answer: Answer) -> Answer:
    async def guarded(request: Any, context: Any) -> Any:
        if isinstance(request, _Malformed):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, request.error)
        return await answer(request, context)

    return guarded


def _stream(answer: Answer) -> Answer:
    async def checked(requests: Any) -> AsyncGenerator[Any]:
        # Of a stream that is not read to its end gRPC's reader would keep itself, and a message.
        async with aclosing(aiter(requests)) as received:
            async for request in received:
                if isinstance(request, _Malformed):
                    raise InvalidInputError(request.error)
                yield request

    async def guarded(requests: AsyncIterator[Any], context: Any) -> None:
        try:
            async with aclosing(checked(requests)) as sound:
                await answer_stream(answer, sound, context)
        except InvalidInputError as failure:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(failure))

    return guarded
