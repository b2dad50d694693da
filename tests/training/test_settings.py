from pathlib import Path

import pytest

from exporter.training import config
from exporter.training.config import OptimiserSettings, ScheduleSettings
from exporter.training.schedule import Progress, learning_rate

FOLDER = Path(config.__file__).parent
TOWER = FOLDER / "tower.toml"


@pytest.mark.parametrize("part", ["locator", "tower"])
def test_the_bundled_settings_load(part: str) -> None:
    settings = config.load(FOLDER / f"{part}.toml")

    assert settings.model.dimensions == 512
    assert settings.schedule.minutes > 0


def test_settings_survive_a_round_trip() -> None:
    settings = config.load(TOWER)

    assert config.from_dict(settings.as_dict()) == settings


@pytest.mark.parametrize("values", [{"sede": 1}, {"model": {"hiden_size": 2}}])
def test_a_misspelt_setting_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"has no (sede|hiden_size)"):
        config.from_dict(values)


def test_the_learning_rate_warms_up_and_ends_low() -> None:
    settings = OptimiserSettings(learning_rate=1.0, warmup=0.1)

    assert learning_rate(settings, 0.05) == pytest.approx(0.5)
    assert learning_rate(settings, 0.1) == pytest.approx(1.0)
    assert learning_rate(settings, 1.0) == pytest.approx(0.01)


def test_a_budget_of_minutes_ignores_time_spent_stopped() -> None:
    progress = Progress(ScheduleSettings(minutes=1.0))
    for _ in range(10):
        progress.advance(1.0)
    progress.advance(3600.0)

    assert progress.seconds == pytest.approx(15.0)
    assert not progress.done


def test_a_budget_of_steps_ends_after_them() -> None:
    progress = Progress(ScheduleSettings(steps=2))
    progress.advance(1.0)
    assert progress.fraction == pytest.approx(0.5)
    progress.advance(1.0)
    assert progress.done
