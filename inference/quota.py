"""Limits per client: how many calls it may have at a time, and how many images a second.

Set up only where a limit is set: a server without limits pays nothing for them.
"""

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import grpc.aio

from inference import probes
from inference.auth import bearer
from inference.errors import OverloadedError
from inference.handlers import Answer, Continue, Handler, answer_stream
from inference.status import code_of, trailing_of

_OPEN_METHODS = f"/{probes.SERVICE_NAME}/"
# More clients than this are not remembered; who has been quiet for longest is forgotten first.
_MOST_CLIENTS = 10_000
# Health checks of an address at a time. They are open to strangers, who could otherwise watch so
# many times that the server takes no call of anybody; a client watches once for each connection.
_MOST_PROBES = 128
# When a client that has too many calls should try again: nobody knows when one of them ends.
_CALL_RETRY_MS = 200
# A provider gives every customer so many bits of an IPv6 address to change at will.
_IPV6_PREFIX = 64

Requests = AsyncIterator[Any]


class _Client:
    """One client: its running calls, and a bucket of images that fills up with time."""

    __slots__ = ("calls", "filled_at", "images")

    def __init__(self, images: float, now: float) -> None:
        self.calls = 0
        self.images = images
        self.filled_at = now


class Quota:
    """Counts what each client has and does.

    Args:
        max_calls: Most calls at a time; 0 for no limit.
        images_per_s: Most images a second on average, a second's worth at once; 0 for no limit.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self,
        *,
        max_calls: int,
        images_per_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_calls = max_calls
        self._rate = images_per_s
        self._burst = max(1.0, images_per_s)
        self._clock = clock
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Counts a call of this client while the block runs.

        Raises:
            OverloadedError: The client has as many as it may.
        """
        client = self._client(name)
        if self._max_calls and client.calls >= self._max_calls:
            raise OverloadedError(
                f"You have {client.calls} calls running, as many as one client may.",
                retry_after_ms=_CALL_RETRY_MS,
            )
        client.calls += 1
        try:
            yield
        finally:
            client.calls -= 1

    def take(self, name: str, images: int = 1) -> None:
        """Takes images out of this client's bucket.

        Raises:
            OverloadedError: It is empty; the error says when it no longer is.
        """
        wait_s = self.wait_s(name, images)
        if wait_s > 0:
            raise OverloadedError(
                f"You send more than {self._rate:g} images a second, the most one client may.",
                retry_after_ms=int(wait_s * 1000) + 1,
            )

    def wait_s(self, name: str, images: int = 1) -> float:
        """Takes images if the bucket holds any, and returns 0; else how long until it does.

        A message of more images than there are is let through and leaves a debt behind.
        """
        if not self._rate:
            return 0.0
        client, now = self._client(name), self._clock()
        client.images = min(self._burst, client.images + (now - client.filled_at) * self._rate)
        client.filled_at = now
        if client.images < 1:
            return (1 - client.images) / self._rate
        client.images -= images
        return 0.0

    async def held_back(self, name: str, images: int = 1) -> None:
        """Takes images as soon as the bucket holds any."""
        while (wait_s := self.wait_s(name, images)) > 0:  # noqa: ASYNC110 - no event fills a bucket
            await asyncio.sleep(wait_s)

    def _client(self, name: str) -> _Client:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client(self._burst, self._clock())
            if len(self._clients) > _MOST_CLIENTS:
                self._forget()
        self._clients.move_to_end(name)
        return client

    def _forget(self) -> None:
        idle = next((name for name, client in self._clients.items() if not client.calls), None)
        if idle is not None:
            del self._clients[idle]


class QuotaInterceptor(grpc.aio.ServerInterceptor):
    """Holds every client to its quota: single calls are refused, streams are read more slowly.

    Args:
        quota: What is left to whom.
        by_token: Whether a token tells who a client is: where several are given out.
        max_batch: Most elements of a batch that is answered.
    """

    def __init__(self, quota: Quota, *, by_token: bool, max_batch: int) -> None:
        self._quota = quota
        self._by_token = by_token
        self._max_batch = max_batch
        self._probes = Quota(max_calls=_MOST_PROBES, images_per_s=0)

    async def intercept_service(
        self, continuation: Continue, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Guards a method; those of the health service have a quota apart."""
        handler: Any = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None:
            return None
        if method.startswith(_OPEN_METHODS):
            counted = _counted(partial(_probe, handler), self._probes, None)
        else:
            one, many = handler.unary_unary, handler.stream_stream
            counted = _counted(
                partial(self._stream, many) if many else partial(self._unary, one),
                self._quota,
                bearer(handler_call_details.invocation_metadata) if self._by_token else None,
            )
        # All are streams: gRPC reads the message of a unary call before it asks the handler, and
        # who is slow to send it could have any number of calls.
        guarded: Handler = grpc.stream_stream_rpc_method_handler(
            counted,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return guarded

    async def _unary(self, answer: Answer, requests: Requests, context: Any, name: str) -> None:
        async for request in requests:
            self._quota.take(name, self._images(request))
            await context.write(await answer(request, context))
            return

    async def _stream(self, answer: Answer, requests: Requests, context: Any, name: str) -> None:
        async def slowly() -> Requests:
            async for request in requests:
                await self._quota.held_back(name, self._images(request))
                yield request

        await answer_stream(answer, slowly(), context)

    def _images(self, request: Any) -> int:
        """How much a message counts for: its images, or the elements of its batch, else one."""
        if inputs := getattr(request, "inputs", ()):  # of the Open Inference Protocol
            # A shape may say anything; more than the longest batch is refused, and counts as one.
            batch: int = max((1, *inputs[0].shape[:1]))
            return min(batch, self._max_batch)
        return max(1, len(getattr(request, "images", ())))


def _counted(
    answer: Callable[[Requests, Any, str], Awaitable[None]], quota: Quota, token: bytes | None
) -> Answer:
    async def guarded(requests: Requests, context: Any) -> None:
        name = client_of(context, token)
        try:
            with quota.call(name):
                await answer(requests, context, name)
        except OverloadedError as error:
            await context.abort(code_of(error), str(error), trailing_of(error))

    return guarded


async def _probe(handler: Any, requests: Requests, context: Any, _: str) -> None:
    async for request in requests:
        if handler.unary_stream:
            await handler.unary_stream(request, context)
        else:
            await context.write(await handler.unary_unary(request, context))
        return


def client_of(context: Any, token: bytes | None) -> str:
    """Who calls: by token where that tells, else by certificate, else by address.

    Args:
        context: The call's gRPC context.
        token: The bearer token, where tokens tell clients apart.
    """
    if token is not None:
        return f"token:{hash(token)}"  # the secret itself is not kept
    identities = context.peer_identities()
    if identities:
        return f"certificate:{b','.join(identities).decode(errors='replace')}"
    return _address_of(context.peer())


def _address_of(peer: str) -> str:
    scheme, _, rest = peer.partition(":")
    if scheme not in {"ipv4", "ipv6"}:
        return peer
    # gRPC writes peers as URIs: ipv6:%5B::1%5D:50051
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((int(address), _IPV6_PREFIX), strict=False))
