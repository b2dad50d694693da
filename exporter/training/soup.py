"""Average what several runs ended with: ``python -m exporter.training.soup A B C --part tower``.

Every run starts where the one before it ended, climbs to a high learning rate and comes to rest
elsewhere in the same basin. The mean of the weights errs less than any of them and costs nothing
(M. Wortsman et al., "Model soups", ICML 2022).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import CLIPVisionModelWithProjection

from exporter import locator
from exporter.locator import Locator
from exporter.training.model import save_folder

_Module = TypeVar("_Module", bound=nn.Module)


def average(modules: Sequence[_Module]) -> _Module:
    """Give the last of several modules the mean of all their weights, batch norms' too.

    Raises:
        ValueError: They are not of the same sizes.
    """
    states = [module.state_dict() for module in modules]
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    if any(shape != shapes[-1] for shape in shapes):
        raise ValueError("Only models of the same sizes have a mean.")
    with torch.no_grad():
        for name, value in states[-1].items():
            if value.is_floating_point():
                value.copy_(torch.stack([state[name] for state in states]).mean(0))
    return modules[-1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m exporter.training.soup",
        description="Average a part of several checkpoints. The other part is that of the last.",
    )
    add = parser.add_argument
    add("models", type=Path, nargs="+", metavar="DIR", help="Hugging Face folders")
    add("--part", choices=("locator", "tower"), required=True, help="what to average")
    add("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    arguments = parser.parse_args(argv)
    folders: list[Path] = arguments.models
    finder: Locator | None
    try:
        if arguments.part == "tower":
            tower, finder = average([*map(_tower, folders)]), locator.load(folders[-1])
        else:
            tower, finder = _tower(folders[-1]), average([*map(_locator, folders)])
    except ValueError as error:
        parser.error(str(error))
    save_folder(tower, finder, arguments.out)
    return 0


def _tower(folder: Path) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection.from_pretrained(folder).eval()


def _locator(folder: Path) -> Locator:
    found = locator.load(folder)
    if found is None:
        raise ValueError(f"{folder} has no {locator.FILE}.")
    return found


if __name__ == "__main__":
    sys.exit(main())
