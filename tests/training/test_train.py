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

from exporter import locator
from exporter.locator import Locator, LocatorSettings
from exporter.training import losses, train, validate
from exporter.training.config import (
    DataSettings,
    LossSettings,
    ModelSettings,
    OptimiserSettings,
    ScheduleSettings,
    Settings,
)
from exporter.training.model import Network, build_tower, save_folder
from exporter.training.tasks import move
from exporter.training.train import Inputs, Trainer

pytestmark = pytest.mark.exporter

TINY = Settings(
    seed=1,
    model=ModelSettings(
        image_size=32, patch_size=8, hidden_size=32, layers=1, heads=2, mlp_size=64, dimensions=32
    ),
    data=DataSettings(window=16, refresh=4, queries=1, workers=0),
    loss=LossSettings(picture=1.0, drop=0.4, jitter=0.03),
    optimiser=OptimiserSettings(batch=16, learning_rate=3e-3, bf16=False),
    schedule=ScheduleSettings(steps=12, log_every=2),
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
queries = 1
workers = 0
[optimiser]
batch = 4
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


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A checkpoint with a locator, neither of them trained."""
    torch.manual_seed(0)
    folder = tmp_path / "start"
    save_folder(build_tower(TINY.model), Locator(LocatorSettings()), folder)
    return folder


def trainer(
    folder: Path, part: str, start: Path | None = None, settings: Settings = TINY
) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(part, settings, Inputs(folder, start), torch.device("cpu"))


@pytest.mark.parametrize("part", ["locator", "tower"])
def test_the_loss_falls(part: str, tmp_path: Path, start: Path) -> None:
    same = replace(TINY.data, window=16, refresh=2, lean=3.0)
    trainer(tmp_path / "run", part, start, replace(TINY, data=same)).run()

    lines = (tmp_path / "run/curve.jsonl").read_text().splitlines()
    curve = [json.loads(line) for line in lines]
    totals = [record["losses"]["total"] for record in curve]
    assert len(totals) == 6
    assert np.mean(totals[-2:]) < 0.95 * np.mean(totals[:2])
    assert curve[-1]["fraction"] == 1.0


def test_a_resumed_run_takes_the_steps_that_it_would_have_taken(
    tmp_path: Path, start: Path
) -> None:
    trainer(tmp_path / "whole", "tower", start).run(steps=4)
    trainer(tmp_path / "parts", "tower", start).run(steps=2)
    trainer(tmp_path / "parts", "tower", start).run(steps=2)

    whole, parts = (torch.load(tmp_path / name / "state.pt") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 4
    for part in ("module", "average"):
        assert whole[part].keys() == parts[part].keys()
        assert all(torch.equal(whole[part][name], parts[part][name]) for name in whole[part])


def test_a_run_of_another_part_is_not_resumed(tmp_path: Path, start: Path) -> None:
    trainer(tmp_path / "run", "tower", start).run(steps=1)

    with pytest.raises(ValueError, match="another part"):
        trainer(tmp_path / "run", "locator", start)


def test_a_tower_is_not_trained_without_a_locator(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--start"):
        trainer(tmp_path / "run", "tower")


def test_what_is_not_trained_stays_as_it_was(tmp_path: Path, start: Path) -> None:
    trainer(tmp_path / "run", "tower", start).run(steps=1)

    before, after = (locator.load(folder) for folder in (start, tmp_path / "run/checkpoint"))
    assert before is not None
    assert after is not None
    assert all(map(torch.equal, before.state_dict().values(), after.state_dict().values()))
    weights = [folder / "model.safetensors" for folder in (start, tmp_path / "run/checkpoint")]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_the_folder_loads_and_prepares_pictures_as_training_did(
    tmp_path: Path, start: Path
) -> None:
    processor = CLIPImageProcessor.from_pretrained(start)
    picture = Image.effect_noise((850, 480), 60).convert("RGB")
    prepared = processor(picture, return_tensors="pt", do_normalize=False)["pixel_values"]
    ours = validate.squash(picture, 192)

    assert prepared.shape == (1, 3, 192, 192)
    assert np.allclose(prepared[0].permute(1, 2, 0).numpy() * 255, ours, atol=0.6)
    assert sorted(path.name for path in start.iterdir()) == [
        "config.json",
        "locator.safetensors",
        "model.safetensors",
        "preprocessor_config.json",
    ]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_sigterm_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    settings, out = tmp_path / "tiny.toml", tmp_path / "run"
    settings.write_text(TINY_TOML)
    start = tmp_path / "start"
    save_folder(build_tower(TINY.model), Locator(LocatorSettings()), start)
    command = [sys.executable, "-m", "exporter.training.train", "locator"]
    command += ["--config", str(settings), "--start", str(start)]
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
    tower, finder = build_tower(TINY.model).eval(), Locator(LocatorSettings()).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (8, 192, 192, 3), np.uint8)
    held_out = validate.ValidationSet({"clean": pictures}, {"same": pictures})
    held_out.save(tmp_path / "held-out.npz")

    loaded = validate.ValidationSet.load(tmp_path / "held-out.npz")

    found = validate.recall(tower, finder, loaded)
    assert found == {"same/clean@1": 1.0, "same/clean@3": 1.0}


def test_a_tower_learns_from_maps_as_the_locator_finds_them(tmp_path: Path, start: Path) -> None:
    run = trainer(tmp_path / "run", "tower", start)
    finder = locator.load(start)
    assert finder is not None

    examples = run.window.sample(np.random.default_rng(0), 4)

    with torch.inference_mode():
        for pixels, corners in zip(examples.pixels, examples.corners, strict=True):
            views = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
            found = finder(views)
            mirrored = finder(views.flip(-1))[:, [1, 0, 3, 2]] * torch.tensor([-1.0, 1.0])
            apart = [(guess - torch.from_numpy(corners)).abs().max() for guess in (found, mirrored)]
            assert min(apart) < 0.05  # colours may have been swapped after it was found
    run.close()


def test_a_tower_that_is_shown_all_patches_is_the_one_that_is_shipped() -> None:
    torch.manual_seed(0)
    tower = build_tower(TINY.model).eval()
    network, pixels = Network(tower, 0.07), torch.rand(3, 3, 32, 32)

    with torch.inference_mode():
        shipped = tower(pixel_values=network.normalise(pixels)).image_embeds
        assert torch.allclose(network(pixels).embeddings, shipped, atol=1e-5)
        assert not torch.allclose(network(pixels, 0.4).embeddings, shipped, atol=1e-5)


def test_corners_move_in_proportion_to_the_map() -> None:
    torch.manual_seed(0)
    square = locator.unit_corners(torch.zeros(1)).expand(500, 4, 2)

    large, small = (
        float((move(square * size, 0.03) - square * size).abs().mean()) for size in (1.0, 0.1)
    )

    assert 0 < large < 0.05
    assert small == pytest.approx(large / 10, rel=0.15)


@pytest.mark.parametrize(
    ("device", "can", "computed_in"),
    [
        ("cpu", {"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ("cpu", {"avx2": True, "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ("cpu", {"avx2": True, "avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ("cpu", {"neon": True, "bf16": True}, torch.bfloat16),
        ("cuda", {}, torch.bfloat16),
    ],
)
def test_bfloat16_is_not_imitated(
    monkeypatch: pytest.MonkeyPatch, device: str, can: dict[str, bool], computed_in: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    wanted = replace(TINY, optimiser=replace(TINY.optimiser, bf16=True))
    assert train.suited(wanted, torch.device(device)) == (
        wanted if computed_in is torch.bfloat16 else TINY
    )
    assert train.suited(TINY, torch.device(device)) is TINY
