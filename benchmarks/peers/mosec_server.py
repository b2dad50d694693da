"""The model behind mosec: a process for each core that decodes, one that embeds batches.

`python -m benchmarks.peers.mosec_server --port PORT`; mosec reads its own options.
"""

from mosec import Server, Worker

from benchmarks.peers import worker
from inference.providers import usable_cores

_MAX_BATCH = 16
_MAX_WAIT_MS = 5


class Decode(Worker):
    """Files in, pixels out."""

    def __init__(self) -> None:
        self._decode = worker.preprocessor()

    def deserialize(self, data: bytes) -> bytes:
        """The body is the file."""
        return data

    def forward(self, data: bytes) -> worker.Pixels:
        """Decodes one picture."""
        return self._decode(data)


class Embed(Worker):
    """Batches of pixels in, embeddings out."""

    def __init__(self) -> None:
        self._engine = worker.engine()

    def forward(self, data: list[worker.Pixels]) -> list[bytes]:
        """Runs a batch."""
        return [row.tobytes() for row in self._engine.embed(data)]

    def serialize(self, data: bytes) -> bytes:
        """The answer is the vector's float32 numbers."""
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=usable_cores())
    server.append_worker(Embed, num=1, max_batch_size=_MAX_BATCH, max_wait_time=_MAX_WAIT_MS)
    server.run()
