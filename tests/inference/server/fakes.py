"""A gated engine, and pictures that it can tell apart."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import grpc.aio
import numpy as np
from mapseek.v1 import embedding_pb2_grpc
from numpy.typing import NDArray

from inference.artifact import (
    IMAGE_TOWER,
    Manifest,
    Precision,
    Preprocessing,
    TextTower,
    Thresholds,
)
from inference.client import ClientSettings, EmbeddingClient
from inference.engine import Cores, Embeddings, Pixels
from inference.errors import InvalidInputError
from inference.fields import Buffer
from inference.server import RunningServer

# In quotes, because only the type stubs of the generated module have it.
Stub: TypeAlias = "embedding_pb2_grpc.EmbeddingServiceAsyncStub"
Start = Callable[..., AbstractAsyncContextManager[RunningServer]]

SIZE = 4
DIMENSIONS = 8


class GatedEngine:
    """An engine that computes at once while its gate is open, and else waits for it.

    A picture's embedding points along the axis of its first byte.
    """

    provider = "FakeProvider"
    max_batch = 4
    cores: Cores | None = None

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.seen: list[list[int]] = []
        self.failures: list[Exception] = []

    def embed(self, pixels: Sequence[Pixels] | Pixels) -> Embeddings:
        firsts = [int(one[0, 0, 0]) for one in pixels]
        self.seen.append(firsts)
        self.entered.release()
        assert self.gate.wait(timeout=30)
        if self.failures:
            raise self.failures.pop(0)
        return np.eye(DIMENSIONS, dtype=np.float32)[[first % DIMENSIONS for first in firsts]]

    def warm_up(self) -> None:
        assert self.gate.wait(timeout=30)

    @property
    def computed(self) -> list[int]:
        """Every picture that the engine was given, in order."""
        return [first for batch in self.seen for first in batch]


class LetterCounter:
    """A text tower for tests: the embedding points along the axis of the text's length."""

    provider = "FakeProvider"
    max_batch = 4
    cores: Cores | None = None

    def tokenise(self, text: str) -> NDArray[np.int64]:
        if not text:
            raise InvalidInputError("The text is empty.")
        return np.array([len(text)], dtype=np.int64)

    def embed(self, token_ids: Sequence[NDArray[np.int64]] | NDArray[np.int64]) -> Embeddings:
        lengths = [int(ids[0]) for ids in token_ids]
        return np.eye(DIMENSIONS, dtype=np.float32)[[length % DIMENSIONS for length in lengths]]

    def warm_up(self) -> None: ...


def decode(data: Buffer) -> Pixels:
    """The pictures of these tests are bytes of which the first is the colour."""
    if bytes(data[:3]) == b"bad":
        raise InvalidInputError("This is not an image.")
    return np.full((SIZE, SIZE, 3), data[0], dtype=np.uint8)


def picture(colour: int, size: int = 1) -> bytes:
    return bytes([colour]) * size


def manifest(name: str = "fake", *, text: bool = False) -> Manifest:
    return Manifest(
        name=name,
        revision="r1",
        dimensions=DIMENSIONS,
        precision=Precision.FP32,
        opset=18,
        preprocessing=Preprocessing(image_size=SIZE, resize="squash", interpolation="bilinear"),
        text=TextTower(context_length=77, pad_token_id=0) if text else None,
        thresholds=Thresholds(same=0.875, similar=0.5),
        sha256={IMAGE_TOWER: "ab" * 32},
    )


@asynccontextmanager
async def stub_of(server: RunningServer) -> AsyncIterator[Stub]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield embedding_pb2_grpc.EmbeddingServiceStub(channel)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the event loop turn until a state is reached that no event announces."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  see above
            await asyncio.sleep(0.001)


def client_of(address: str, **settings: Any) -> EmbeddingClient:
    return EmbeddingClient(ClientSettings.load(**({"server": address} | settings)))
