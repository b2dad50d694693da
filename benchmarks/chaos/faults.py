"""A real server whose model fails on command: the process that `mapseek bench chaos` starts.

The faults sit behind the same port as every model, `inference.engine.Engine`, and come in through
`run(load=...)`. Nothing of it is in the server: only this program wraps a model so.
"""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from inference import server
from inference.engine import Cores, Embeddings, Engine, Pixels
from inference.errors import EngineMemoryError
from inference.settings import ServerSettings

# What a picture must be filled with for the model to fail on every batch that it is in, or to
# answer it with no numbers.
POISON = (255, 0, 255)
NO_NUMBERS = (0, 255, 255)
# How far the pixels may be off: JPEG and resizing are not exact.
_CLOSE = 2

_REAL_TIME = time.time


class FaultyEngine:
    """A model and what is wrong with it at present.

    Args:
        engine: The model.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.provider = engine.provider
        self.max_batch = engine.max_batch
        self.cores: Cores | None = None
        if engine.cores is not None:
            self.cores = Cores(engine.cores.count, partial(self._embed, engine.cores.embed))
        self._failures = 0
        self._broken = False
        self._hang_s = 0.0
        self._fits = engine.max_batch
        self._turn = 0

    def obey(self, command: str) -> None:
        """Changes what is wrong: `fail N`, `break`, `hang SECONDS`, `memory N`, `mend`."""
        name, _, value = command.strip().partition(" ")
        if name == "fail":
            self._failures = int(value)
        elif name == "break":
            self._broken = True
        elif name == "hang":
            self._hang_s = float(value)
        elif name == "memory":
            self._fits = int(value)
        elif name == "clock":
            jump(float(value))
        elif name == "mend":
            self._failures, self._broken, self._fits = 0, False, self.max_batch
        else:
            raise ValueError(f"no such fault: {command!r}")

    def embed(self, items: Sequence[Pixels] | Pixels) -> Embeddings:
        """Embeds, if nothing is wrong."""
        return self._embed(self._engine.embed, items)

    def _embed(
        self, embed: Callable[[Any], Embeddings], items: Sequence[Pixels] | Pixels
    ) -> Embeddings:
        hang_s, self._hang_s = self._hang_s, 0.0
        if hang_s:
            time.sleep(hang_s)
        if len(items) > self._fits:
            self._turn += 1
            if self._turn % 2:  # as decoding says it, and as the tower does
                raise MemoryError
            raise EngineMemoryError(f"The engine has no memory for a batch of {len(items)}.")
        if self._broken or self._failures > 0:
            self._failures -= 1
            raise RuntimeError("a fault by the chaos run")
        if any(_is(item, POISON) for item in items):
            raise RuntimeError("a poisoned picture of the chaos run")
        embeddings = embed(items)
        for row, item in enumerate(items):
            if _is(item, NO_NUMBERS):
                embeddings[row] = np.nan
        return embeddings

    def warm_up(self) -> None:
        """Warms the model up."""
        self._engine.warm_up()


def jump(seconds: float) -> None:
    """Lets the wall clock of this process be off by so many seconds."""
    time.time = lambda: _REAL_TIME() + seconds
    time.time_ns = lambda: int((_REAL_TIME() + seconds) * 1e9)


def _is(item: Pixels, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(item[::16, ::16].astype(np.int16) - colour).max() <= _CLOSE)


def main() -> int:
    """Serves, and obeys the lines that come in on stdin; returns the exit status."""
    engines: list[FaultyEngine] = []

    def load(settings: ServerSettings) -> server.LoadedModel:
        model = server.load_model(settings)
        engines.append(FaultyEngine(model.images))
        return replace(model, images=engines[0])

    def obey() -> None:
        for line in sys.stdin:
            engines[0].obey(line)

    threading.Thread(target=obey, name="faults", daemon=True).start()
    return server.run(ServerSettings.load(), load=load)


if __name__ == "__main__":
    sys.exit(main())
