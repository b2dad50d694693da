"""The server that searches and new posts go to: the one that serves the archive's current model.

While an archive moves to another model there are two servers, one for each. Which of them counts
is written down in the archive (`current_model`), so every process changes over at the same moment,
and a vector of one model is never held against those of another.
"""

import time
from types import TracebackType
from typing import Literal, Self

from bot.archive.port import ImageArchive
from inference.client import ClientSettings, Embedded, EmbeddingClient, ModelInfo
from inference.errors import EmbeddingError, StartupError, UnavailableError

# `mapseek archive reembed` waits for longer than this before it looks for late posts.
_KEEP_S = 2.0


class OtherModelError(UnavailableError):
    """No server that is known serves the model that the archive is searched with."""


class CurrentClient(EmbeddingClient):
    """An `EmbeddingClient` that answers with the archive's current model, or not at all.

    Args:
        settings: The server.
        archive: Says which model is the current one; where it names none, any will do.
        next_server: Another server that may serve it.
        keep_s: How long the archive's answer is believed, in seconds.

    Raises:
        StartupError: The other server may not be called with these settings.
    """

    def __init__(
        self,
        settings: ClientSettings,
        archive: ImageArchive,
        *,
        next_server: str | None = None,
        keep_s: float = _KEEP_S,
    ) -> None:
        super().__init__(settings)
        self._archive = archive
        self._keep_s = keep_s
        self._known: str | None = None
        self._asked_again_s = 0.0
        self._servers = settings.server
        self._next: EmbeddingClient | None = None
        if next_server is not None:
            self._servers = f"{settings.server} or {next_server}"
            self._next = EmbeddingClient(_next(settings, next_server))

    async def __aenter__(self) -> Self:
        """Opens the channels."""
        await super().__aenter__()
        if self._next is not None:
            await self._next.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the channels."""
        if self._next is not None:
            await self._next.__aexit__(kind, error, trace)
        await super().__aexit__(kind, error, trace)

    async def wait_ready(self, timeout_s: float) -> ModelInfo:
        """Waits until one of the servers serves, each for so long; see `EmbeddingClient`."""
        try:
            return await super().wait_ready(timeout_s)
        except UnavailableError:
            if self._next is None:
                raise
            return await self._next.wait_ready(timeout_s)

    async def model(self, *, timeout_s: float | None = None) -> ModelInfo:
        """The current model, as the server that serves it describes it.

        Raises:
            OtherModelError: No server serves it.
            EmbeddingError: No server answers.
            ArchiveError: The archive does not say which one it is.
        """
        current = await self._current()
        try:
            model = await super().model(timeout_s=timeout_s)
        except EmbeddingError:
            if self._next is None or current is None:
                raise
            model = await self._next.model(timeout_s=timeout_s)
        if current in (None, model.id):
            return model
        if self._next is not None:
            other = await self._next.model(timeout_s=timeout_s)
            if other.id == current:
                return other
        raise self._other(current, model.id)

    async def embed(
        self,
        image: bytes,
        *,
        lane: Literal["interactive", "bulk"] = "interactive",
        timeout_s: float | None = None,
    ) -> Embedded:
        """See `EmbeddingClient.embed`; and `model` for what else is raised."""
        current = await self._current()
        client = await self._serving(current)
        if client is None:
            answer = await super().embed(image, lane=lane, timeout_s=timeout_s)
        else:
            answer = await client.embed(image, lane=lane, timeout_s=timeout_s)
        return self._checked(answer, current)

    async def embed_text(self, text: str, *, timeout_s: float | None = None) -> Embedded:
        """See `EmbeddingClient.embed_text`; and `model` for what else is raised."""
        current = await self._current()
        client = await self._serving(current)
        if client is None:
            answer = await super().embed_text(text, timeout_s=timeout_s)
        else:
            answer = await client.embed_text(text, timeout_s=timeout_s)
        return self._checked(answer, current)

    async def _current(self) -> str | None:
        """The archive's current model, asked for again every moment."""
        now_s = time.monotonic()
        if now_s >= self._asked_again_s:
            self._known = await self._archive.current_model()
            self._asked_again_s = now_s + self._keep_s
        return self._known

    async def _serving(self, current: str | None) -> EmbeddingClient | None:
        """The other server's client where that is the one to ask; None for the first."""
        if self._next is None or current is None:
            return None
        try:
            if (await super().model()).id == current:
                return None
        except EmbeddingError:
            pass  # then the other one has to answer
        return self._next

    def _checked(self, answer: Embedded, current: str | None) -> Embedded:
        if current not in (None, answer.model_id):
            raise self._other(str(current), answer.model_id)
        return answer

    def _other(self, current: str, served: str) -> OtherModelError:
        return OtherModelError(
            f"The archive is searched with {current}, and the server at {self._servers} serves "
            f"{served}: serve {current}, or move the archive to the new model with "
            "`mapseek archive reembed`."
        )


def _next(settings: ClientSettings, server: str) -> ClientSettings:
    try:
        return settings.at(server)
    except StartupError as error:
        reason = str(error).removeprefix("MAPSEEK_SERVER: ")
        raise StartupError(f"MAPSEEK_NEXT_SERVER: {reason}") from None
