"""A server whose model computes when a line comes in on stdin, and says on stdout when it began."""

import sys
from collections.abc import Sequence
from unittest import mock

from inference import server
from inference.engine import Embeddings, Pixels
from inference.settings import ServerSettings
from tests.inference.server.fakes import GatedEngine, decode, manifest


class StdinEngine(GatedEngine):
    def embed(self, pixels: Sequence[Pixels] | Pixels) -> Embeddings:
        sys.stdout.write("computing\n")
        sys.stdout.flush()
        if sys.stdin.readline() == "break\n":
            raise RuntimeError("broken by the test")
        return super().embed(pixels)


model = server.LoadedModel(manifest=manifest(), images=StdinEngine(), texts=None, preprocess=decode)
with mock.patch.object(server, "load_model", return_value=model):
    sys.exit(server.run(ServerSettings.load(listen="127.0.0.1:0")))
