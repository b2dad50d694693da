"""The pictures of `bench retrieval`: recall as bars, similarities as distributions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas

from benchmarks.retrieval.scores import Answers, Figure


def plot_recall(bars: Mapping[str, Sequence[tuple[str, Figure]]], title: str, path: Path) -> None:
    """Draw recall@1 by task, one colour for each model.

    Args:
        bars: For each model, (task, recall) in the same order.
        title: Above it.
        path: A .png or .svg file.
    """
    canvas = Canvas(figsize=(9, 4.2), layout="constrained")
    axes = canvas.subplots()
    width = 0.8 / max(1, len(bars))
    for place, (name, tasks) in enumerate(bars.items()):
        at = np.arange(len(tasks)) + (place - (len(bars) - 1) / 2) * width
        values = np.array([figure.value for _, figure in tasks])
        lower = values - [figure.low for _, figure in tasks]
        upper = np.array([figure.high for _, figure in tasks]) - values
        drawn = axes.bar(at, values, width * 0.94, label=name, yerr=[lower, upper], capsize=2)
        axes.bar_label(drawn, labels=[f"{value:.2f}" for value in values], padding=2, fontsize=8)
    axes.set_xticks(range(len(next(iter(bars.values())))))
    axes.set_xticklabels([task for task, _ in next(iter(bars.values()))])
    axes.set(ylabel="recall@1, with its 95 % interval", ylim=(0, 1.08))
    axes.set_title(title, fontsize="small")
    axes.legend(fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    canvas.savefig(path, dpi=150)


def plot_similarities(answers: Answers, lines: Mapping[str, float], title: str, path: Path) -> None:
    """Draw how similar right, wrong and false first answers are.

    Args:
        answers: The first answers.
        lines: Thresholds to mark, by name.
        title: Above it.
        path: A .png or .svg file.
    """
    canvas = Canvas(figsize=(9, 4.2), layout="constrained")
    axes = canvas.subplots()
    bins = np.linspace(
        min(float(part.min()) for part in (answers.right, answers.false) if len(part)), 1, 80
    ).tolist()
    for name, part in (
        ("right", answers.right),
        ("wrong, the right map was there", answers.wrong),
        ("wrong, the right map was not in the archive", answers.false),
    ):
        axes.hist(part, bins, alpha=0.55, label=f"{name} ({len(part):,})")
    for name, value in lines.items():
        axes.axvline(value, color="black", linestyle="--", linewidth=1)
        axes.text(value, axes.get_ylim()[1], f" {name}", va="top", fontsize=8)
    axes.set(xlabel="similarity of the first answer", ylabel="queries")
    axes.set_title(title, fontsize="small")
    axes.legend(fontsize=8)
    canvas.savefig(path, dpi=150)
