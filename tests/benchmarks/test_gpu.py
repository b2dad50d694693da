"""The run for a GPU, rehearsed on the CPU with a tiny model."""

import json
from pathlib import Path

import onnxruntime
import pytest

from benchmarks.gpu import bench
from benchmarks.gpu.bench import GpuOptions, bench_gpu
from benchmarks.gpu.steps import steps
from inference.providers import CUDA


def test_a_rehearsal_leaves_a_report_and_keeps_what_is_done(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    (out / "serve-cpu.json").write_text('{"done": "in an earlier run"}')
    options = GpuOptions(
        model=model, providers=("cpu",), out=out, rounds=1, seconds=0.05, batches=(1, 4)
    )
    report = bench_gpu(options, lambda what, done: None)
    outcomes = report.data["steps"]
    assert outcomes.pop("serve cpu") == "done before"
    assert all(outcome.startswith("done in") for outcome in outcomes.values()), outcomes
    written = json.loads((out / "report.json").read_text())["data"]["results"]
    assert written["serve cpu"] == {"done": "in an earlier run"}
    assert written["matrix limit"]["tflops"] > 0
    assert {case["batch"] for case in written["model cpu"]["cases"]} == {1, 4}
    assert len(written["server cpu"]["kinds"]) == 6
    assert all(one["images_per_s"] > 0 for one in written["server cpu"]["kinds"].values())
    assert all(one.startswith("served") for one in written["memory cpu"]["outcomes"].values())
    assert report.targets[0].met is not None
    assert "says nothing about any GPU" in (out / "report.txt").read_text()


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="CUDA is here")
def test_a_step_that_fails_is_told_and_leaves_no_result(model: Path, tmp_path: Path) -> None:
    (step,) = [one for one in steps(("cuda", "tensorrt")) if one.name == "model cuda graphs"]
    told = tmp_path / "options.json"
    options = {"model": str(model), "providers": ["cuda", "tensorrt"], "seconds": 0.1}
    told.write_text(json.dumps({**options, "rounds": 1, "batches": [1], "cache": ""}))
    outcome = bench._run(step, told, tmp_path)
    assert outcome.startswith("failed: ")
    assert CUDA in outcome
    assert not (tmp_path / "model-cuda-graphs.json").exists()
    assert CUDA in (tmp_path / "model-cuda-graphs.log").read_text()


def test_each_provider_is_measured_with_and_without_graphs() -> None:
    names = [step.name for step in steps(("cuda", "tensorrt"))]
    for what in ("model", "server"):
        for how in ("cuda", "cuda graphs", "tensorrt", "tensorrt graphs"):
            assert f"{what} {how}" in names
    assert {"serve cuda", "memory cuda", "serve tensorrt", "memory tensorrt"} < set(names)
