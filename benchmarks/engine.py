"""`mapseek bench engine`: the model alone, over batch sizes, thread counts and model folders."""

import itertools
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency import Latency
from benchmarks.machine import Provider, this_machine
from benchmarks.report import Progress, Report, Table
from inference.artifact import Artifact
from inference.cores import usable_cores
from inference.engine import Engine, EngineOptions, load_image_engine


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBenchOptions:
    """What to measure.

    Attributes:
        models: Model folders; several compare precisions.
        batches: Batch sizes.
        threads: Threads of one run; empty takes one, half and all of the cores.
        rounds: How often every combination is measured.
        seconds: How long each measurement of a round takes.
        provider: The onnxruntime provider.
        cuda_graph: Whether runs are replayed as captured CUDA graphs.
        tensorrt_cache: Folder for built TensorRT engines.
    """

    models: Sequence[Path]
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32)
    threads: Sequence[int] = ()
    rounds: int = 3
    seconds: float = 0.7
    provider: Provider = "auto"
    cuda_graph: bool = False
    tensorrt_cache: Path | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Case:
    """One combination and its measurements.

    Attributes:
        model_id: Which model.
        precision: Its arithmetic.
        threads: Threads of one run.
        runs: How many runs go on at once.
        batch: Pictures in one run.
        engine: The model.
        image_size: Side of its pictures, in pixels.
        runs_s: Seconds of every run so far.
    """

    model_id: str
    precision: str
    threads: int
    runs: int
    batch: int
    engine: Engine
    image_size: int
    runs_s: list[float] = field(default_factory=list)

    def measure(self, seconds: float) -> None:
        """Runs the batch again and again for a while; the first run only wakes the threads."""
        shape = (self.batch, self.image_size, self.image_size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        cores = self.engine.cores
        embed: Callable[[Any], object] = self.engine.embed
        if cores is not None and self.runs > 1:
            embed = cores.embed

        def repeat(_: int) -> None:
            embed(pixels)
            end = time.perf_counter() + seconds
            while (started := time.perf_counter()) < end:
                embed(pixels)
                self.runs_s.append(time.perf_counter() - started)

        with ThreadPoolExecutor(self.runs) as pool:
            list(pool.map(repeat, range(self.runs)))

    @property
    def images_per_s(self) -> float:
        """Throughput over all runs."""
        if not self.runs_s:
            return float("nan")
        return self.runs * self.batch * len(self.runs_s) / sum(self.runs_s)


def bench_engine(options: EngineBenchOptions, progress: Progress) -> Report:
    """Measures every combination in rounds, each in an order by chance.

    Raises:
        StartupError: A model cannot be loaded.
    """
    machine = this_machine()
    complete = True
    cases: list[Case] = []
    try:
        cases += _load(options, progress)
        _measure(cases, options, progress)
    except KeyboardInterrupt:
        complete = False
    provider = cases[0].engine.provider if cases else ""
    return Report(
        command="mapseek bench engine",
        machine=machine,
        model_id=", ".join(sorted({case.model_id for case in cases})),
        settings={
            "models": options.models,
            "batches": options.batches,
            "threads": sorted({case.threads for case in cases}),
            "rounds": options.rounds,
            "seconds": options.seconds,
            "provider": provider,
            "cuda_graph": options.cuda_graph,
        },
        tables=[_table(cases, provider)],
        data={
            "cases": [
                {
                    "model_id": case.model_id,
                    "precision": case.precision,
                    "threads": case.threads,
                    "runs": case.runs,
                    "batch": case.batch,
                    "latency": Latency.of(case.runs_s),
                    "images_per_s": case.images_per_s,
                }
                for case in cases
            ]
        },
        complete=complete,
    )


def _load(options: EngineBenchOptions, progress: Progress) -> list[Case]:
    cores = usable_cores()
    threads = sorted(set(options.threads or (1, max(1, cores // 2), cores)))
    cases = []
    for folder, count in itertools.product(options.models, threads):
        artifact = Artifact.load(folder)
        progress(f"loading {artifact.manifest.model_id} for {count} threads", 0.0)
        engine = load_image_engine(
            artifact,
            EngineOptions(
                provider=options.provider,
                threads=count,
                max_batch=max(options.batches),
                cuda_graph=options.cuda_graph,
                tensorrt_cache=options.tensorrt_cache,
            ),
        )
        engine.warm_up()
        ways = [(count, 1)]
        if engine.cores is not None and engine.cores.count > 1:
            ways.append((1, engine.cores.count))
        cases += [
            Case(
                model_id=artifact.manifest.model_id,
                precision=artifact.manifest.precision,
                threads=threads_of_a_run,
                runs=runs,
                batch=batch,
                engine=engine,
                image_size=artifact.manifest.preprocessing.image_size,
            )
            for threads_of_a_run, runs in ways
            for batch in options.batches
        ]
    return cases


def _measure(cases: Sequence[Case], options: EngineBenchOptions, progress: Progress) -> None:
    for number in range(options.rounds):
        order = random.Random(number).sample(cases, len(cases))
        for position, case in enumerate(order):
            progress(
                f"round {number + 1} of {options.rounds}: {case.precision}, "
                f"{_threads(case)} threads, batch {case.batch}",
                (number + position / len(order)) / options.rounds,
            )
            case.measure(options.seconds)
    progress("done", 1.0)


def _table(cases: Sequence[Case], provider: str) -> Table:
    several = len({case.model_id for case in cases}) > 1
    rows = []
    smallest = {
        (case.model_id, case.threads, case.runs): case
        for case in sorted(cases, key=lambda case: -case.batch)
    }
    for case in cases:
        latency = Latency.of(case.runs_s)
        name = f"{case.model_id} " if several else ""
        base = smallest[case.model_id, case.threads, case.runs]
        rows.append(
            (
                f"{name}{case.precision}",
                _threads(case),
                case.batch,
                case.images_per_s,
                case.images_per_s / base.images_per_s,
                latency.p50_ms,
                latency.p99_ms,
                latency.p50_ms / case.batch,
            )
        )
    best = max(
        (case for case in cases if case.runs_s), key=lambda case: case.images_per_s, default=None
    )
    smallest_batch = min((case.batch for case in cases), default=1)
    return Table(
        title=f"The model alone on {provider}",
        columns=(
            "",
            "threads",
            "batch",
            "images/s",
            f"x batch {smallest_batch}",
            "run p50 ms",
            "run p99 ms",
            "p50 ms/image",
        ),
        rows=rows,
        notes=[
            f"most images/s: {best.precision}, {_threads(best)} threads, batches of {best.batch}"
        ]
        if best
        else [],
    )


def _threads(case: Case) -> str:
    return str(case.threads) if case.runs == 1 else f"{case.runs} x {case.threads}"
