"""What the client needs of a protocol: single attempts, with errors in the domain's terms."""

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Literal, Protocol

from inference.client.results import Embedded, ModelInfo, StreamItem

LaneName = Literal["interactive", "bulk"]
Images = AsyncIterable[tuple[int, bytes]]


class Wire(Protocol):
    """One protocol over one channel. Every method but `embed_many` is a single attempt.

    They raise `EmbeddingError`; the caller decides what is tried again.
    """

    async def model(self, *, timeout_s: float) -> ModelInfo:
        """Asks what is being served."""

    async def embed(self, image: bytes, *, lane: LaneName, timeout_s: float) -> Embedded:
        """Embeds one image."""

    async def embed_text(self, text: str, *, timeout_s: float) -> Embedded:
        """Embeds one text."""

    def embed_many(self, images: Images, *, model: ModelInfo) -> AsyncGenerator[StreamItem, None]:
        """Embeds many images; `model` is what the server served just now."""

    def close(self) -> None:
        """Lets go of what it holds beside the channel."""
