"""One ONNX graph and how a batch goes through it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from inference import heap
from inference.errors import EngineMemoryError, InferenceError, StartupError
from inference.providers import TENSORRT, Opened

Embeddings = NDArray[np.float32]
Number = TypeVar("Number", bound=np.integer[Any])

# fp16 towers normalise in half precision at worst.
_UNIT_TOLERANCE = 5e-3

# How CUDA, cuBLAS, cuDNN, TensorRT and the arena tell that memory ran out.
_OUT_OF_MEMORY = (
    "out of memory",
    "failed to allocate memory",
    "available memory of",  # "... is smaller than requested bytes of ..."
    "cuda_error_out_of_memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "bad_alloc",
    "bad allocation",
)


@dataclass(frozen=True, slots=True)
class Cores:
    """A model of which each core can run a batch of its own.

    Attributes:
        count: How many cores.
        embed: Like `Tower.embed`, on the core of the thread that calls it; for as many threads at
            once as there are cores.
    """

    count: int
    embed: Callable[[Any], Embeddings]


def bucket_sizes(max_batch: int) -> tuple[int, ...]:
    """The batch sizes that run on a GPU, in ascending order: powers of two, and `max_batch`."""
    powers = (1 << power for power in range(max_batch.bit_length()))
    return tuple(sorted({*(size for size in powers if size < max_batch), max_batch}))


class Tower(Generic[Number]):
    """A graph with one input [N, ...] and one output [N, D]; runs on the thread that calls it.

    `embed` is not for several threads at once: it takes the whole device.

    Args:
        opened: The graph in memory.
        input_name: Name of the input.
        item_shape: Shape of one item.
        dtype: Type of the input.
        dimensions: Length D of the embeddings, as the manifest promises it.
        cuda_graph: Whether runs are captured as CUDA graphs.
        device: Where bound buffers lie on a GPU provider.

    Raises:
        StartupError: The graph's input or output is not what the manifest promises.
    """

    def __init__(
        self,
        opened: Opened,
        *,
        input_name: str,
        item_shape: tuple[int, ...],
        dtype: type[Number],
        dimensions: int,
        cuda_graph: bool = False,
        device: str = "cuda",
    ) -> None:
        session, choice = opened.session, opened.choice
        self.provider = choice.name
        self.max_batch = choice.max_batch
        self._item_shape = item_shape
        self._dtype = dtype
        self._dimensions = dimensions
        _check_signature(session, input_name, item_shape, dtype, dimensions)
        self.cores: Cores | None = None
        self._run: _Run
        self._core_run: _Run | None = None
        self._on_gpu = choice.on_gpu
        if choice.on_gpu:
            # TensorRT captures by itself; the ids of captured graphs are the CUDA provider's.
            graph_ids = cuda_graph and choice.name != TENSORRT
            self._run = _BoundRuns(
                session,
                bucket_sizes(choice.max_batch),
                item_shape=item_shape,
                dtype=dtype,
                dimensions=dimensions,
                device=device,
                graph_ids=graph_ids,
            )
        else:
            self._run = _HostRun(session, self.max_batch, item_shape=item_shape, dtype=dtype)
        if opened.one_core is not None:
            self._core_run = _HostRun(
                opened.one_core, self.max_batch, item_shape=item_shape, dtype=dtype
            )
            self.cores = Cores(opened.cores, self._embed_on_a_core)

    def embed(self, items: Sequence[NDArray[Number]] | NDArray[Number]) -> Embeddings:
        """Runs a batch of 1 to `max_batch` items; returns float32 [N, D].

        Raises:
            EngineMemoryError: The batch did not fit; a smaller one may.
            InferenceError: The model failed.
        """
        return self._embed(self._run, items)

    def _embed_on_a_core(self, items: Sequence[NDArray[Number]] | NDArray[Number]) -> Embeddings:
        return self._embed(self._core_run or self._run, items)

    def _embed(self, run: "_Run", items: Sequence[NDArray[Number]] | NDArray[Number]) -> Embeddings:
        if not 1 <= len(items) <= self.max_batch:
            raise InferenceError(
                f"A batch of {len(items)} items was given; 1 to {self.max_batch} can be run."
            )
        try:
            return run(items)
        except Exception as error:  # onnxruntime's errors have no common base class
            if isinstance(error, MemoryError) or is_out_of_memory(str(error)):
                raise EngineMemoryError(
                    f"The engine has no memory for a batch of {len(items)}: send it again."
                ) from error
            raise InferenceError("The model failed on this batch.") from error

    def warm_up(self) -> None:
        """Runs every batch size once, largest first, and checks what comes out.

        Largest first, so that memory is taken once and then reused; on a CPU, in large pages.

        Raises:
            StartupError: The output is not what the manifest promises, or a run fails.
        """
        for run in (self._run, self._core_run):
            if run is not None:
                for size in reversed(run.sizes):
                    self._try(run, size)
        if not self._on_gpu:
            heap.use_large_pages()

    def _try(self, run: "_Run", size: int) -> None:
        # Neither constant nor random: every start sees the same values.
        flat = np.arange(size * int(np.prod(self._item_shape))) % 251
        items = flat.astype(self._dtype).reshape(size, *self._item_shape)
        try:
            embeddings = self._embed(run, items)
        except InferenceError as error:
            raise StartupError(
                f"The model cannot run a batch of {size} on {self.provider}: "
                f"{error.__cause__ or error}. A smaller MAPSEEK_MAX_BATCH may help."
            ) from error
        self._check_output(embeddings, size)

    def _check_output(self, embeddings: Embeddings, size: int) -> None:
        if embeddings.shape != (size, self._dimensions):
            raise StartupError(
                f"The model returned shape {embeddings.shape} for {size} items; its manifest "
                f"promises {self._dimensions} dimensions. Export it again."
            )
        lengths = np.linalg.norm(embeddings, axis=1)
        if not np.allclose(lengths, 1.0, atol=_UNIT_TOLERANCE):
            raise StartupError(
                "The model returned embeddings that are not of unit length (lengths "
                f"{lengths.min():.4f} to {lengths.max():.4f}). Export it again."
            )


def is_out_of_memory(message: str) -> bool:
    """Whether an onnxruntime error tells that memory ran out, on the device or on the host."""
    message = message.lower()
    return any(sign in message for sign in _OUT_OF_MEMORY)


class _Run(Protocol):
    """One way of getting a batch through a session.

    Attributes:
        sizes: The batch sizes worth warming up, in ascending order.
    """

    sizes: tuple[int, ...]

    def __call__(self, items: Sequence[NDArray[Any]] | NDArray[Any]) -> Embeddings: ...


class _HostRun:
    """On the CPU: any batch size, inputs collected in a buffer that each thread reuses."""

    def __init__(
        self, session: Any, max_batch: int, *, item_shape: tuple[int, ...], dtype: type
    ) -> None:
        self.sizes = bucket_sizes(max_batch)
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name
        self._shape = max_batch, *item_shape
        self._dtype = dtype
        self._buffers = threading.local()

    def __call__(self, items: Sequence[NDArray[Any]] | NDArray[Any]) -> Embeddings:
        batch = self._buffer()[: len(items)]
        for row, item in zip(batch, items, strict=True):
            np.copyto(row, item, casting="no")
        (embeddings,) = self._session.run([self._output], {self._input: batch})
        return np.asarray(embeddings, np.float32)

    def _buffer(self) -> NDArray[Any]:
        buffer: NDArray[Any] | None = getattr(self._buffers, "batch", None)
        if buffer is None:
            buffer = self._buffers.batch = np.empty(self._shape, self._dtype)
        return buffer


@dataclass(frozen=True, slots=True)
class _Bucket:
    staging: NDArray[Any]
    source: Any
    result: Any
    binding: Any
    run_options: Any


class _BoundRuns:
    """On a GPU: few batch sizes, each with buffers of its own that are bound once.

    A batch is filled up to the next size; the rows that fill it up are computed and dropped.
    """

    def __init__(
        self,
        session: Any,
        sizes: tuple[int, ...],
        *,
        item_shape: tuple[int, ...],
        dtype: type,
        dimensions: int,
        device: str,
        graph_ids: bool,
    ) -> None:
        self.sizes = sizes
        self._session = session
        self._buckets = {
            size: self._bind(
                size,
                item_shape=item_shape,
                dtype=dtype,
                dimensions=dimensions,
                device=device,
                # Ids of captured graphs; by default all sizes would share one.
                graph_id=number if graph_ids else None,
            )
            for number, size in enumerate(sizes)
        }

    def __call__(self, items: Sequence[NDArray[Any]] | NDArray[Any]) -> Embeddings:
        size = next(size for size in self.sizes if size >= len(items))
        bucket = self._buckets[size]
        for row, item in zip(bucket.staging, items, strict=False):  # what fills up is left as it is
            np.copyto(row, item, casting="no")
        bucket.source.update_inplace(bucket.staging)
        self._session.run_with_iobinding(bucket.binding, bucket.run_options)
        return np.array(bucket.result.numpy()[: len(items)], np.float32)

    def _bind(
        self,
        size: int,
        *,
        item_shape: tuple[int, ...],
        dtype: type,
        dimensions: int,
        device: str,
        graph_id: int | None,
    ) -> _Bucket:
        staging: NDArray[Any] = np.zeros((size, *item_shape), dtype)
        source = onnxruntime.OrtValue.ortvalue_from_numpy(staging, device, 0)
        result = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            (size, dimensions), np.float32, device, 0
        )
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._session.get_inputs()[0].name, source)
        binding.bind_ortvalue_output(self._session.get_outputs()[0].name, result)
        run_options = onnxruntime.RunOptions()
        if graph_id is not None:
            run_options.add_run_config_entry("gpu_graph_id", str(graph_id))
        return _Bucket(staging, source, result, binding, run_options)


def _check_signature(
    session: Any, input_name: str, item_shape: tuple[int, ...], dtype: type, dimensions: int
) -> None:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    sides = ", ".join(str(side) for side in item_shape)
    wanted = f"one input {input_name} tensor({np.dtype(dtype).name}) [N, {sides}]"
    if len(inputs) != 1 or not (
        inputs[0].name == input_name
        and inputs[0].type == f"tensor({np.dtype(dtype).name})"
        and _matches(inputs[0].shape, item_shape)
    ):
        found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise StartupError(
            f"The model's graph must have {wanted}, but it has {found}. Export it again."
        )
    if outputs[0].type != "tensor(float)" or not _matches(outputs[0].shape, (dimensions,)):
        raise StartupError(
            f"The model's graph must return float32 [N, {dimensions}], as its manifest promises, "
            f"but it returns {outputs[0].type} {outputs[0].shape}. Export it again."
        )


def _matches(shape: Sequence[object], item_shape: tuple[int, ...]) -> bool:
    """Whether a graph's shape is [N, *item_shape], N free and other sides free or equal."""
    if len(shape) != 1 + len(item_shape) or isinstance(shape[0], int):
        return False
    return all(
        found == wanted or not isinstance(found, int)
        for found, wanted in zip(shape[1:], item_shape, strict=True)
    )
