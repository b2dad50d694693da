"""The model behind a plain grpc.aio server: a thread for each core, no batches, no bounds.

`python -m benchmarks.peers.plain_server PORT`
"""

import asyncio
import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc

from benchmarks.peers import worker
from inference.cores import usable_cores


class Service(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Answers `Embed` and nothing else."""

    def __init__(self) -> None:
        self._decode = worker.preprocessor()
        # Each thread has an engine of its own, of one thread.
        self._engines = [worker.engine() for _ in range(usable_cores())]
        self._numbers = itertools.count()
        self._mine = threading.local()
        self._threads = ThreadPoolExecutor(len(self._engines), initializer=self._take_engine)

    async def Embed(  # noqa: N802  named by the protocol
        self,
        request: pb.EmbedRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.EmbedResponse:
        """Embeds one image."""
        loop = asyncio.get_running_loop()
        values = await loop.run_in_executor(self._threads, self._embed, request.image)
        return pb.EmbedResponse(embedding=pb.Embedding(values=values))

    def _take_engine(self) -> None:
        self._mine.engine = self._engines[next(self._numbers)]

    def _embed(self, image: bytes) -> list[float]:
        values: list[float] = self._mine.engine.embed([self._decode(image)])[0].tolist()
        return values


async def _serve(port: int) -> None:
    server = grpc.aio.server()
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(Service(), server)  # type: ignore[abstract]
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
