"""Well-behaved traffic whose every answer is checked against the embedding that is right."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inference.artifact import Artifact
from inference.client import Embedded, EmbeddingClient
from inference.engine import EngineOptions, load_image_engine
from inference.errors import EmbeddingError
from inference.preprocess import Preprocessor

# Numbers of an embedding may differ by this much from the expected ones: runs of different batch
# sizes add in a different order.
TOLERANCE = 1e-3

# How long a well-behaved caller waits, with all its retries.
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A picture and its right answer.

    Attributes:
        picture: The encoded file.
        embedding: float32 [D] of unit length, computed without a server.
    """

    picture: bytes
    embedding: NDArray[np.float32]


@dataclass(slots=True, kw_only=True)
class Answers:
    """What well-behaved callers got.

    Attributes:
        right: Answers with the expected embedding.
        wrong: Answers with another one.
        failed: Errors, after all retries, by their sentence.
        worst: The largest difference of a number of an embedding.
    """

    right: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0

    @property
    def total(self) -> int:
        """All answers."""
        return self.right + self.wrong + self.failed.total()

    def check(self, question: Question, outcome: Embedded | EmbeddingError) -> None:
        """Counts one answer."""
        if isinstance(outcome, EmbeddingError):
            self.failed[f"{type(outcome).__name__}: {outcome}"] += 1
            return
        off = float(np.abs(outcome.embedding - question.embedding).max())
        self.worst = max(self.worst, off)
        if off <= TOLERANCE:
            self.right += 1
        else:
            self.wrong += 1


def questions(artifact: Artifact, pictures: Sequence[bytes]) -> list[Question]:
    """Computes the right answers, one picture at a time.

    Raises:
        StartupError: The model cannot be loaded.
    """
    preprocess = Preprocessor(
        artifact.manifest.preprocessing, max_image_bytes=2**30, max_image_pixels=100_000_000
    )
    engine = load_image_engine(artifact, EngineOptions(provider="auto"))
    return [
        Question(picture=picture, embedding=engine.embed([preprocess(picture)])[0].copy())
        for picture in pictures
    ]


async def ask_one_by_one(
    client: EmbeddingClient,
    asked: Sequence[Question],
    answers: Answers,
    stop: asyncio.Event,
    tickets: Iterator[object],
) -> None:
    """Calls `embed` again and again until told to stop, or until no tickets are left.

    Callers that share an iterator of tickets make as many calls together as it has.
    """
    for question, _ in zip(itertools.cycle(asked), tickets, strict=False):
        if stop.is_set():
            return
        try:
            outcome: Embedded | EmbeddingError = await client.embed(
                question.picture, timeout_s=PATIENCE_S
            )
        except EmbeddingError as error:
            outcome = error
        answers.check(question, outcome)


async def ask_in_bulk(
    client: EmbeddingClient, asked: Sequence[Question], answers: Answers, stop: asyncio.Event
) -> None:
    """Streams all questions through `embed_many`, again and again until told to stop."""

    async def pictures() -> AsyncIterator[tuple[int, bytes]]:
        for number, question in enumerate(asked):
            if stop.is_set():
                return
            yield number, question.picture

    while not stop.is_set():
        try:
            async for item in client.embed_many(pictures()):
                answers.check(asked[item.id], item.outcome)
        except EmbeddingError as error:
            answers.failed[f"stream: {type(error).__name__}: {error}"] += 1
