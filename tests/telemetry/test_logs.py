"""Log lines: what they hold, and what must never get into one."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from inference import logs
from inference.logs import LogFormat, LogLevel, correlate


@contextmanager
def logging_to(
    monkeypatch: pytest.MonkeyPatch, form: LogFormat, level: LogLevel = LogLevel.INFO
) -> Iterator[io.StringIO]:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    undo = logs.to_stderr("mapseek-test", level, form)
    try:
        yield stderr
    finally:
        undo()


log = logging.getLogger("mapseek.test")


def test_a_text_line_reads_like_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with logging_to(monkeypatch, LogFormat.TEXT) as stderr, correlate("run-1"):
        log.info("embedded %d pictures", 3, extra={"lane": "bulk"})
    when, rest = stderr.getvalue().split(" ", 1)
    assert when.endswith("Z")
    assert rest == ("INFO mapseek.test: embedded 3 pictures lane=bulk correlation_id=run-1\n")


def test_a_json_line_is_one_object_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with logging_to(monkeypatch, LogFormat.JSON) as stderr:
        try:
            int("broken")
        except ValueError:
            log.exception("it failed", extra={"path": object, "level": "forged"})
    (line,) = stderr.getvalue().splitlines()
    found = json.loads(line)
    assert found["level"] == "error"
    assert found["message"] == "it failed"
    assert found["service"] == "mapseek-test"
    assert found["path"] == str(object)
    assert found["exception"].endswith("invalid literal for int() with base 10: 'broken'")
    assert "trace_id" not in found


def test_a_level_hides_what_is_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with logging_to(monkeypatch, LogFormat.TEXT, LogLevel.WARNING) as stderr:
        log.info("quiet")
        log.warning("loud")
    assert "quiet" not in stderr.getvalue()
    assert "loud" in stderr.getvalue()


def test_the_root_logger_gets_its_handlers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    with logging_to(monkeypatch, LogFormat.TEXT, LogLevel.DEBUG):
        assert len(root.handlers) == 1
    assert (root.handlers, root.level) == before


@pytest.mark.parametrize("form", LogFormat)
def test_a_line_cannot_be_forged(monkeypatch: pytest.MonkeyPatch, form: LogFormat) -> None:
    with logging_to(monkeypatch, form) as stderr:
        log.info("no picture: %s", "a.png\nERROR forged: \x1b[2Jgone\r\x9b\u2028")
    assert len(stderr.getvalue().splitlines()) == 1
    assert not {"\x1b", "\x9b", "\r"} & set(stderr.getvalue())


@pytest.mark.parametrize(
    ("message", "secret"),
    [
        ("metadata: authorization=Bearer abcdef0123456789xyz", "abcdef0123456789xyz"),
        ("Authorization: Bot hunter2hunter2hunter2", "hunter2hunter2hunter2"),
        ("cannot reach mongodb+srv://me:hunter2@example.org/maps", "hunter2"),
        ("settings: token='hunter2-hunter2'", "hunter2-hunter2"),
        ("started with MAPSEEK_TOKEN=hunter2-hunter2", "hunter2-hunter2"),
        ('{"password": "hunter2"}', "hunter2"),
        (f"login with {'M' * 24}.{'G' * 6}.{'x' * 38} failed", "M" * 24),
    ],
)
@pytest.mark.parametrize("form", LogFormat)
def test_secrets_are_struck_out(
    monkeypatch: pytest.MonkeyPatch, form: LogFormat, message: str, secret: str
) -> None:
    with logging_to(monkeypatch, form) as stderr:
        try:
            vars(logs)[message]  # a KeyError repeats its key
        except KeyError:
            log.exception(message, extra={"detail": message})
    assert secret not in stderr.getvalue()
    assert "[redacted]" in stderr.getvalue()


@pytest.mark.parametrize(
    "message",
    [
        "served 12 tokens",
        "MAPSEEK_TOKEN_FILE: line 2 of tokens",
        "https://cdn.example.org/attachments/1/2/map.png",
        "listening on 127.0.0.1:50051",
        "a message without a token",
    ],
)
def test_what_is_no_secret_stays(message: str) -> None:
    assert logs.redact(message) == message


@pytest.mark.parametrize("hostile", ["", "x" * 65, "a b", "a\nb", 'a"b', "é"])
def test_a_correlation_id_that_does_not_belong_into_a_log_is_left_out(hostile: str) -> None:
    with correlate("outer"), correlate(hostile):
        assert logs.correlation_id() is None


def test_correlation_ends_with_its_block() -> None:
    with correlate("outer"):
        with correlate("inner"):
            assert logs.correlation_id() == "inner"
        assert logs.correlation_id() == "outer"
    assert logs.correlation_id() is None


def test_the_exporters_complain_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = logging.getLogger("opentelemetry.exporter.test")
    with logging_to(monkeypatch, LogFormat.TEXT) as stderr:
        for _ in range(50):
            exporter.warning("cannot export")
        log.info("still here")
    assert stderr.getvalue().count("cannot export") == 1
    assert "still here" in stderr.getvalue()
