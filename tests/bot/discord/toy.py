"""An embedding server of the real protocol over real gRPC, with a toy for a model.

The toy is a coarse colour grid: blind to size, brightness, contrast and a little cropping, and
quite able to tell two pictures apart.
"""

import asyncio
import io
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc as pb_grpc
from numpy.typing import NDArray
from PIL import Image

MODEL_ID = "toy@0001"
SIDE = 6
DIMENSIONS = SIDE * SIDE * 3


def embed(data: bytes) -> NDArray[np.float32]:
    """float32 [108], of unit length."""
    with Image.open(io.BytesIO(data)) as image:
        grid = np.asarray(
            image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32
        )
    vector = grid.reshape(-1) - grid.mean()
    length = float(np.linalg.norm(vector))
    return vector / length if length > 1e-3 else np.full(DIMENSIONS, DIMENSIONS**-0.5, np.float32)


class ToyServer(pb_grpc.EmbeddingServiceServicer):
    """Counts what it embeds and can be held at a gate."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.lanes: list[int] = []
        # What words look like; without any, the toy reads no text.
        self.words: dict[str, bytes] = {}

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        self.asked.set()
        await self.gate.wait()
        try:
            vector = embed(request.image)
        except OSError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The file is no readable image.")
        self.lanes.append(request.lane)
        return pb.EmbedResponse(embedding=pb.Embedding(values=vector.tolist(), model_id=MODEL_ID))

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        return pb.GetModelResponse(
            model=pb.Model(
                id=MODEL_ID,
                name="toy",
                dimensions=DIMENSIONS,
                image_size=SIDE,
                precision="fp32",
                provider="toy",
                thresholds=pb.Thresholds(same=0.9, similar=0.6),
            ),
            limits=pb.Limits(
                max_image_bytes=1 << 24, max_image_pixels=1 << 26, max_message_bytes=1 << 25
            ),
        )

    async def EmbedText(self, request: pb.EmbedTextRequest, context: Any) -> pb.EmbedTextResponse:
        if not self.words:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "The toy reads no text.")
        vector = embed(self.words[request.text])
        return pb.EmbedTextResponse(
            embedding=pb.Embedding(values=vector.tolist(), model_id=MODEL_ID)
        )

    async def EmbedStream(
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "The toy takes no streams.")
        yield pb.EmbedStreamResponse()

    async def start(self) -> None:
        self._server = grpc.aio.server()
        pb_grpc.add_EmbeddingServiceServicer_to_server(self, self._server)
        checks = health.aio.HealthServicer()
        for service in ("", "mapseek.v1.EmbeddingService"):
            await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, self._server)
        # After a stop it comes back where it was.
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *reason: object) -> None:
        self.gate.set()
        await self.stop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


async def main(port: int) -> None:
    """Serves as a process of its own until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with ToyServer(port):
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
