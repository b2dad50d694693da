"""A real embedding server around a model small enough for tests."""

import argparse
import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.artifact import (
    IMAGE_TOWER,
    Manifest,
    Precision,
    Preprocessing,
    TextTower,
    Thresholds,
)
from inference.engine import Embeddings, Pixels
from inference.errors import InferenceError, InvalidInputError
from inference.preprocess import Preprocessor
from inference.server import LoadedModel, RunningServer, serve
from inference.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[3]
SIDE = 4
DIMENSIONS = SIDE * SIDE * 3 + 1
PREPROCESSING = Preprocessing(image_size=SIDE, resize="squash", interpolation="bilinear")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
WAIT_S = 60


class PixelEngine:
    """Embeds a picture as its few pixels, so that pictures that look alike lie close.

    It computes until its budget of pictures is spent, and then waits for more.
    """

    provider = "ToyProvider"
    max_batch = 8
    cores = None

    def __init__(self) -> None:
        self.pictures = 0
        self.refuses_first = False  # fails on the picture that it meets next, whenever it comes
        self._refused: bytes | None = None
        self.spent = threading.Event()
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        self._budget: int | None = None

    def limit(self, pictures: int) -> None:
        """Computes this many more, and then sets `spent` and waits."""
        self._budget = self.pictures + pictures

    def go_on(self) -> None:
        self._budget = None
        self._may_go_on.set()

    def embed(self, items: Sequence[Pixels] | Pixels) -> Embeddings:
        if self._budget is not None and self.pictures >= self._budget:
            self._may_go_on.clear()
            self.spent.set()
            assert self._may_go_on.wait(WAIT_S)
        if self.refuses_first:
            known = [np.asarray(item).tobytes() for item in items]
            self._refused = self._refused or known[0]
            if self._refused in known:
                raise InferenceError("The model failed.")
        self.pictures += len(items)
        pixels = np.stack([np.asarray(item, np.float32).reshape(-1) for item in items])
        return _unit(np.hstack([pixels - 128, np.full((len(items), 1), 16, np.float32)]))

    def warm_up(self) -> None: ...


class ColourReader:
    """Embeds a text like a picture of the colour that it names."""

    provider = "ToyProvider"
    max_batch = 8
    cores = None

    def tokenise(self, text: str) -> NDArray[np.int64]:
        named = [colour for name, colour in COLOURS.items() if name in text]
        if not named:
            raise InvalidInputError("The text names no colour.")
        return np.array(named[0], dtype=np.int64)

    def embed(self, items: Sequence[NDArray[np.int64]] | NDArray[np.int64]) -> Embeddings:
        pixels = np.stack([np.tile(np.asarray(item, np.float32), SIDE * SIDE) for item in items])
        return _unit(np.hstack([pixels - 128, np.full((len(items), 1), 16, np.float32)]))

    def warm_up(self) -> None: ...


def _unit(rows: NDArray[np.float32]) -> Embeddings:
    unit: Embeddings = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


class ToyServer:
    """A running server.

    Attributes:
        engine: Its model.
        address: Where it listens.
        model_id: What it serves.
    """

    def __init__(self, engine: PixelEngine, server: RunningServer, model_id: str) -> None:
        self.engine = engine
        self.address = server.address
        self.model_id = model_id
        self._server = server

    async def stop(self) -> None:
        """Goes away in the middle of whatever it does."""
        await self._server.stop()


@asynccontextmanager
async def toy_server(
    *, name: str = "toy", text: bool = True, **settings: Any
) -> AsyncIterator[ToyServer]:
    """Serves the toy model in this event loop."""
    engine = PixelEngine()
    manifest = Manifest(
        name=name,
        dimensions=DIMENSIONS,
        precision=Precision.FP32,
        opset=18,
        preprocessing=PREPROCESSING,
        text=TextTower(context_length=3, pad_token_id=0) if text else None,
        thresholds=Thresholds(same=0.98, similar=0.6),
        sha256={IMAGE_TOWER: "ab" * 32},
    )

    def load(settings: ServerSettings) -> LoadedModel:
        return LoadedModel(
            manifest=manifest,
            images=engine,
            texts=ColourReader() if text else None,
            preprocess=Preprocessor(
                PREPROCESSING,
                max_image_bytes=settings.max_image_bytes,
                max_image_pixels=settings.max_image_pixels,
            ),
        )

    settings = {"listen": "127.0.0.1:0", "decode_threads": 1, "drain_s": 0.0} | settings
    async with serve(ServerSettings.load(**settings), load=load) as server:
        await server.ready()
        try:
            yield ToyServer(engine, server, manifest.model_id)
        finally:
            engine.go_on()


class ToyProcess:
    """The same server in a process of its own, for tests of whole commands.

    Attributes:
        address: Where it listens.
    """

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bot.cli.toy", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self._line()

    def limit(self, pictures: int) -> None:
        """Computes this many more pictures, and then waits."""
        self._tell(f"limit {pictures}")

    def wait_until_spent(self) -> None:
        """Returns when the limit is reached."""
        self._tell("wait")
        assert self._line() == "spent"

    def go_on(self) -> None:
        self._tell("go on")

    def close(self) -> None:
        self._process.communicate(timeout=WAIT_S)
        assert self._process.returncode == 0

    def _tell(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the toy server ended early"
        return line


async def _main(arguments: argparse.Namespace) -> None:
    """Serves until standard input ends; obeys `ToyProcess`."""
    async with toy_server(
        name=arguments.name, text=arguments.text, listen=arguments.listen
    ) as server:
        print(server.address, flush=True)  # noqa: T201 - tells the parent
        while order := (await asyncio.to_thread(sys.stdin.readline)).split():
            match order:
                case ["limit", pictures]:
                    server.engine.limit(int(pictures))
                case ["wait"]:
                    await asyncio.to_thread(server.engine.spent.wait, WAIT_S)
                    print("spent", flush=True)  # noqa: T201 - tells the parent
                case _:
                    server.engine.go_on()


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--name", default="toy")
    options.add_argument("--listen", default="127.0.0.1:0")
    options.add_argument("--no-text", dest="text", action="store_false")
    asyncio.run(_main(options.parse_args()))
