"""Log lines on stderr, for people or for machines, with the ids that tie them together.

Every line carries the trace and span that it was written in, and the correlation id that the
process bound with `correlate`. Secrets that slip into a message are struck out here, the one place
that every line passes.
"""

import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider


class LogFormat(StrEnum):
    """How a log line is written."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severe level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """The level as `logging` counts it."""
        return logging.getLevelNamesMapping()[self.name]


_correlation_id: ContextVar[str | None] = ContextVar("mapseek_correlation_id", default=None)

# An id comes from outside, too: whatever else it holds must not get into a log or a header.
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

_SECRETS = re.compile(
    r"""
      (?P<bearer>\b(?:bearer|bot)\s+)[\w.~+/=-]{8,}                    # Authorization headers
    | (?P<userinfo>\b[a-z][a-z0-9+.-]*://)[^\s/@]*:[^\s/@]*(?=@)       # scheme://user:password@
    | (?P<named>(?<![^\W_])(?:token|password|secret|api_?key)["']?\s*[=:]\s*["']?)[^\s"',;&)]{4,}
    | \b[\w-]{23,30}\.[\w-]{6,7}\.[\w-]{27,}\b                         # a Discord bot token
    """,
    re.IGNORECASE | re.VERBOSE,
)

# Control characters and line separators, written out.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
_CONTROL.update({ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\t"})

_STANDARD_FIELDS = frozenset(
    vars(logging.LogRecord("", 0, "", 0, "", None, None)) | {"message": 0, "asctime": 0}
) | {"taskName"}

# The exporters complain at every failed attempt; a person needs to hear of it now and then.
_COLLECTOR_NEWS_EVERY_S = 600.0


@contextmanager
def correlate(correlation_id: str | None) -> Iterator[None]:
    """Binds an id to every log line of this task, and to the calls it makes while tracing is on.

    An id of a form that does not belong into logs (longer than 64, or other than letters, digits
    and `. _ : -`) is left out.
    """
    usable = correlation_id if correlation_id and _ID.fullmatch(correlation_id) else None
    token = _correlation_id.set(usable)
    try:
        yield
    finally:
        _correlation_id.reset(token)


def bind_correlation_id(correlation_id: str | None) -> None:
    """Like `correlate`, for the rest of the current task."""
    if correlation_id and _ID.fullmatch(correlation_id):
        _correlation_id.set(correlation_id)


def correlation_id() -> str | None:
    """The id that is bound here, if any."""
    return _correlation_id.get()


def redact(text: str) -> str:
    """Strikes out what looks like a secret."""
    return _SECRETS.sub(
        lambda found: "".join(part for part in found.groups() if part) + "[redacted]", text
    )


def to_stderr(service: str, level: LogLevel, form: LogFormat) -> Callable[[], None]:
    """Sends the root logger's lines to stderr in place of its other handlers.

    Returns:
        A function that puts the root logger back as it was.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service) if form is LogFormat.JSON else TextFormatter())
    handler.addFilter(_CollectorNews())
    root = logging.getLogger()
    before, before_level = list(root.handlers), root.level
    root.handlers[:] = [handler]
    root.setLevel(level.number)
    # At the debug level Pillow tells of every chunk of every file.
    pillow = logging.getLogger("PIL")
    pillow.setLevel(max(level.number, logging.INFO))

    def undo() -> None:
        root.handlers[:] = before
        root.setLevel(before_level)
        pillow.setLevel(logging.NOTSET)

    return undo


def to_provider(provider: "LoggerProvider") -> Callable[[], None]:
    """Sends the root logger's lines to an OpenTelemetry logger provider as well.

    Returns:
        A function that stops it.
    """
    handler = OtlpHandler(provider)
    root = logging.getLogger()
    root.addHandler(handler)
    return lambda: root.removeHandler(handler)


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO mapseek.inference: message key=value trace=…`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the lines of a traceback after it."""
        fields = {**_extras(record), **_ids()}
        # A line break or an escape sequence in a file's name must not forge a line.
        line = record.getMessage() + "".join(f" {key}={value}" for key, value in fields.items())
        head = f"{_when(record)} {record.levelname} {record.name}: "
        tail = _traceback(record)
        return redact(head + line.translate(_CONTROL) + (f"\n{tail}" if tail else ""))


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record's own fields last, so that they cannot replace ours."""
        fields: dict[str, Any] = {
            "time": _when(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
            "service": self._service,
            **_ids(),
        }
        if tail := _traceback(record):
            fields["exception"] = redact(tail)
        for key, value in _extras(record).items():
            fields.setdefault(key, redact(value) if isinstance(value, str) else value)
        return json.dumps(fields, default=lambda value: redact(str(value)))


class OtlpHandler(logging.Handler):
    """Hands log records to OpenTelemetry, which adds the current trace and span.

    The SDK's own handler is deprecated, and would send what `redact` strikes out.
    """

    def __init__(self, provider: "LoggerProvider") -> None:
        super().__init__()
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        """Queues the record; the SDK sends it from a thread of its own."""
        # The exporter's complaints about exporting must not be exported.
        if record.name.startswith(("opentelemetry", "grpc")):
            return
        from opentelemetry._logs import LogRecord, SeverityNumber  # noqa: PLC0415  only when on

        severity = {
            logging.DEBUG: SeverityNumber.DEBUG,
            logging.INFO: SeverityNumber.INFO,
            logging.WARNING: SeverityNumber.WARN,
            logging.ERROR: SeverityNumber.ERROR,
            logging.CRITICAL: SeverityNumber.FATAL,
        }
        try:
            attributes: dict[str, Any] = {
                key: redact(value) if isinstance(value, str) else value
                for key, value in _extras(record).items()
                if isinstance(value, str | bool | int | float)
            }
            if bound := correlation_id():
                attributes["correlation_id"] = bound
            if record.exc_info and record.exc_info[0] is not None:
                attributes["exception.type"] = record.exc_info[0].__name__
                attributes["exception.message"] = redact(str(record.exc_info[1]))
                attributes["exception.stacktrace"] = redact(_traceback(record))
            self._provider.get_logger(record.name).emit(
                LogRecord(
                    timestamp=int(record.created * 1e9),
                    severity_text=record.levelname,
                    severity_number=severity.get(record.levelno, SeverityNumber.UNSPECIFIED),
                    body=redact(record.getMessage()),
                    attributes=attributes,
                )
            )
        except Exception:  # noqa: BLE001  logging never breaks the work that it tells about
            self.handleError(record)


class _CollectorNews(logging.Filter):
    """Lets through what the OpenTelemetry SDK says once in a while, not at every failed export."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("opentelemetry"):
            return True
        with self._lock:
            if record.levelno < logging.WARNING or record.created < self._next:
                return False
            self._next = record.created + _COLLECTOR_NEWS_EVERY_S
            return True


def _when(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ids() -> dict[str, str]:
    ids: dict[str, str] = {}
    if bound := correlation_id():
        ids["correlation_id"] = bound
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        ids["trace_id"] = trace.format_trace_id(span.trace_id)
        ids["span_id"] = trace.format_span_id(span.span_id)
    return ids


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}


def _traceback(record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(logging.Formatter().formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)
