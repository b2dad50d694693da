"""The bearer token: who does not carry it is turned away before a byte of the message is read."""

import hmac
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
import grpc.aio

from inference import probes
from inference.handlers import Continue, Handler

_OPEN_METHODS = f"/{probes.SERVICE_NAME}/"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls pass that carry `authorization: Bearer TOKEN`, with one of the tokens.

    Health stays open: probes of orchestrators and load balancers carry no token, and what they
    learn is one bit.

    Args:
        tokens: The secrets, in ASCII.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = [token.encode("ascii") for token in tokens]

    async def intercept_service(
        self,
        continuation: Continue,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Passes a call on, or answers it with UNAUTHENTICATED."""
        if handler_call_details.method.startswith(_OPEN_METHODS) or self._is_right(
            bearer(handler_call_details.invocation_metadata)
        ):
            return await continuation(handler_call_details)
        return _REFUSAL

    def _is_right(self, given: bytes | None) -> bool:
        if given is None:
            return False
        # Each comparison is constant in time, and all are made: nobody can guess a token letter
        # by letter, or learn which one it is like.
        return sum(hmac.compare_digest(given, token) for token in self._tokens) > 0


def bearer(metadata: Iterable[Any] | None) -> bytes | None:
    """The token that a call carries, or None.

    Args:
        metadata: Pairs of a key and a value, text or bytes, as gRPC gives them.
    """
    for key, value in metadata or ():
        if key == "authorization":
            given = value.encode() if isinstance(value, str) else value
            scheme, _, token = given.partition(b" ")
            if scheme.lower() == b"bearer":
                return bytes(token)
    return None


async def _refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "A token is required: send the metadata `authorization: Bearer TOKEN`.",
    )


# Whatever the method is, the refusal is a stream: gRPC reads the message of a unary call before
# it asks the handler, and a stranger's message is not worth the memory.
_REFUSAL: Handler = grpc.stream_stream_rpc_method_handler(_refuse)
