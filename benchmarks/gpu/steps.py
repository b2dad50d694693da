"""The steps of the run, each in a process of its own: what fails or crashes ends nothing else.

`python -m benchmarks.gpu.steps OPTIONS.json NAME RESULT.json` runs one.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.engine import EngineBenchOptions, bench_engine
from benchmarks.gpu.matrix import matrix_tflops
from benchmarks.latency import Latency
from benchmarks.machine import Provider
from benchmarks.overhead.calls import Cost, measure
from benchmarks.overhead.kinds import Kind, kinds
from benchmarks.report import Report
from benchmarks.serve import ServeOptions, bench_serve
from benchmarks.server_process import run_server
from inference.artifact import IMAGE_TOWER, Artifact
from inference.cores import usable_cores
from inference.errors import StartupError

# TensorRT builds its engines at the first start.
_START_S = 900.0
# Limits of GPU memory, as multiples of the model's file: too little, tight, and enough.
_MEMORY = (0.5, 1.2, 1.6, 3.0)
_MATRIX_SIDE = {True: 8192, False: 512}
# Taken from a card at a time while a server runs on it.
_TAKEN_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """What every step is told.

    Attributes:
        model: The model folder.
        seconds: How long each measurement takes.
        rounds: How often what is measured in rounds is measured.
        batches: Batch sizes; the largest is the server's, too.
        cache: Folder for TensorRT's engines.
    """

    model: Path
    seconds: float
    rounds: int
    batches: tuple[int, ...]
    cache: Path

    @property
    def max_batch(self) -> int:
        """The largest batch."""
        return max(self.batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        name: What it is called, and its file.
        run: Does it, and returns what is worth knowing.
    """

    name: str
    run: Callable[[StepOptions], dict[str, Any]]


def steps(providers: tuple[Provider, ...]) -> list[Step]:
    """All steps, in their order."""
    on_gpu = providers != ("cpu",)
    found = [
        Step(name="machine", run=_machine),
        Step(name="matrix limit", run=lambda options: _matrix(options, on_gpu=on_gpu)),
    ]
    found += [
        _with(run, what, provider, graphs=graphs)
        for what, run in (("model", _model), ("server", _server))
        for provider in providers
        for graphs in ((False, True) if on_gpu else (False,))
    ]
    for provider in providers:
        found.append(_with(_serve, "serve", provider, graphs=False))
        found.append(_with(_memory, "memory", provider, graphs=False))
    return found


def _with(
    run: Callable[..., dict[str, Any]], what: str, provider: Provider, *, graphs: bool
) -> Step:
    name = f"{what} {provider}" + (" graphs" if graphs else "")
    return Step(name=name, run=lambda options: run(options, provider=provider, graphs=graphs))


def _machine(_: StepOptions) -> dict[str, Any]:
    asked = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm")
    program = shutil.which("nvidia-smi")
    cards = "there is no nvidia-smi here"
    if program is not None:
        query = [program, f"--query-gpu={','.join(asked)}", "--format=csv,noheader"]
        cards = subprocess.run(  # noqa: S603  NVIDIA's own program
            query, check=False, capture_output=True, text=True
        ).stdout.strip()
    return {
        "cards": cards,
        "onnxruntime": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
    }


def _matrix(options: StepOptions, *, on_gpu: bool) -> dict[str, Any]:
    side = _MATRIX_SIDE[on_gpu]
    tflops = matrix_tflops(on_gpu=on_gpu, side=side, seconds=options.seconds)
    return {"tflops": tflops, "side": side, "precision": "fp16" if on_gpu else "fp32"}


def _model(options: StepOptions, *, provider: Provider, graphs: bool) -> dict[str, Any]:
    report = bench_engine(
        EngineBenchOptions(
            models=[options.model],
            batches=options.batches,
            threads=(usable_cores(),) if provider == "cpu" else (1,),
            rounds=options.rounds,
            seconds=options.seconds,
            provider=provider,
            cuda_graph=graphs,
            tensorrt_cache=options.cache if provider == "tensorrt" else None,
        ),
        _quiet,
    )
    found = _plain(report)
    cases = found["cases"]
    best = max(cases, key=lambda case: float(case["images_per_s"]))
    single = min(cases, key=lambda case: int(case["batch"]))
    return {
        "images_per_s": best["images_per_s"],
        "batch": best["batch"],
        "one_p50_ms": single["latency"]["p50_ms"],
        "cases": cases,
    }


def _server(options: StepOptions, *, provider: Provider, graphs: bool) -> dict[str, Any]:
    """Raw pixels, which leaves decoding out: several images a message, and one caller."""
    manifest = Artifact.load(options.model).manifest
    offered = kinds(manifest, (1, 8, min(32, options.max_batch)))
    with _running(options, provider, cuda_graph=str(int(graphs))) as server:
        costs = {
            kind.name: (kind, measure(server.address, server.pid, kind, options.seconds))
            for kind in offered
            if not kind.encoded
        }
    return {
        "images_per_s": max(_images_per_s(*one) for one in costs.values()),
        "kinds": {name: _told(*one) for name, one in costs.items()},
    }


def _serve(options: StepOptions, *, provider: Provider, graphs: bool) -> dict[str, Any]:
    """JPEG screenshots, beside the limit without a server."""
    del graphs
    report, _ = bench_serve(
        ServeOptions(
            model=options.model,
            rounds=options.rounds,
            seconds=options.seconds,
            callers=(1, 8, 32),
            loads=(0.5, 2.0),
            provider=provider,
        ),
        _quiet,
    )
    return _plain(report)


def _memory(options: StepOptions, *, provider: Provider, graphs: bool) -> dict[str, Any]:
    """Too little memory: does the server say so at the start, or serve what fits?"""
    del graphs
    manifest = Artifact.load(options.model).manifest
    kind = next(kind for kind in kinds(manifest, (options.max_batch,)) if kind.streams)
    weights = (options.model / IMAGE_TOWER).stat().st_size
    # A CPU knows no limit: one shows that the step works.
    shares = _MEMORY if provider != "cpu" else _MEMORY[-1:]
    limits = {share: int(share * weights) for share in shares}
    outcomes = {
        f"{limit / 2**20:.0f} MiB, {share:g} x the model": _outcome(
            options, provider, kind, {"gpu_memory_limit_bytes": str(limit)}
        )
        for share, limit in limits.items()
    }
    if provider != "cpu":
        outcomes["the rest of the card taken while it serves"] = _outcome(
            options, provider, kind, {}, take=True
        )
    return {"outcomes": outcomes}


def _outcome(
    options: StepOptions,
    provider: Provider,
    kind: Kind,
    settings: Mapping[str, str],
    *,
    take: bool = False,
) -> str:
    try:
        with ExitStack() as stack:
            server = stack.enter_context(_running(options, provider, **settings))
            taken = _take_all() if take else []
            cost = measure(server.address, server.pid, kind, options.seconds)
            del taken
            return f"served {_images_per_s(kind, cost):.0f} images/s"
    except StartupError as error:
        return f"said: {str(error).splitlines()[-1]}"


def _take_all() -> list[Any]:
    """All the memory that a card still has."""
    taken: list[Any] = []
    try:
        while True:
            taken.append(
                onnxruntime.OrtValue.ortvalue_from_shape_and_type((_TAKEN_BYTES,), np.uint8, "cuda")
            )
    except Exception:  # noqa: BLE001  onnxruntime's errors have no common base class
        return taken


def _running(options: StepOptions, provider: Provider, **settings: str) -> Any:
    given = {"provider": str(provider), "max_batch": str(options.max_batch), **settings}
    if provider == "tensorrt":
        given["tensorrt_cache"] = str(options.cache)
    return run_server(options.model, given, start_s=_START_S)


def _images_per_s(kind: Kind, cost: Cost) -> float:
    return cost.calls * kind.images / cost.seconds


def _told(kind: Kind, cost: Cost) -> dict[str, float]:
    told = {
        "images_per_s": _images_per_s(kind, cost),
        "server_cpu_us_an_image": cost.process_s / max(1, cost.calls) / kind.images * 1e6,
    }
    if cost.alone_s:
        alone = Latency.of(cost.alone_s)
        told |= {"one_caller_p50_ms": alone.p50_ms, "one_caller_p99_ms": alone.p99_ms}
    return told


def _plain(report: Report) -> dict[str, Any]:
    return dict(json.loads(report.to_json())["data"])


def _quiet(what: str, done: float) -> None:
    del what, done


def main(options_file: str, name: str, result_file: str) -> None:
    """Runs one step and writes what came of it."""
    given = json.loads(Path(options_file).read_text())
    providers = tuple(given.pop("providers"))
    options = StepOptions(
        model=Path(given["model"]),
        seconds=given["seconds"],
        rounds=given["rounds"],
        batches=tuple(given["batches"]),
        cache=Path(given["cache"]),
    )
    (step,) = [one for one in steps(providers) if one.name == name]
    result = Path(result_file)
    unfinished = result.with_suffix(".partial")
    unfinished.write_text(json.dumps(step.run(options), indent=2) + "\n")
    unfinished.replace(result)


if __name__ == "__main__":
    main(*sys.argv[1:])
