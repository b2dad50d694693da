"""The model behind mosec: a process for each core that decodes and embeds batches on it.

`python -m benchmarks.peers.mosec_server --port PORT`; mosec reads its own options.
"""

from mosec import Server, Worker

from benchmarks.peers import worker
from inference.cores import usable_cores


class Embed(Worker):
    """Files in, embeddings out."""

    def __init__(self) -> None:
        self._decode = worker.preprocessor()
        self._engine = worker.engine()

    def deserialize(self, data: bytes) -> bytes:
        """The body is the file."""
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        """Decodes and runs a batch."""
        pixels = [self._decode(one) for one in data]
        return [row.tobytes() for row in self._engine.embed(pixels)]

    def serialize(self, data: bytes) -> bytes:
        """The answer is the vector's float32 numbers."""
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Embed,
        num=usable_cores(),
        max_batch_size=worker.MAX_BATCH,
        max_wait_time=round(worker.MAX_WAIT_S * 1000),
    )
    server.run()
