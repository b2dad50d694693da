"""`mapseek bench peers`: other servers on the same model, pictures and decoding, in one run."""

import asyncio
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import numpy as np
from mapseek.v1 import embedding_pb2 as pb
from mapseek.v1 import embedding_pb2_grpc
from numpy.typing import NDArray

from benchmarks.latency import Latency
from benchmarks.load import Body, ClosedLoop, Load, LoadProcess, codes_of
from benchmarks.machine import this_machine
from benchmarks.peers.http import HttpChannel, as_body
from benchmarks.peers.processes import PEERS, Peer, environment, run_peer
from benchmarks.pictures import screenshots
from benchmarks.report import Cell, Progress, Report, Table, Target
from benchmarks.server_process import run_server
from inference.artifact import Artifact
from inference.engine import EngineOptions, load_image_engine
from inference.errors import StartupError
from inference.preprocess import Preprocessor
from inference.settings import ServerSettings

OURS = "mapseek"

# An answer further than this from ours comes from another model or another decoding.
_MIN_COSINE = 0.999
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersOptions:
    """What to measure.

    Attributes:
        model: The model folder that all of them serve.
        environment: Folder of the peers' own environment; made where it is missing.
        rounds: How often everything is measured.
        seconds: How long each measurement of a round takes.
        callers: Numbers of callers.
        pictures: How many different screenshots are sent.
    """

    model: Path
    environment: Path
    rounds: int = 5
    seconds: float = 2.0
    callers: Sequence[int] = (1, 8, 32)
    pictures: int = 64


@dataclass(slots=True, kw_only=True)
class Served:
    """What was measured of one server with some number of callers.

    Attributes:
        server: Its name.
        callers: How many.
        loads: One a round.
    """

    server: str
    callers: int
    loads: list[Load] = field(default_factory=list)

    @property
    def images_per_s(self) -> float:
        """Median over the rounds."""
        return float(np.median([load.throughput for load in self.loads] or [np.nan]))

    @property
    def latency(self) -> Latency:
        """Of all rounds together."""
        return Latency.of([s for load in self.loads for s in load.latencies_s])

    @property
    def codes(self) -> dict[str, int]:
        """How many calls ended with which status."""
        return codes_of(self.loads)


def bench_peers(options: PeersOptions, progress: Progress) -> tuple[Report, list[Served]]:
    """Measures every server in rounds, in an order by chance, each one alone on the machine.

    Raises:
        StartupError: A peer cannot be installed or started, answers otherwise than we do, or leaves
            calls unanswered.
    """
    machine = this_machine()
    artifact = Artifact.load(options.model)
    progress("installing the peers", 0.0)
    python = environment(options.environment)
    names = [OURS, *(peer.name for peer in PEERS)]
    found = [Served(server=name, callers=count) for count in options.callers for name in names]
    complete = True
    pictures = screenshots(options.pictures)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number, picture in enumerate(pictures):
                (Path(folder) / f"{number:05}.jpg").write_bytes(picture)
            wanted = _expected(artifact, pictures[0])
            for number in range(options.rounds):
                order = random.Random(number).sample(names, len(names))
                for place, name in enumerate(order):
                    done = (number * len(names) + place) / (options.rounds * len(names))
                    progress(f"round {number + 1} of {options.rounds}: {name}", done)
                    # Started for its turn only: an idle server of another kind may poll.
                    with _running(name, python, options.model) as (address, peer):
                        _check(peer, address, pictures[0], wanted)
                        _measure(
                            [one for one in found if one.server == name],
                            address,
                            (peer.body if peer else None) or "image",
                            pictures=Path(folder),
                            seconds=options.seconds,
                        )
    except KeyboardInterrupt:
        complete = False
    progress("done", 1.0)
    report = Report(
        command="mapseek bench peers",
        machine=machine,
        model_id=artifact.manifest.model_id,
        settings={
            "rounds": options.rounds,
            "seconds": options.seconds,
            "callers": options.callers,
            "peers": {peer.name: peer.module for peer in PEERS},
        },
        tables=[_table(found)],
        targets=_targets(found),
        data={
            "cases": [
                {
                    "server": one.server,
                    "callers": one.callers,
                    "images_per_s": one.images_per_s,
                    "rounds_images_per_s": [load.throughput for load in one.loads],
                    "latency": one.latency,
                }
                for one in found
            ]
        },
        complete=complete,
    )
    return report, found


@contextmanager
def _running(name: str, python: Path, model: Path) -> Iterator[tuple[str, Peer | None]]:
    with ExitStack() as stack:
        if name == OURS:
            yield stack.enter_context(run_server(model, {"provider": "cpu"})).address, None
            return
        peer = next(peer for peer in PEERS if peer.name == name)
        yield stack.enter_context(run_peer(peer, python, model)), peer


def _measure(
    cases: Sequence[Served], address: str, body: Body, *, pictures: Path, seconds: float
) -> None:
    with LoadProcess(address, pictures, body=body) as load:
        for one in cases:
            one.loads.append(load.run(ClosedLoop(callers=one.callers, seconds=seconds)))
            if one.codes.keys() != {"OK"}:  # what is answered beside them is answered faster
                raise StartupError(
                    f"{one.server} did not answer all of {one.callers} callers well: {one.codes}. "
                    "Its figures would say nothing."
                )


def _expected(artifact: Artifact, picture: bytes) -> NDArray[np.float32]:
    limits = ServerSettings.model_construct()
    decode = Preprocessor(
        artifact.manifest.preprocessing,
        max_image_bytes=limits.max_image_bytes,
        max_image_pixels=limits.max_image_pixels,
    )
    engine = load_image_engine(artifact, EngineOptions(provider="cpu"))
    wanted: NDArray[np.float32] = engine.embed([decode(picture)])[0]
    return wanted


def _check(peer: Peer | None, address: str, picture: bytes, wanted: NDArray[np.float32]) -> None:
    """Asks once: a server that answers something else is not to be compared."""
    embedding = asyncio.run(_ask(peer, address, picture))
    cosine = float(embedding @ wanted) if embedding.shape == wanted.shape else -1.0
    if cosine < _MIN_COSINE:
        name = peer.name if peer else OURS
        raise StartupError(f"{name} answers otherwise than the model does (cosine {cosine:.4f}).")


async def _ask(peer: Peer | None, address: str, picture: bytes) -> NDArray[np.float32]:
    if peer is not None and peer.body is not None:
        async with HttpChannel(address.removeprefix("http://")) as channel:
            body, ask = as_body(picture, peer.body), channel.unary_unary("")
            async with asyncio.timeout(_PATIENCE_S):
                # It listens before its workers have loaded the model.
                while True:
                    try:
                        return peer.embedding(await ask(body, timeout=_PATIENCE_S, metadata=()))
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.1)
    async with grpc.aio.insecure_channel(address) as channel:
        stub: embedding_pb2_grpc.EmbeddingServiceAsyncStub
        stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        answer = await stub.Embed(pb.EmbedRequest(image=picture), timeout=_PATIENCE_S)
    return np.array(answer.embedding.values, np.float32)


def _table(found: Sequence[Served]) -> Table:
    rows: list[Sequence[Cell]] = []
    for one in found:
        latency = one.latency
        rows.append(
            (
                one.callers,
                one.server,
                one.images_per_s,
                latency.p50_ms,
                latency.p99_ms,
            )
        )
    return Table(
        title="Closed loops on the same model, pictures and decoding",
        columns=("callers", "", "images/s", "p50 ms", "p99 ms"),
        rows=rows,
        notes=["medians over the rounds, in which each server runs alone"],
    )


def _targets(found: Sequence[Served]) -> list[Target]:
    """Ahead of each of them in each figure: the worst of the three ratios tells."""
    ours = {one.callers: one for one in found if one.server == OURS}
    targets = []
    for one in found:
        if one.server == OURS:
            continue
        us = ours[one.callers]
        ratios = {
            "images/s": us.images_per_s / one.images_per_s,
            "p50": one.latency.p50_ms / us.latency.p50_ms,
            "p99": one.latency.p99_ms / us.latency.p99_ms,
        }
        known = not any(np.isnan(ratio) for ratio in ratios.values())
        targets.append(
            Target(
                name=f"ahead of {one.server} with {one.callers} callers",
                met=min(ratios.values()) >= 1 if known else None,
                found=", ".join(f"{name} x {ratio:.2f}" for name, ratio in ratios.items()),
                ratio=min(ratios.values()) if known else None,
            )
        )
    return targets
