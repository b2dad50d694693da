"""The telemetry settings, from the environment."""

import os

import pytest

from inference.errors import StartupError
from inference.logs import LogFormat, LogLevel
from inference.telemetry import TelemetrySettings


@pytest.fixture(autouse=True)
def clean_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in list(os.environ):
        if name.startswith(("MAPSEEK_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))  # no .env of a developer's


def test_everything_is_off_by_default() -> None:
    settings = TelemetrySettings.load()
    assert settings.otlp_endpoint is None
    assert settings.log_level is LogLevel.INFO
    assert settings.log_format is LogFormat.TEXT


def test_our_variable_goes_before_the_standard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://standard:4317")
    assert TelemetrySettings.load().otlp_endpoint == "http://standard:4317"
    monkeypatch.setenv("MAPSEEK_OTLP_ENDPOINT", "https://ours:4317")
    assert TelemetrySettings.load().otlp_endpoint == "https://ours:4317"


def test_words_may_be_written_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPSEEK_LOG_LEVEL", "WARNING")
    monkeypatch.setenv("MAPSEEK_LOG_FORMAT", "JSON")
    settings = TelemetrySettings.load()
    assert (settings.log_level, settings.log_format) == (LogLevel.WARNING, LogFormat.JSON)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MAPSEEK_OTLP_ENDPOINT", "127.0.0.1:4317"),
        ("MAPSEEK_OTLP_ENDPOINT", "ftp://127.0.0.1"),
        ("MAPSEEK_OTLP_ENDPOINT", "http://"),
        ("MAPSEEK_TRACE_RATIO", "1.5"),
        ("MAPSEEK_LOG_LEVEL", "loud"),
        ("MAPSEEK_LOG_FORMAT", "xml"),
    ],
)
def test_a_wrong_value_is_a_sentence_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(StartupError, match=f"^{variable}: .+[.]$"):
        TelemetrySettings.load()
