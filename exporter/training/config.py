"""The settings of a training run, read from TOML."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The vision tower. The defaults are the bundled model's: about 0.38 GFLOP, 11 MB in fp32."""

    image_size: int = 128
    patch_size: int = 16
    hidden_size: int = 192
    layers: int = 6
    heads: int = 3
    mlp_size: int = 768
    dimensions: int = 512


@dataclass(frozen=True, slots=True)
class DataSettings:
    """The stream of maps and their views; see `stream.Source` and `stream.Window`.

    Attributes:
        posted: Share of the maps that are learnt from a view as posted beside one that searches;
            the others from two that search. The tower needs 1; the locator has little to learn
            from clean renders.
        alike: Share of a batch's pairs of maps that look like others in it, of all in the window.
    """

    window: int = 2048
    refresh: int = 32
    corpus_share: float = 0.5
    sibling_share: float = 0.25
    queries: int = 3
    posted: float = 1.0
    alike: float = 0.0
    lean: float = 0.6
    workers: int = 1


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What the tower learns; see `losses`.

    Attributes:
        koleo: Weight of the entropy, where InfoNCE's is 1.
        picture: Weight of the picture that the embedding has to remember.
        temperature: To begin with; it is learnt.
        drop: Share of patches that the tower is not shown, but for the last quarter of a run: it
            learns faster, and that something may cover a map (FLIP, Y. Li et al., CVPR 2023).
        jitter: How far corners are moved at random, as a fraction of the map's size: on pictures
            that it never saw, the locator errs more than on those that it learnt from.
    """

    koleo: float = 0.05
    picture: float = 1.0
    drop: float = 0.0
    jitter: float = 0.0
    temperature: float = 0.07


@dataclass(frozen=True, slots=True)
class OptimiserSettings:
    """AdamW on a cosine with warm-up, and the moving average of the weights."""

    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    beta2: float = 0.98
    warmup: float = 0.04
    clip: float = 1.0
    ema: float = 0.998
    bf16: bool = True


@dataclass(frozen=True, slots=True)
class ScheduleSettings:
    """How long and how often. ``minutes``, when above 0, decides instead of ``steps``."""

    steps: int = 2000
    minutes: float = 0.0
    log_every: int = 10
    validate_minutes: float = 6.0
    checkpoint_minutes: float = 3.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides a run, together with the seed of everything random."""

    seed: int = 0
    threads: int = 2
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain nested dictionaries."""
        return asdict(self)


_Section = TypeVar("_Section")


def load(path: Path) -> Settings:
    """Read settings from a TOML file; what it leaves out keeps its default.

    Raises:
        ValueError: The file has a key or a section that does not exist.
    """
    with path.open("rb") as file:
        return from_dict(tomllib.load(file))


def from_dict(values: dict[str, Any]) -> Settings:
    """Build settings from nested dictionaries, refusing unknown keys."""
    values = dict(values)
    sections: dict[str, type[Any]] = {
        "model": ModelSettings,
        "data": DataSettings,
        "loss": LossSettings,
        "optimiser": OptimiserSettings,
        "schedule": ScheduleSettings,
    }
    built = {name: _section(kind, values.pop(name, {})) for name, kind in sections.items()}
    return _section(Settings, {**values, **built})


def _section(kind: type[_Section], values: dict[str, Any]) -> _Section:
    """Build one dataclass."""
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    return kind(**values)
