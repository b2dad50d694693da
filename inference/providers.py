"""Which onnxruntime provider runs the model, and with which options; no silent fallback."""

import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from inference.cores import usable_cores
from inference.errors import StartupError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

# Below this time of one item on one core, each core fares better with batches of its own: a run
# that is split over cores waits for its own threads at every layer. ViT-B/32 in fp32 takes about
# 100 ms: that would gain little there, and keep a caller waiting for a whole batch on one core.
_SMALL_MODEL_S = 0.06
_TIMED_RUNS = 3
# Batches buy little arithmetic on a CPU, but a small model feels what each run costs beside it: on
# each of two cores, decoding included, batches of 1, 2, 4, 8 and 16 go through at 137, 151, 154,
# 161 and 161 a second. A large model does not, and would keep a lone caller waiting.
_CPU_MAX_BATCH = 4
_CPU_MAX_BATCH_SMALL = 8
_GPU_MAX_BATCH = 32

_log = logging.getLogger("mapseek.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How to run the model.

    Attributes:
        provider: `cpu`, `cuda` and `tensorrt` must be there or loading fails; `auto` takes CUDA
            where it works and the CPU otherwise. TensorRT is never chosen by `auto`, because
            building its engines takes minutes.
        threads: Threads that the model uses on the CPU; 0 takes one per core.
        max_batch: Most items in one run; 0 chooses by the provider and the model.
        gpu_memory_limit_bytes: Most GPU memory for onnxruntime's arena; 0 sets no limit.
        tensorrt_cache: Folder for built TensorRT engines; None builds them at every start.
        cuda_graph: Replay each batch size as one captured CUDA graph.
    """

    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    threads: int = 0
    max_batch: int = 0
    gpu_memory_limit_bytes: int = 0
    tensorrt_cache: Path | None = None
    cuda_graph: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """What the providers must know of a tower.

    Attributes:
        path: The ONNX file.
        input_name: Its one input, [N, *item_shape].
        item_shape: Shape of one item.
        dtype: Type of its numbers.
        fp16: Whether the tower computes in half precision.
    """

    path: Path
    input_name: str
    item_shape: tuple[int, ...]
    dtype: Any
    fp16: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A provider with its options.

    Attributes:
        name: onnxruntime's name of it.
        options: What onnxruntime wants to be told; all values are strings there.
        max_batch: Most items in one run.
    """

    name: str
    options: dict[str, str] = field(default_factory=dict)
    max_batch: int

    @property
    def on_gpu(self) -> bool:
        """Whether inputs and outputs live on an NVIDIA GPU."""
        return self.name != CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A tower in memory.

    Attributes:
        session: The `onnxruntime.InferenceSession`.
        choice: The provider that it really uses.
        one_core: A session that runs on the thread that calls it, for a run on each core at once;
            None where one run takes the whole device.
        cores: How many such runs at once.
    """

    session: Any
    choice: Choice
    one_core: Any = None
    cores: int = 0


def open_tower(graph: Graph, options: EngineOptions) -> Opened:
    """Loads a tower with the provider that was asked for, or the best one for `auto`.

    Raises:
        StartupError: The provider is not there or does not work, or the graph cannot be loaded.
    """
    available = onnxruntime.get_available_providers()
    if options.provider == "auto":
        if CUDA in available:
            choice = _choose(CUDA, graph, options)
            try:
                return Opened(session=_open(graph, choice, options, threads=1), choice=choice)
            except StartupError as error:
                _log.warning("Falling back to the CPU, because CUDA does not work: %s", error)
        return _open_on_cpu(graph, options)
    name = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}[options.provider]
    if name not in available:
        raise StartupError(
            f"MAPSEEK_PROVIDER={options.provider} was asked for, but the installed onnxruntime has "
            f"no {name}. {_HOW_TO_GET[name]}"
        )
    if name == CPU:
        return _open_on_cpu(graph, options)
    choice = _choose(name, graph, options)
    return Opened(session=_open(graph, choice, options, threads=1), choice=choice)


def _open_on_cpu(graph: Graph, options: EngineOptions) -> Opened:
    """Runs the model to find out whether it is small: then each core runs batches of its own."""
    threads = options.threads or usable_cores()
    choice = _choose(CPU, graph, options)
    session = _open(graph, choice, options, threads=1)
    core_s = _time_on_a_core(session, graph)
    small = core_s < _SMALL_MODEL_S
    if not options.max_batch:
        choice = replace(choice, max_batch=_CPU_MAX_BATCH_SMALL if small else _CPU_MAX_BATCH)
    _log.info(
        "The model runs on the CPU, threads: %d, each with batches of its own: %s (%.0f ms an "
        "item).",
        threads,
        "yes" if small else "no",
        core_s * 1000,
    )
    one_core = session if small else None
    if threads > 1:
        del session  # a large one, before there is another
        session = _open(graph, choice, options, threads=threads)
    return Opened(session=session, choice=choice, one_core=one_core, cores=threads if small else 0)


def _time_on_a_core(session: Any, graph: Graph) -> float:
    """Seconds of a core that the cheapest run of one item takes, on a session of one thread.

    Whoever else uses the machine meanwhile does not count, nor how well a run would share itself
    among many cores. Infinite where it cannot be run like that.
    """
    item = np.zeros((1, *graph.item_shape), graph.dtype)
    cheapest_s = math.inf
    # What is wrong with the graph is told by what looks at it next, in a sentence.
    with suppress(Exception):
        for _ in range(_TIMED_RUNS):
            started = time.thread_time()
            session.run(None, {graph.input_name: item})
            cheapest_s = min(cheapest_s, time.thread_time() - started)
    return cheapest_s


_HOW_TO_GET = {
    CPU: "Install mapseek with the extra `cpu`.",
    CUDA: "Install mapseek with the extra `gpu` in place of `cpu`, on a machine with an NVIDIA "
    "driver, CUDA 12 and cuDNN 9, or use MAPSEEK_PROVIDER=auto.",
    TENSORRT: "Install mapseek with the extra `gpu` in place of `cpu`, and TensorRT 10, or use "
    "MAPSEEK_PROVIDER=cuda.",
}


def _choose(name: str, graph: Graph, options: EngineOptions) -> Choice:
    max_batch = options.max_batch or (_CPU_MAX_BATCH if name == CPU else _GPU_MAX_BATCH)
    build = {CPU: _cpu_options, CUDA: _cuda_options, TENSORRT: _tensorrt_options}[name]
    return Choice(name=name, options=build(graph, options, max_batch), max_batch=max_batch)


def _cpu_options(graph: Graph, options: EngineOptions, max_batch: int) -> dict[str, str]:
    del graph, options, max_batch
    return {}


def _cuda_options(graph: Graph, options: EngineOptions, max_batch: int) -> dict[str, str]:
    del graph, max_batch
    chosen = {
        "device_id": "0",
        # Otherwise the arena doubles at every growth; with few batch sizes, warmed up largest
        # first, it need not grow at all.
        "arena_extend_strategy": "kSameAsRequested",
        # A vision transformer has one convolution: an exhaustive search costs more memory and
        # start-up time than it can win back.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if options.gpu_memory_limit_bytes:
        chosen["gpu_mem_limit"] = str(options.gpu_memory_limit_bytes)
    if options.cuda_graph:
        chosen["enable_cuda_graph"] = "1"
    return chosen


def _tensorrt_options(graph: Graph, options: EngineOptions, max_batch: int) -> dict[str, str]:
    item = "x".join(str(side) for side in graph.item_shape)
    chosen = {
        "device_id": "0",
        # Only where the export was verified in half precision.
        "trt_fp16_enable": "1" if graph.fp16 else "0",
        # One engine for all batch sizes, tuned for the largest.
        "trt_profile_min_shapes": f"{graph.input_name}:1x{item}",
        "trt_profile_opt_shapes": f"{graph.input_name}:{max_batch}x{item}",
        "trt_profile_max_shapes": f"{graph.input_name}:{max_batch}x{item}",
    }
    if options.gpu_memory_limit_bytes:
        chosen["trt_max_workspace_size"] = str(options.gpu_memory_limit_bytes)
    if options.cuda_graph:
        chosen["trt_cuda_graph_enable"] = "1"
    if options.tensorrt_cache is not None:
        try:
            options.tensorrt_cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartupError(
                f"MAPSEEK_TENSORRT_CACHE={options.tensorrt_cache} cannot be made: {error}"
            ) from error
        chosen |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(options.tensorrt_cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(options.tensorrt_cache),
        }
    return chosen


def _providers(graph: Graph, choice: Choice, options: EngineOptions) -> Sequence[tuple[str, Any]]:
    if choice.name != TENSORRT:
        return [(choice.name, choice.options)]
    # What TensorRT cannot take, CUDA runs; graphs of the rest would be captured twice.
    without_graph = EngineOptions(gpu_memory_limit_bytes=options.gpu_memory_limit_bytes)
    rest = _cuda_options(graph, without_graph, choice.max_batch)
    return [(TENSORRT, choice.options), (CUDA, rest)]


def _open(graph: Graph, choice: Choice, options: EngineOptions, *, threads: int) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors; warnings tell of nodes that belong on the CPU
    settings.inter_op_num_threads = 1
    settings.intra_op_num_threads = threads
    if choice.on_gpu:
        if hasattr(onnxruntime, "preload_dlls"):
            # Finds CUDA and cuDNN where pip put them.
            onnxruntime.preload_dlls()
    else:
        # Threads that spin between runs take the cores away from decoding.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(
            graph.path,
            settings,
            providers=_providers(graph, choice, options),
            enable_fallback=0,  # otherwise a failing GPU run would be repeated on the CPU, slowly
        )
    except Exception as error:  # onnxruntime's errors have no common base class
        raise StartupError(
            f"onnxruntime cannot load {graph.path} with {choice.name}: {error}"
        ) from error
    used = session.get_providers()[0]
    if used != choice.name:
        raise StartupError(
            f"{choice.name} was asked for, but onnxruntime uses {used}: the driver or a library of "
            f"it is missing (its own message is above). {_HOW_TO_GET[choice.name]}"
        )
    return session
