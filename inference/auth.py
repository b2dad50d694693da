"""The bearer token: who does not carry it is turned away before a byte of the message is read."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

from inference import probes

_OPEN_METHODS = f"/{probes.SERVICE_NAME}/"

# In quotes, because only the stubs of this class are generic.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continue: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls pass that carry `authorization: Bearer TOKEN`.

    Health stays open: probes of orchestrators and load balancers carry no token, and what they
    learn is one bit.

    Args:
        token: The secret.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode("ascii")

    async def intercept_service(
        self,
        continuation: Continue,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Passes a call on, or answers it with UNAUTHENTICATED."""
        if handler_call_details.method.startswith(_OPEN_METHODS) or any(
            self._is_right(value)
            for key, value in handler_call_details.invocation_metadata or ()
            if key == "authorization"
        ):
            return await continuation(handler_call_details)
        return _REFUSAL

    def _is_right(self, header: str | bytes) -> bool:
        given = header.encode() if isinstance(header, str) else header
        scheme, _, token = given.partition(b" ")
        # Constant in time, so that nobody can guess the token letter by letter.
        return scheme.lower() == b"bearer" and hmac.compare_digest(token, self._token)


async def _refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "A token is required: send the metadata `authorization: Bearer TOKEN`.",
    )


# Whatever the method is, the refusal is a stream: gRPC reads the message of a unary call before
# it asks the handler, and a stranger's message is not worth the memory.
_REFUSAL: Handler = grpc.stream_stream_rpc_method_handler(_refuse)
