"""What a call costs: the tiny model is right, both servers are asked, and the figures add up."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.overhead.bench import EMPTY, OURS, Row
from benchmarks.overhead.calls import Cost
from benchmarks.overhead.kinds import Kind
from benchmarks.overhead.tiny import save_tiny
from inference.engine import EngineOptions, load_image_engine


def test_the_tiny_model_tells_pictures_apart(tmp_path: Path) -> None:
    artifact = save_tiny(tmp_path, side=16, dimensions=8)
    engine = load_image_engine(artifact, EngineOptions(provider="cpu", threads=1))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    one, other = engine.embed(pixels)
    assert np.linalg.norm([one, other], axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert one @ other < 0.99


def test_overhead(tmp_path: Path) -> None:
    out, plot = tmp_path / "overhead.json", tmp_path / "overhead.svg"
    what = ["overhead", "--rounds", "1", "--seconds", "0.05", "--images", "3", "--side", "32"]
    done = CliRunner().invoke(app, [*what, "--json", str(out), "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    assert "<svg" in plot.read_text()
    found = json.loads(out.read_text())["data"]["kinds"]
    assert [(kind["kind"].partition(",")[0], kind["images"]) for kind in found] == [
        ("Embed", 1),
        ("ModelInfer", 3),
        ("ModelStreamInfer", 3),
        ("EmbedStream", 3),
    ]
    for kind in found:
        assert kind[OURS]["images_per_s"] > 0
        assert kind[EMPTY]["images_per_s"] > 0
        streams = "Stream" in kind["kind"]
        assert (kind[OURS]["one_caller_p50_us"] is None) is streams
    assert [kind["decode_us"] > 0 for kind in found] == [True, False, False, True]


def test_our_part_is_what_an_empty_server_does_not_need() -> None:
    kind = Kind(
        name="x", method="", message=b"", images=4, answer_bytes=0, embedded=len, streams=True
    )
    row = Row(kind=kind, decode_us=50.0)
    row.costs[OURS] = [Cost(seconds=2.0, calls=1000, process_s=1.0, loop_s=0.5)]
    row.costs[EMPTY] = [Cost(seconds=1.0, calls=1000, process_s=0.2, loop_s=0.1)]
    assert row.own_us == pytest.approx(1000 - 200 - 50)
    assert row.images_per_s(OURS) == 2000
    assert row.wall_images_per_s == pytest.approx(8000)  # 4 images in 500 us
    assert row.fed == "A10"
