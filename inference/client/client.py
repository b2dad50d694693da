"""`EmbeddingClient`: one channel to one or many servers, and the calls over it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Literal, Self, TypeVar

import grpc.aio

from inference.client.backoff import Backoff, is_worth_retrying
from inference.client.bulk import too_long
from inference.client.channel import open_channel
from inference.client.own import OwnWire
from inference.client.results import Embedded, Limits, ModelInfo, StreamItem
from inference.client.settings import ClientSettings
from inference.client.wire import Wire
from inference.errors import DeadlineError, EmbeddingError, UnavailableError

# How long one attempt of `wait_ready` may take: enough for a slow network.
_PROBE_S = 5.0
# How long a call whose server is away waits for a connection before each new attempt: without one,
# attempts fail at once, faster than gRPC connects again to a server that is back.
_RECONNECT_S = 0.5

Answer = TypeVar("Answer")


class EmbeddingClient:
    """Calls an embedding server. An async context manager: leaving it closes the channel.

    It speaks `mapseek.v1`, or the Open Inference Protocol where the address begins with `oip://`.
    Every single call has a deadline that covers all its retries. A server that is full or away is
    tried again with jittered exponential back-off. One client serves any number of tasks.

    Args:
        settings: Where the server is and how patiently to call it.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._channel: grpc.aio.Channel | None = None
        self._limits: Limits | None = None
        token = settings.token
        self._metadata: tuple[tuple[str, str], ...] = ()
        if token is not None:
            self._metadata = (("authorization", f"Bearer {token.get_secret_value()}"),)

    async def __aenter__(self) -> Self:
        """Opens the channel; it connects on the first call.

        Raises:
            StartupError: A TLS file cannot be read.
        """
        self._channel = open_channel(self._settings)
        self._wire = self._open_wire(self._channel)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the channel and ends what runs over it."""
        if self._channel is not None:
            await self._channel.close()
            self._wire.close()
            self._channel = None

    async def model(self, *, timeout_s: float | None = None) -> ModelInfo:
        """Asks what is being served.

        Raises:
            EmbeddingError: See `embed`.
        """
        return await self._model(self._deadline(timeout_s))

    async def wait_ready(self, timeout_s: float) -> ModelInfo:
        """Waits until the server serves.

        Raises:
            UnavailableError: It did not within `timeout_s`; the message tells the last reason.
            UnauthenticatedError: The token is missing or wrong.
        """
        deadline = self._deadline(timeout_s)
        backoff = Backoff(longest_s=0.5)
        reason: EmbeddingError | None = None
        while (left_s := deadline - _now()) > 0:
            try:
                return self._remember(await self._wire.model(timeout_s=min(left_s, _PROBE_S)))
            except EmbeddingError as error:
                if not (is_worth_retrying(error) or isinstance(error, DeadlineError)):
                    raise
                reason = error
                await asyncio.sleep(min(backoff.pause_s(error), max(0.0, deadline - _now())))
        raise UnavailableError(
            f"{self._settings.server} did not serve within {timeout_s:g} s. {reason or ''}".rstrip()
        ) from reason

    async def embed(
        self,
        image: bytes,
        *,
        lane: Literal["interactive", "bulk"] = "interactive",
        timeout_s: float | None = None,
    ) -> Embedded:
        """Embeds one image.

        Args:
            image: The encoded file (PNG, JPEG, WebP, GIF, ...).
            lane: `interactive` where somebody waits; `bulk` yields to it.
            timeout_s: How long to wait with all retries; None takes the settings' value.

        Raises:
            InvalidInputError: The image is not one that the server accepts, or is too large.
            OverloadedError: The server was full at every attempt.
            UnavailableError: No server answered at any attempt.
            DeadlineError: No answer came within `timeout_s`.
            UnauthenticatedError: The token is missing or wrong.
            InferenceError: The model failed; the cause is in the server's log.
            UnknownModelError: Over the Open Inference Protocol: there is no such model.
        """
        deadline = self._deadline(timeout_s)
        # A message over the limit would be refused like a call to a full server: see first.
        limits = self._limits or (await self._model(deadline)).limits
        if len(image) > limits.max_image_bytes:
            limits = (await self._model(deadline)).limits  # it may have been raised since
            if len(image) > limits.max_image_bytes:
                raise too_long(image, limits.max_image_bytes)
        return await self._call(
            lambda left_s: self._wire.embed(image, lane=lane, timeout_s=left_s), deadline
        )

    async def embed_text(self, text: str, *, timeout_s: float | None = None) -> Embedded:
        """Embeds one text into the image space.

        Raises:
            UnsupportedError: The model has no text tower.
            EmbeddingError: See `embed`.
        """
        return await self._call(
            lambda left_s: self._wire.embed_text(text, timeout_s=left_s), self._deadline(timeout_s)
        )

    async def embed_many(
        self, images: AsyncIterable[tuple[int, bytes]]
    ) -> AsyncGenerator[StreamItem, None]:
        """Embeds many images in the bulk lane over one stream.

        Reads `images` only as fast as the server answers: at most `ClientSettings.window` are
        unanswered at any time. Items come as they are ready, in any order, exactly one for each
        image. When the server goes away the stream is opened again and only what is unanswered is
        sent again. Whoever leaves the loop early closes it with `contextlib.aclosing`.

        Args:
            images: (id, encoded file) pairs; the ids are the caller's own, need not be unique,
                and come back with the items.

        Raises:
            ModelChangedError: Another model answers than at the beginning.
            UnavailableError: The server stayed away for `ClientSettings.outage_s`.
            DeadlineError: The server answered nothing for `ClientSettings.outage_s`.
            UnauthenticatedError: The token is missing or wrong.
        """
        model = await self.wait_ready(self._settings.outage_s)
        async with aclosing(self._wire.embed_many(images, model=model)) as items:
            async for item in items:
                yield item

    async def _model(self, deadline: float) -> ModelInfo:
        model = await self._call(lambda left_s: self._wire.model(timeout_s=left_s), deadline)
        return self._remember(model)

    def _remember(self, model: ModelInfo) -> ModelInfo:
        self._limits = model.limits
        return model

    def _open_wire(self, channel: grpc.aio.Channel) -> Wire:
        if not self._settings.open_inference:
            return OwnWire(channel, self._settings, self._metadata)
        # Only who needs it pays for it: it may have to decode pictures.
        from inference.client.open_inference import OpenInferenceWire  # noqa: PLC0415

        return OpenInferenceWire(channel, self._settings, self._metadata)

    async def _call(self, attempt: Callable[[float], Awaitable[Answer]], deadline: float) -> Answer:
        """Makes a call, and makes it again while that may help and there is time."""
        backoff = Backoff()
        while True:
            try:
                return await attempt(deadline - _now())
            except EmbeddingError as error:
                pause_s = backoff.pause_s(error)
                if (
                    not is_worth_retrying(error)
                    or backoff.failures >= self._settings.attempts
                    or _now() + pause_s >= deadline
                ):
                    raise
                away = isinstance(error, UnavailableError)
            await asyncio.sleep(pause_s)
            if away:
                await self._reconnected(min(_RECONNECT_S, (deadline - _now()) / 2))

    async def _reconnected(self, patience_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                if self._channel is not None:
                    await self._channel.channel_ready()

    def _deadline(self, timeout_s: float | None) -> float:
        return _now() + (self._settings.timeout_s if timeout_s is None else timeout_s)


def _now() -> float:
    return asyncio.get_running_loop().time()
