"""The device's limit for matrices: large products, one after the other, and nothing else."""

import itertools
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from inference.providers import CPU, CUDA

_PRODUCTS = 8


def matrix_tflops(*, on_gpu: bool, side: int, seconds: float) -> float:
    """The fastest of many runs of eight chained products, in Tflop/s: fp16 on a GPU, else fp32.

    Args:
        on_gpu: Whether CUDA runs them.
        side: Of the square matrices.
        seconds: How long they are run.
    """
    kind = TensorProto.FLOAT16 if on_gpu else TensorProto.FLOAT
    names = ["a", *(f"product{number}" for number in range(_PRODUCTS))]
    nodes = [
        helper.make_node("MatMul", [before, "a"], [after])
        for before, after in itertools.pairwise(names)
    ]
    # Little comes out, so that nothing but the products takes time.
    nodes.append(helper.make_node("ReduceMax", [names[-1]], ["largest"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("a", kind, (side, side))],
        [helper.make_tensor_value_info("largest", kind, ())],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(model)
    session: Any = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=[CUDA if on_gpu else CPU]
    )
    # Of this size products neither vanish nor grow; zeros would let a card run faster than it does.
    matrix = np.random.default_rng(0).normal(scale=side**-0.5, size=(side, side))
    numbers = matrix.astype(np.float16 if on_gpu else np.float32)
    binding = session.io_binding()
    device = "cuda" if on_gpu else "cpu"
    binding.bind_ortvalue_input("a", onnxruntime.OrtValue.ortvalue_from_numpy(numbers, device, 0))
    binding.bind_output("largest", device)
    fastest_s = float("inf")
    session.run_with_iobinding(binding)
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end or fastest_s == float("inf"):
        session.run_with_iobinding(binding)
        fastest_s = min(fastest_s, time.perf_counter() - started)
    return 2 * _PRODUCTS * side**3 / fastest_s / 1e12
