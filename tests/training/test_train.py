import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModelWithProjection,
)

from exporter.training import losses, train, validate
from exporter.training.config import (
    DataSettings,
    ModelSettings,
    OptimiserSettings,
    ScheduleSettings,
    Settings,
)
from exporter.training.train import Inputs, Trainer

pytestmark = pytest.mark.exporter

TINY = Settings(
    seed=1,
    model=ModelSettings(
        image_size=32, patch_size=8, hidden_size=32, layers=1, heads=2, mlp_size=64, dimensions=32
    ),
    data=DataSettings(window=16, refresh=4, workers=0),
    optimiser=OptimiserSettings(batch=16, learning_rate=3e-3, bf16=False),
    schedule=ScheduleSettings(steps=40, log_every=5, hardest=0.3),
)
TINY_TOML = """
threads = 1
[model]
image_size = 32
patch_size = 8
hidden_size = 32
layers = 1
heads = 2
mlp_size = 64
dimensions = 32
[data]
window = 16
refresh = 4
workers = 0
[optimiser]
batch = 16
bf16 = false
[schedule]
steps = 100000
log_every = 1
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Tiny tensors on many threads mostly wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trainer(folder: Path, settings: Settings = TINY) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(settings, Inputs(folder), torch.device("cpu"))


def test_the_loss_falls(tmp_path: Path) -> None:
    easy = replace(TINY.schedule, mildest=0.0, hardest=0.0)
    same = replace(TINY.data, refresh=2)
    settings = replace(TINY, schedule=easy, data=same)
    trainer(tmp_path, settings).run()

    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    totals = [record["losses"]["total"] for record in curve]
    assert len(totals) == 8
    assert np.mean(totals[-2:]) < 0.93 * np.mean(totals[:2])
    assert curve[-1]["fraction"] == 1.0


def test_a_resumed_run_takes_the_steps_that_it_would_have_taken(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").run(steps=6)
    trainer(tmp_path / "parts").run(steps=3)
    trainer(tmp_path / "parts").run(steps=3)

    whole, parts = (torch.load(tmp_path / name / "state.pt") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 6
    for part in ("network", "average"):
        assert whole[part].keys() == parts[part].keys()
        assert all(torch.equal(whole[part][name], parts[part][name]) for name in whole[part])


def test_a_run_of_another_model_is_not_resumed(tmp_path: Path) -> None:
    trainer(tmp_path).run(steps=1)

    with pytest.raises(ValueError, match="another model"):
        trainer(tmp_path, replace(TINY, model=replace(TINY.model, layers=2)))


def test_the_folder_loads_and_prepares_pictures_as_training_did(tmp_path: Path) -> None:
    trainer(tmp_path).run(steps=1)
    folder = tmp_path / "checkpoint"

    tower = CLIPVisionModelWithProjection.from_pretrained(folder)
    processor = CLIPImageProcessor.from_pretrained(folder)
    picture = Image.effect_noise((85, 48), 60).convert("RGB")
    prepared = processor(picture, return_tensors="pt")["pixel_values"]
    theirs = torch.nn.functional.normalize(tower(pixel_values=prepared).image_embeds, dim=1)
    ours = validate.embed(tower, validate.squash(picture, 32)[None], torch.device("cpu"))

    assert prepared.shape == (1, 3, 32, 32)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert torch.allclose(theirs, ours, atol=1e-5)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_sigterm_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    settings, out = tmp_path / "tiny.toml", tmp_path / "run"
    settings.write_text(TINY_TOML)
    command = [sys.executable, "-m", "exporter.training.train", "--config", str(settings)]
    with subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any("step 1 " in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 0

    state = torch.load(out / "state.pt", weights_only=True)
    assert state["step"] >= 1
    CLIPVisionModelWithProjection.from_pretrained(out / "checkpoint")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.main(["--help"])

    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "resume" in shown
    assert "--minutes" in shown


def test_info_nce_rewards_finding_the_own_map() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(16, 8), dim=1)
    right, accuracy = losses.info_nce(vectors, vectors, torch.tensor(50.0))
    wrong, _ = losses.info_nce(vectors, vectors.roll(1, 0), torch.tensor(50.0))

    assert accuracy == 1
    assert right < 0.5 < wrong


def test_koleo_falls_as_vectors_spread() -> None:
    base = torch.nn.functional.normalize(torch.randn(1, 16), dim=1)
    tight = torch.nn.functional.normalize(base + 0.01 * torch.randn(32, 16), dim=1)
    spread = torch.nn.functional.normalize(torch.randn(32, 16), dim=1)

    assert losses.koleo(spread) < losses.koleo(tight)


def test_recall_counts_what_is_found(tmp_path: Path) -> None:
    trainer(tmp_path).run(steps=1)
    tower = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "checkpoint")
    pictures = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    held_out = validate.ValidationSet({"clean": pictures}, {"same": pictures})
    held_out.save(tmp_path / "held-out.npz")

    loaded = validate.ValidationSet.load(tmp_path / "held-out.npz")

    assert validate.recall(tower, loaded, torch.device("cpu")) == {
        "same/clean@1": 1.0,
        "same/clean@3": 1.0,
    }
