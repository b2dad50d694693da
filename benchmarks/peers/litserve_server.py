"""The model behind LitServe: a process for each core that decodes and embeds batches on it.

`python -m benchmarks.peers.litserve_server PORT`
"""

import base64
import sys
from collections.abc import Sequence

import litserve

from benchmarks.peers import worker
from inference.cores import usable_cores


class Embed(litserve.LitAPI):
    """Files in base64 in, embeddings out."""

    def setup(self, _device: str) -> None:
        """Loads the model in the worker's process."""
        self._decode = worker.preprocessor()
        self._engine = worker.engine()

    def decode_request(self, request: dict[str, str]) -> worker.Pixels:
        """Decodes one picture."""
        return self._decode(base64.b64decode(request["image"]))

    def batch(self, inputs: Sequence[worker.Pixels]) -> Sequence[worker.Pixels]:
        """A batch is a list."""
        return inputs

    def predict(self, inputs: Sequence[worker.Pixels]) -> list[list[float]]:
        """Runs a batch."""
        rows: list[list[float]] = self._engine.embed(inputs).tolist()
        return rows

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        """And so is its result."""
        return output

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        """One answer."""
        return {"embedding": output}


if __name__ == "__main__":
    api = Embed(max_batch_size=worker.MAX_BATCH, batch_timeout=worker.MAX_WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=usable_cores())
    server.run(
        port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="error"
    )
