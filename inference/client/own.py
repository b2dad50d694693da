"""The wire of `mapseek.v1`."""

from collections.abc import AsyncGenerator
from typing import TypeVar

import grpc.aio
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc

from inference.client.bulk import BulkCall
from inference.client.messages import embedded, failure, model_info
from inference.client.results import Embedded, ModelInfo, StreamItem
from inference.client.settings import ClientSettings
from inference.client.wire import Images, LaneName

_LANES: "dict[LaneName, pb.Lane.ValueType]" = {
    "interactive": pb.LANE_INTERACTIVE,
    "bulk": pb.LANE_BULK,
}

Request = TypeVar("Request")
Response = TypeVar("Response")


class OwnWire:
    """Calls `mapseek.v1.EmbeddingService`; see `Wire`."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        settings: ClientSettings,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        self._stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        self._settings = settings
        self._metadata = metadata

    async def model(self, *, timeout_s: float) -> ModelInfo:
        """Asks what is being served."""
        return model_info(await self._call(self._stub.GetModel, pb.GetModelRequest(), timeout_s))

    async def embed(self, image: bytes, *, lane: LaneName, timeout_s: float) -> Embedded:
        """Embeds one image."""
        request = pb.EmbedRequest(image=image, lane=_LANES[lane])
        response = await self._call(self._stub.Embed, request, timeout_s)
        return embedded(response.embedding, response.timings)

    async def embed_text(self, text: str, *, timeout_s: float) -> Embedded:
        """Embeds one text."""
        request = pb.EmbedTextRequest(text=text)
        response = await self._call(self._stub.EmbedText, request, timeout_s)
        return embedded(response.embedding, response.timings)

    def embed_many(self, images: Images, *, model: ModelInfo) -> AsyncGenerator[StreamItem, None]:
        """Embeds many images over one EmbedStream after the other."""
        return BulkCall(
            open_call=lambda: self._stub.EmbedStream(metadata=self._metadata),
            model=model,
            images=images,
            window=self._settings.window,
            outage_s=self._settings.outage_s,
            server=self._settings.server,
        ).items()

    def close(self) -> None:
        """Has nothing to let go of."""

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float,
    ) -> Response:
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise failure(error, self._settings.server) from error
