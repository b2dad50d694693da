"""`mapseek bench overhead`: the server with a model that costs nothing, beside an empty server.

What is left is the price of a call: gRPC for Python, which an empty server pays as well, and our
own part. It also tells how many images a second one event loop lets through, and which GPU that
feeds.
"""

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from benchmarks.latency import Latency
from benchmarks.machine import this_machine
from benchmarks.overhead.calls import IN_FLIGHT, MOST_CALLERS, Cost, measure
from benchmarks.overhead.kinds import Kind, kinds, small_jpeg
from benchmarks.overhead.tiny import DIMENSIONS, SIDE, save_tiny
from benchmarks.report import Cell, Progress, Report, Table
from benchmarks.server_process import free_port, run_server
from inference.artifact import Artifact
from inference.errors import StartupError
from inference.preprocess import Preprocessor

OURS, EMPTY = "mapseek", "empty"

# One run of ViT-B/32 on one image of 224 x 224: 4.4 billion multiply-adds.
_TFLOP_AN_IMAGE = 8.8e-3
# What is assumed of a card: so much of its dense fp16 tensor limit, in Tflop/s as NVIDIA states it.
UTILISATION = 0.4
CARDS = {"T4": 65.0, "A10": 125.0, "A100": 312.0, "H100": 989.0}

_START_S = 30.0
_DECODED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadOptions:
    """What to measure.

    Attributes:
        rounds: How often everything is measured.
        seconds: How long each measurement of a round takes.
        images: Images a message.
        side: Of the pixels that are sent.
    """

    rounds: int = 5
    seconds: float = 1.5
    images: Sequence[int] = (1, 8, 32)
    side: int = SIDE


@dataclass(slots=True, kw_only=True)
class Row:
    """What was measured of one kind of call.

    Attributes:
        kind: Which.
        decode_us: CPU time of decoding its images, in microseconds.
        costs: One of each round, by server.
    """

    kind: Kind
    decode_us: float
    costs: dict[str, list[Cost]] = field(default_factory=lambda: {OURS: [], EMPTY: []})

    def process_us(self, server: str) -> float:
        """CPU time of the server's process for a call, in microseconds."""
        return self._median(server, lambda one: one.process_s / one.calls * 1e6)

    def loop_us(self, server: str) -> float:
        """CPU time of its event loop's thread for a call, in microseconds."""
        return self._median(server, lambda one: one.loop_s / one.calls * 1e6)

    def alone_us(self, server: str) -> float:
        """Median latency of a single caller, in microseconds; NaN for streams."""
        return Latency.of([s for one in self.costs[server] for s in one.alone_s]).p50_ms * 1000

    def images_per_s(self, server: str) -> float:
        """Throughput with the load beside it on the same machine."""
        return self._median(server, lambda one: one.calls / one.seconds * self.kind.images)

    @property
    def own_us(self) -> float:
        """Our part of a call's CPU time, without the decoding, in microseconds."""
        return self.process_us(OURS) - self.process_us(EMPTY) - self.decode_us

    @property
    def wall_images_per_s(self) -> float:
        """Images a second that keep the event loop's thread busy all the time."""
        loop_us = self.loop_us(OURS)
        return self.kind.images / loop_us * 1e6 if loop_us else float("nan")

    @property
    def fed(self) -> str:
        """The largest card that one event loop keeps busy."""
        fed = [name for name, most in cards().items() if most <= self.wall_images_per_s]
        return fed[-1] if fed else "none"

    def _median(self, server: str, value: Callable[[Cost], float]) -> float:
        return _median(value(one) for one in self.costs[server] if one.calls)


def cards() -> dict[str, float]:
    """Images a second that each card is assumed to embed with ViT-B/32 in fp16, slowest first."""
    return {name: UTILISATION * tflops / _TFLOP_AN_IMAGE for name, tflops in CARDS.items()}


def bench_overhead(options: OverheadOptions, progress: Progress) -> tuple[Report, list[Row]]:
    """Measures every kind of call on both servers, in rounds, in an order by chance.

    Raises:
        StartupError: A server does not start, or answers otherwise than it should.
    """
    machine = this_machine()
    complete = True
    with tempfile.TemporaryDirectory() as folder:
        artifact = save_tiny(Path(folder), side=options.side)
        decode_us = _decode_us(artifact)
        rows = [
            Row(kind=kind, decode_us=decode_us * kind.images if kind.encoded else 0.0)
            for kind in kinds(artifact.manifest, options.images)
        ]
        # One thread runs the model, as with a GPU, and batches are as large as there.
        settings = {"provider": "cpu", "engine_threads": "1", "max_batch": "32"}
        with run_server(Path(folder), settings) as ours, _empty_server() as empty:
            servers = {OURS: (ours.address, ours.pid), EMPTY: empty}
            steps = [(row, server) for row in rows for server in servers]
            try:
                for number in range(options.rounds):
                    order = random.Random(number).sample(steps, len(steps))
                    for place, (row, server) in enumerate(order):
                        done = (number + place / len(steps)) / options.rounds
                        what = f"round {number + 1} of {options.rounds}: {row.kind.name}, {server}"
                        progress(what, done)
                        cost = measure(*servers[server], row.kind, options.seconds)
                        row.costs[server].append(cost)
            except KeyboardInterrupt:
                complete = False
    progress("done", 1.0)
    report = Report(
        command="mapseek bench overhead",
        machine=machine,
        model_id=artifact.manifest.model_id,
        settings={
            **{name: getattr(options, name) for name in OverheadOptions.__dataclass_fields__},
            "dimensions": DIMENSIONS,
            "callers": MOST_CALLERS,
        },
        tables=[_costs(rows), _walls(rows)],
        data={"kinds": [_data(row) for row in rows], "cards_images_per_s": cards()},
        complete=complete,
    )
    return report, rows


def _costs(rows: Sequence[Row]) -> Table:
    def cells(row: Row) -> Sequence[Cell]:
        return (
            row.kind.name,
            row.process_us(EMPTY),
            row.process_us(OURS),
            row.decode_us or None,
            row.own_us,
            row.own_us / row.kind.images,
            row.alone_us(EMPTY),
            row.alone_us(OURS),
        )

    return Table(
        title="CPU time and latency of a call (of a message, in a stream), in microseconds",
        columns=(
            "",
            "empty server",
            "mapseek",
            "decoding",
            "our part",
            "an image",
            "one caller, empty, p50",
            "mapseek, p50",
        ),
        rows=[cells(row) for row in rows],
        notes=(
            f"CPU of the process; at most {MOST_CALLERS} callers and {IN_FLIGHT} images at a time",
            "our part: without the empty server's, and without decoding; the model's run is in it",
        ),
    )


def _walls(rows: Sequence[Row]) -> Table:
    told = ", ".join(f"{name} {rate:,.0f}" for name, rate in cards().items())
    return Table(
        title="Where the event loop is the wall",
        columns=(
            "",
            "its thread, us a call",
            "images/s at the wall",
            "images/s measured",
            "feeds up to",
        ),
        rows=[
            (
                row.kind.name,
                row.loop_us(OURS),
                row.wall_images_per_s,
                row.images_per_s(OURS),
                row.fed,
            )
            for row in rows
        ],
        notes=(
            "measured: with the load on the same cores",
            f"ViT-B/32 in fp16 at {UTILISATION:.0%} of a card's dense limit, images/s: {told}",
        ),
    )


def _data(row: Row) -> dict[str, object]:
    def of(server: str) -> dict[str, float]:
        return {
            "process_us": row.process_us(server),
            "loop_us": row.loop_us(server),
            "one_caller_p50_us": row.alone_us(server),
            "images_per_s": row.images_per_s(server),
        }

    return {
        "kind": row.kind.name,
        "images": row.kind.images,
        "message_bytes": len(row.kind.message),
        "decode_us": row.decode_us,
        OURS: of(OURS),
        EMPTY: of(EMPTY),
        "own_us": row.own_us,
        "wall_images_per_s": row.wall_images_per_s,
        "feeds": row.fed,
    }


@contextmanager
def _empty_server() -> Iterator[tuple[str, int]]:
    """An empty server's address and process id, for the length of the block."""
    port = free_port()
    process = subprocess.Popen(  # noqa: S603  our own program
        [sys.executable, "-m", "benchmarks.overhead.empty_server", str(port)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address) as channel:
            try:
                grpc.channel_ready_future(channel).result(_START_S)
            except grpc.FutureTimeoutError:
                raise StartupError("The empty server does not answer.") from None
        yield address, process.pid
    finally:
        process.kill()
        process.wait()


def _decode_us(artifact: Artifact) -> float:
    """CPU time of decoding one of the JPEGs, the median of many, in microseconds."""
    decode = Preprocessor(
        artifact.manifest.preprocessing, max_image_bytes=2**20, max_image_pixels=2**20
    )
    picture = small_jpeg()

    def once() -> float:
        started = time.thread_time()
        decode(picture)
        return time.thread_time() - started

    return _median(once() for _ in range(_DECODED)) * 1e6


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else float("nan")
