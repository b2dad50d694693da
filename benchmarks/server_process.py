"""A mapseek server in a process of its own, on loopback, for as long as a benchmark needs it."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.memory import rss_bytes
from inference.errors import StartupError

_SETTINGS = ("MAPSEEK_", "OTEL_")
_PROGRAM = (
    "import sys; from inference.server import run; from inference.settings import ServerSettings; "
    "sys.exit(run(ServerSettings.load()))"
)
_START_S = 120.0
_STOP_S = 30.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A server that is up.

    Attributes:
        address: HOST:PORT.
        process: Its process.
        cold_start_s: Seconds from the start of the process until health said SERVING.
        rss_at_start_bytes: Its resident memory at that moment.
        output: What it has printed; readable inside the block.
    """

    address: str
    process: "subprocess.Popen[bytes]"
    cold_start_s: float
    rss_at_start_bytes: int
    output: IO[str]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def last_words(self) -> list[str]:
        """The last lines that it printed."""
        return _tail(self.output)


@contextmanager
def run_server(
    model: Path,
    settings: Mapping[str, str] | None = None,
    *,
    program: str = _PROGRAM,
    start_s: float = _START_S,
) -> Iterator[RunningServer]:
    """Runs a server for the length of the block.

    Args:
        model: The model folder to serve.
        settings: `MAPSEEK_*` variables for it, by lower-case name without the prefix.
        program: Python text to run instead of the server, which may read its stdin.
        start_s: How long it may take until it serves, in seconds.

    Raises:
        StartupError: It did not come up; the message ends with its last words.
    """
    address = f"127.0.0.1:{free_port()}"
    # A developer's own settings must not change a figure.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    given = {f"MAPSEEK_{name.upper()}": value for name, value in (settings or {}).items()}
    with tempfile.TemporaryFile("w+") as words, tempfile.TemporaryDirectory() as no_env_file:
        started = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-c", program],
            env={
                **kept,
                "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path),
                "MAPSEEK_LOG_LEVEL": "warning",
                # Should a library crash, its stack is among the last words.
                "PYTHONFAULTHANDLER": "1",
                **given,
                "MAPSEEK_MODEL": str(model.resolve()),
                "MAPSEEK_LISTEN": address,
            },
            cwd=no_env_file,
            stdin=subprocess.DEVNULL if program == _PROGRAM else subprocess.PIPE,
            stdout=words,
            stderr=words,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then stops the server
        )
        try:
            _wait_until_serving(process, address, words, start_s)
            yield RunningServer(
                address=address,
                process=process,
                cold_start_s=time.perf_counter() - started,
                rss_at_start_bytes=rss_bytes(process.pid),
                output=words,
            )
        finally:
            _stop(process)


def is_serving(address: str, *, timeout_s: float = 2.0) -> bool:
    """Asks a server's health once."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _wait_until_serving(
    process: "subprocess.Popen[bytes]", address: str, words: IO[str], start_s: float
) -> None:
    deadline = time.monotonic() + start_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartupError(
                f"The server ended with status {process.returncode} before it served:\n"
                + "\n".join(_tail(words))
            )
        if is_serving(address, timeout_s=_POLL_S * 10):
            return
        time.sleep(_POLL_S)
    raise StartupError(
        f"The server did not serve within {start_s:g} s:\n" + "\n".join(_tail(words))
    )


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(words: IO[str], lines: int = 20) -> list[str]:
    words.seek(0)
    return words.read().splitlines()[-lines:]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return int(port)
