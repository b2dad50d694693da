"""Train the bundled model: ``python -m exporter.training.train --config FILE --out DIR``."""

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
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from exporter.training import checkpoint, config, validate
from exporter.training.config import Settings
from exporter.training.losses import Losses, total_loss
from exporter.training.model import Network, save_folder
from exporter.training.schedule import Progress, hardest, learning_rate
from exporter.training.stream import Maps, Source, Window
from exporter.training.views import Viewer, Views

_LOG: Final = logging.getLogger(__name__)

_EPILOG: Final = """\
what it leaves in DIR:
  checkpoint/    the model as a Hugging Face folder, of the averaged weights; the exporter reads it
  state.pt       everything needed to go on; the same command resumes from it
  curve.jsonl    one line for each log and each validation

a first run, on a CPU, for as long as a coffee:
  python -m exporter.training.train --config exporter/training/bundled.toml --out run --minutes 10

Stop it with Ctrl-C or SIGTERM whenever you like: it writes a checkpoint first. Run the same command
to go on. Pictures of your own (lawfully yours to train on) come in through --corpus: first
  python -m exporter.training.corpus FOLDER pictures.npy
"""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where a run reads and writes."""

    out: Path
    corpus: Path | None = None
    validation: Path | None = None


class Trainer:
    """One run: network, optimiser, data, clock.

    Everything random in step ``n`` comes from generators seeded by (seed, n), so no generator's
    state has to be saved, and a run that resumes takes the very steps that it would have taken.

    Args:
        settings: The run.
        inputs: Where it reads and writes; a checkpoint in there is resumed.
        device: Where it computes.
    """

    def __init__(self, settings: Settings, inputs: Inputs, device: torch.device) -> None:
        self.settings = settings
        self.inputs = inputs
        self.device = device
        torch.manual_seed(settings.seed)
        self.network = Network(settings.model, settings.loss.temperature).to(device)
        self.average = deepcopy(self.network.tower).requires_grad_(requires_grad=False)
        self.optimiser = _adamw(self.network, settings)
        self.viewer = Viewer(settings.model.image_size, self.network.cells, device, settings.seed)
        self.progress = Progress(settings.schedule)
        self.spent = {"data": 0.0, "views": 0.0, "network": 0.0}
        if self._state_path.exists():
            self._resume()
        data = settings.data
        source = Source(
            seed=settings.seed, corpus=inputs.corpus, corpus_share=data.corpus_share,
            sibling_share=data.sibling_share,
        )  # fmt: skip
        self.window = Window(
            source, data.window, data.refresh, step=self.progress.step, workers=data.workers
        )
        self.pictures = None
        if inputs.validation is not None:
            self.pictures = validate.ValidationSet.load(inputs.validation)

    def run(self, stop: Callable[[], bool] = lambda: False, steps: int | None = None) -> None:
        """Train until the budget is spent, ``stop`` says so, or this many steps are done."""
        schedule = self.settings.schedule
        last_save = last_validation = time.monotonic()
        recent: list[Tensor] = []
        end = math.inf if steps is None else self.progress.step + steps
        while not self.progress.done and self.progress.step < end and not stop():
            started = time.monotonic()
            recent.append(torch.stack(self.step()).detach())
            now = time.monotonic()
            self.progress.advance(now - started)
            if self.progress.step % schedule.log_every == 0:
                self._log(recent)
                recent.clear()
            if now - last_validation > 60 * schedule.validate_minutes:
                self.validate()
                last_validation = time.monotonic()
            if now - last_save > 60 * schedule.checkpoint_minutes:
                self.save()
                last_save = time.monotonic()
        self.save()

    def step(self) -> Losses:
        """Take one step."""
        settings, step = self.settings, self.progress.step
        clock = _Clock(self.spent)
        with clock("data"):
            rng = np.random.default_rng([settings.seed, step, 1])
            maps, aspects = self._to_device(self.window.sample(rng, settings.optimiser.batch))
            # At step n the window is n steps along, which is where a resumed run builds it.
            self.window.advance()
        fraction = self.progress.fraction
        with clock("views"):
            generator = torch.Generator(self.device).manual_seed(settings.seed * 1_000_003 + step)
            with torch.no_grad():
                archive, query = self._views(maps, aspects, fraction, generator)
        with clock("network"):
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(settings.optimiser, fraction)
            with torch.autocast(self.device.type, torch.bfloat16, settings.optimiser.bf16):
                said_archive = self.network(archive.pixels)
                said_query = self.network(query.pixels)
            losses = total_loss(
                self.network, maps, (archive, said_archive), (query, said_query), settings.loss
            )
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(losses.total)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.optimiser.clip)
            self.optimiser.step()
            self._update_average(step)
        return losses

    def validate(self) -> dict[str, float]:
        """Measure the averaged weights on held-out maps and write the curve."""
        if self.pictures is None:
            return {}
        scores = validate.recall(self.average, self.pictures, self.device)
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
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.progress.step,
                "seconds": self.progress.seconds,
            },
        )
        save_folder(self.average, self.inputs.out / "checkpoint")

    def close(self) -> None:
        """Stop drawing pictures."""
        self.window.close()

    @property
    def _state_path(self) -> Path:
        return self.inputs.out / "state.pt"

    def _resume(self) -> None:
        """Go on from the checkpoint."""
        state = checkpoint.load(self._state_path, self.device)
        former = config.from_dict(state["settings"])
        if former.model != self.settings.model:
            raise ValueError(f"{self._state_path} is a run of another model: {former.model}.")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(self.settings.schedule, state["step"], state["seconds"])

    def _to_device(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Maps as ``float32`` (n, 3, h, w) in 0..1, and their walls' width over height."""
        pixels = torch.from_numpy(maps.pixels).to(self.device).permute(0, 3, 1, 2)
        return pixels.float().div_(255), torch.from_numpy(maps.aspects).to(self.device)

    def _views(
        self, maps: Tensor, aspects: Tensor, fraction: float, generator: torch.Generator
    ) -> tuple[Views, Views]:
        """One archive view and one query view of every map."""
        limit = hardest(self.settings.schedule, fraction)
        # On a CPU, small parts stay in the cache: twice as fast as a whole batch at once.
        part = 32 if self.device.type == "cpu" else len(maps)
        archive, query = [], []
        for pixels, shapes in zip(torch.split(maps, part), torch.split(aspects, part), strict=True):
            archive.append(self.viewer.archive(pixels, shapes, generator))
            drawn = torch.rand(len(pixels), generator=generator, device=self.device)
            hardness = limit * drawn**self.settings.schedule.lean
            query.append(self.viewer.degrade(pixels, shapes, hardness, generator))
        return _join(archive), _join(query)

    def _update_average(self, step: int) -> None:
        """Exponential moving average of the weights, short at first."""
        decay = min(self.settings.optimiser.ema, (1 + step) / (10 + step))
        pairs = zip(self.average.parameters(), self.network.tower.parameters(), strict=True)
        with torch.no_grad():
            for mean, weight in pairs:
                mean.lerp_(weight, 1 - decay)

    def _log(self, recent: Sequence[Tensor]) -> None:
        """Print a line and write it to the curve: means over the steps since the last."""
        means = torch.stack(list(recent)).mean(0).tolist()
        numbers = {name: round(mean, 4) for name, mean in zip(Losses._fields, means, strict=True)}
        total = sum(self.spent.values())
        shares = {name: round(seconds / total, 3) for name, seconds in self.spent.items()}
        rate = len(recent) * self.settings.optimiser.batch / total
        self.spent = dict.fromkeys(self.spent, 0.0)
        limit = hardest(self.settings.schedule, self.progress.fraction)
        self._write({"losses": numbers, "pairs_per_second": round(rate, 1), "shares": shares})
        _LOG.info(
            "%5.1f%%  step %d  %s  hard %.2f  %.0f pairs/s  %s",
            100 * self.progress.fraction,
            self.progress.step,
            "  ".join(f"{name} {value:.3f}" for name, value in numbers.items()),
            limit,
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


def _adamw(network: Network, settings: Settings) -> torch.optim.AdamW:
    """AdamW that decays matrices only (I. Loshchilov and F. Hutter, 2019)."""
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.optimiser.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings.optimiser.learning_rate, betas=(0.9, settings.optimiser.beta2)
    )


def _join(parts: Sequence[Views]) -> Views:
    """Put the parts of a batch together."""
    return Views(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


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
    add("--config", type=Path, required=True, help="settings in TOML; see bundled.toml")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the run's folder; resumed if it has a run",
    )
    add("--corpus", type=Path, metavar="NPY", help="pictures cached by exporter.training.corpus")
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
    torch.set_num_threads(settings.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    inputs = Inputs(arguments.out, arguments.corpus, arguments.validation)
    with _stop_on_signals() as stop:
        trainer = Trainer(settings, inputs, torch.device(arguments.device))
        try:
            trainer.run(stop)
            if trainer.progress.done:
                trainer.validate()
        finally:
            trainer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
