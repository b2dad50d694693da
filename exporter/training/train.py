"""Train the bundled model: ``python -m exporter.training.train PART --config FILE --out DIR``."""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from exporter.training import checkpoint, config, corpus, validate
from exporter.training.config import Settings
from exporter.training.losses import LocatorLosses, TowerLosses
from exporter.training.schedule import Progress, learning_rate
from exporter.training.stream import Examples, Source, Window
from exporter.training.tasks import TASKS, Batch, Task
from inference import heap

_LOG: Final = logging.getLogger(__name__)

_EPILOG: Final = """\
what it leaves in DIR:
  checkpoint/    the model as a Hugging Face folder, of the averaged weights; the exporter reads it
  state.pt       everything needed to go on; the same command resumes from it
  curve.jsonl    one line for each log and each validation

the locator first, then the tower behind it, each for as long as you like; in the end it is averaged
with what it started from, which errs less than either, and whitened, which takes two minutes:
  python -m exporter.training.train locator --config exporter/training/locator.toml \\
      --start exporter/training/checkpoint --out run-locator --minutes 60
  python -m exporter.training.train tower --config exporter/training/tower.toml \\
      --start run-locator/checkpoint --out run-tower --minutes 60
  python -m exporter.training.soup exporter/training/checkpoint run-tower/checkpoint \\
      --part tower --out soup
  python -m exporter.training.whiten --model soup --out whitened

Stop it with Ctrl-C or SIGTERM whenever you like: it writes a checkpoint first. Run the same command
to go on. Pictures of your own (lawfully yours to train on) come in through --corpus: first
  python -m exporter.training.corpus FOLDER pictures.npy
"""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where a run reads and writes."""

    out: Path
    start: Path | None = None
    corpora: tuple[Path, ...] = ()
    validation: Path | None = None


class Trainer:
    """One run: task, optimiser, data, clock.

    Everything random in step ``n`` comes from generators seeded by (seed, n), so no generator's
    state has to be saved, and a run that resumes takes the very steps that it would have taken.

    Args:
        part: What is trained, one of `tasks.TASKS`.
        settings: The run.
        inputs: Where it reads and writes; a checkpoint in there is resumed.
        device: Where it computes.
    """

    def __init__(self, part: str, settings: Settings, inputs: Inputs, device: torch.device) -> None:
        self.settings = settings
        self.inputs = inputs
        self.device = device
        torch.manual_seed(settings.seed)
        self.task: Task = TASKS[part](settings, inputs.start, device)
        self.optimiser = _adamw(self.task.module, settings)
        self.progress = Progress(settings.schedule)
        self.spent = {"data": 0.0, "network": 0.0}
        if self._state_path.exists():
            self._resume()
        data = settings.data
        source = Source(
            seed=settings.seed, corpora=inputs.corpora, corpus_share=data.corpus_share,
            sibling_share=data.sibling_share, queries=data.queries, lean=data.lean,
        )  # fmt: skip
        self.window = Window(
            source, data.window, data.refresh, step=self.progress.step, workers=data.workers,
            corners=self.task.corners,
        )  # fmt: skip
        self.pictures = None
        if inputs.validation is not None:
            self.pictures = validate.ValidationSet.load(inputs.validation)

    def run(self, stop: Callable[[], bool] = lambda: False, steps: int | None = None) -> None:
        """Train until the budget is spent, ``stop`` says so, or this many steps are done."""
        schedule = self.settings.schedule
        last_save = last_validation = time.monotonic()
        recent: list[Tensor] = []
        end = math.inf if steps is None else self.progress.step + steps
        names: tuple[str, ...] = ()
        while not self.progress.done and self.progress.step < end and not stop():
            started = time.monotonic()
            losses = self.step()
            names = losses._fields
            recent.append(torch.stack(tuple(losses)).detach())
            now = time.monotonic()
            self.progress.advance(now - started)
            if self.progress.step % schedule.log_every == 0:
                self._log(names, recent)
                recent.clear()
            if now - last_validation > 60 * schedule.validate_minutes:
                self.validate()
                last_validation = time.monotonic()
            if now - last_save > 60 * schedule.checkpoint_minutes:
                self.save()
                last_save = time.monotonic()
        self.save()

    def step(self) -> LocatorLosses | TowerLosses:
        """Take one step."""
        settings, step = self.settings, self.progress.step
        data, count = settings.data, settings.optimiser.batch
        clock = _Clock(self.spent)
        with clock("data"):
            rng = np.random.default_rng([settings.seed, step, 1])
            batch = self._to_device(
                self.window.sample(rng, count, posted=data.posted, alike=data.alike)
            )
            # At step n the window is n steps along, which is where a resumed run builds it.
            self.window.advance()
        with clock("network"):
            torch.manual_seed(settings.seed * 1_000_003 + step)
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(settings.optimiser, self.progress.fraction)
            with torch.autocast(self.device.type, torch.bfloat16, settings.optimiser.bf16):
                losses = self.task.losses(batch, self.progress.fraction)
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(losses.total)
            torch.nn.utils.clip_grad_norm_(self.task.module.parameters(), settings.optimiser.clip)
            self.optimiser.step()
            self._update_average(step)
        return losses

    def validate(self) -> dict[str, float]:
        """Measure the averaged weights on held-out maps and write the curve."""
        if self.pictures is None:
            return {}
        scores = self.task.validate(self.pictures)
        self._write({"recall": scores})
        shown = "  ".join(f"{name} {score:.3f}" for name, score in scores.items() if "@1" in name)
        _LOG.info("recall  %s", shown)
        return scores

    def save(self) -> None:
        """Write the checkpoint and the folder of the averaged weights."""
        checkpoint.save(
            self._state_path,
            {
                "settings": self.settings.as_dict(),
                "module": self.task.module.state_dict(),
                "average": self.task.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.progress.step,
                "seconds": self.progress.seconds,
            },
        )
        self.task.save(self.inputs.out / "checkpoint")

    def close(self) -> None:
        """Stop drawing pictures."""
        self.window.close()

    @property
    def _state_path(self) -> Path:
        return self.inputs.out / "state.pt"

    def _resume(self) -> None:
        """Go on from the checkpoint."""
        state = checkpoint.load(self._state_path, self.device)
        try:
            self.task.module.load_state_dict(state["module"])
        except RuntimeError:
            raise ValueError(f"{self._state_path} is a run of another part or model.") from None
        self.task.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(self.settings.schedule, state["step"], state["seconds"])

    def _to_device(self, examples: Examples) -> Batch:
        """Examples as tensors, pixels in 0..1."""
        pixels, corners, small = (torch.from_numpy(part).to(self.device) for part in examples)
        return Batch(
            pixels.permute(0, 1, 4, 2, 3).float().div_(255),
            corners,
            small.permute(0, 3, 1, 2).float().div_(255),
        )

    def _update_average(self, step: int) -> None:
        """Exponential moving average of the weights, short at first; buffers as they are."""
        decay = min(self.settings.optimiser.ema, (1 + step) / (10 + step))
        average, trained = self.task.average, self.task.trained
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), trained.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)
            for kept, buffer in zip(average.buffers(), trained.buffers(), strict=True):
                kept.copy_(buffer)

    def _log(self, names: Sequence[str], recent: Sequence[Tensor]) -> None:
        """Print a line and write it to the curve: means over the steps since the last."""
        means = torch.stack(list(recent)).mean(0).tolist()
        numbers = {name: round(mean, 4) for name, mean in zip(names, means, strict=True)}
        total = sum(self.spent.values())
        shares = {name: round(seconds / total, 3) for name, seconds in self.spent.items()}
        rate = len(recent) * self.settings.optimiser.batch / total
        self.spent = dict.fromkeys(self.spent, 0.0)
        self._write({"losses": numbers, "pairs_per_second": round(rate, 1), "shares": shares})
        _LOG.info(
            "%5.1f%%  step %d  %s  %.0f pairs/s  %s",
            100 * self.progress.fraction,
            self.progress.step,
            "  ".join(f"{name} {value:.3f}" for name, value in numbers.items()),
            rate,
            " ".join(f"{name} {share:.0%}" for name, share in shares.items()),
        )

    def _write(self, record: dict[str, Any]) -> None:
        """Append a line to the curve."""
        head = {
            "step": self.progress.step,
            "minutes": round(self.progress.seconds / 60, 2),
            "fraction": round(self.progress.fraction, 4),
        }
        with (self.inputs.out / "curve.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**head, **record}) + "\n")


class _Clock:
    """Adds the time spent in named parts of a step."""

    def __init__(self, spent: dict[str, float]) -> None:
        self._spent = spent

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._spent[name] += time.monotonic() - started


def _adamw(module: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW that decays matrices only (I. Loshchilov and F. Hutter, 2019)."""
    matrices = [weight for weight in module.parameters() if weight.ndim > 1]
    others = [weight for weight in module.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.optimiser.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings.optimiser.learning_rate, betas=(0.9, settings.optimiser.beta2)
    )


def suited(settings: Settings, device: torch.device) -> Settings:
    """In float32, if the device would only imitate bfloat16: that takes twenty times as long."""
    if device.type != "cpu" or not settings.optimiser.bf16:
        return settings
    can = torch.cpu.get_capabilities()
    if any(can.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return settings
    _LOG.info("This processor does not compute in bfloat16: training in float32.")
    return replace(settings, optimiser=replace(settings.optimiser, bf16=False))


@contextmanager
def _stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and SIGINT into a wish to stop after the current step."""
    asked = False

    def ask(signum: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        _LOG.info("%s: saving a checkpoint", signal.Signals(signum).name)

    former = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    described = argparse.ArgumentParser(
        prog="python -m exporter.training.train",
        description="Train the bundled model on procedural map art, or resume its training.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = described.add_argument
    add("part", choices=sorted(TASKS), help="what to train: the locator first, then the tower")
    add(
        "--config",
        type=Path,
        required=True,
        help="settings in TOML; see locator.toml and tower.toml",
    )
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the run's folder; resumed if it has a run",
    )
    add(
        "--start",
        type=Path,
        metavar="DIR",
        help="a checkpoint folder to begin with; what is not trained comes from it",
    )
    corpus.add_option(described)
    add(
        "--validation",
        type=Path,
        metavar="NPZ",
        help="pictures drawn by exporter.training.validate",
    )
    add("--minutes", type=float, help="train for this long, and let the cosine end then")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1 (default: %(default)s)",
    )
    return described


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    settings = config.load(arguments.config)
    if arguments.minutes is not None:
        settings = replace(settings, schedule=replace(settings.schedule, minutes=arguments.minutes))
    device = torch.device(arguments.device)
    settings = suited(settings, device)
    torch.set_num_threads(settings.threads)
    # A step takes and frees gigabytes, and the system would clear every page of them anew.
    heap.keep_all_pieces()
    arguments.out.mkdir(parents=True, exist_ok=True)
    inputs = Inputs(arguments.out, arguments.start, tuple(arguments.corpus), arguments.validation)
    with _stop_on_signals() as stop:
        trainer = Trainer(arguments.part, settings, inputs, device)
        try:
            trainer.run(stop)
            if trainer.progress.done:
                trainer.validate()
        finally:
            trainer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
