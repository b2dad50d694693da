"""`mapseek demo`: the main job once, with the commands that anyone would type.

Nothing here is a shortcut: a server is started on the bundled model, `mapseek index` fills a new
archive from the sample export, a bad in-game picture of one of its maps is drawn, and
`mapseek find` has to find the map again.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.sample_archive import EXPORT_NAME, SAMPLE_DIR, map_pixels, sample_maps
from exporter.training.scenes import Kind, render_file

_READY_WITHIN_S = 30
_STOP_WITHIN_S = 15
# The commands run here, out of reach of the user's own `.env`, which is not for the demo.
_NO_SETTINGS = SAMPLE_DIR


def run_demo(out: Path, *, number: int, seed: int) -> int:
    """Runs the demo and leaves its pictures and archive in `out`.

    Args:
        out: Folder for the query, the sheet and the archive; an archive there is replaced.
        number: Which of the sample maps to look for, from 0.
        seed: Which bad picture of it to draw.

    Returns:
        The exit code: 0 when the map was found first, 1 when it was not or a command failed.
    """
    maps = sample_maps()
    wanted = maps[number % len(maps)]
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    archive, sheet = out / "demo.db", out / "sheet.png"
    for old in out.glob("demo.db*"):
        old.unlink()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mapseek-") as sockets:
        address = f"unix:{sockets}/server"
        _say("1. Start the embedding server on the bundled model")
        with _server(address):
            _say("2. Index the sample archive, a Discord export of maps drawn by the project")
            options = ["--archive", str(archive), "--server", address]
            if _mapseek("index", str(SAMPLE_DIR / EXPORT_NAME), *options) is None:
                return 1
            _say(f"3. Draw a bad in-game picture of {wanted.title!r}")
            data, suffix = render_file(map_pixels(wanted), np.random.default_rng(seed), Kind.POOR)
            query = out / f"query{suffix}"
            query.write_bytes(data)
            print(f"wrote {query}")
            _say("4. Find it")
            find = ["find", str(query), "--limit", "3", *options]
            shown = _mapseek(*find, "--sheet", str(sheet))
            answer = _mapseek(*find, "--json", quiet=True)
            if shown is None or answer is None:
                return 1
    first = json.loads(answer)["matches"][0]
    found = first["message_id"] == str(_message_id(number % len(maps)))
    _say(
        f"{'Found' if found else 'NOT found'} in {time.monotonic() - started:.0f} s. "
        f"See {sheet}: the query and its three nearest posts, side by side."
    )
    return 0 if found else 1


def _message_id(number: int) -> int:
    document = json.loads((SAMPLE_DIR / EXPORT_NAME).read_text())
    return int(document["messages"][number]["id"])


@contextlib.contextmanager
def _server(address: str) -> Iterator[None]:
    """A server process that is SERVING inside the block and has stopped cleanly after it."""
    command = [sys.executable, "-m", "bot.cli.main", "serve", "--listen", address]
    _show(command)
    started = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - our own program
        command, env=_environment(), cwd=_NO_SETTINGS
    )
    try:
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while True:
                if process.poll() is not None:
                    raise SystemExit(f"the server ended with exit code {process.returncode}")
                with contextlib.suppress(grpc.RpcError):
                    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=1)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        break
                if time.monotonic() - started > _READY_WITHIN_S:
                    raise SystemExit(f"the server was not ready within {_READY_WITHIN_S} s")
                time.sleep(0.05)
        print(f"serving after {time.monotonic() - started:.1f} s")
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        print(f"the server stopped with exit code {process.returncode}")


def _mapseek(*arguments: str, quiet: bool = False) -> str | None:
    """Runs one command and returns what it printed, or None when it failed."""
    command = [sys.executable, "-m", "bot.cli.main", *arguments]
    if not quiet:
        _show(command)
    done = subprocess.run(  # noqa: S603 - our own program
        command,
        env=_environment(),
        cwd=_NO_SETTINGS,
        stdout=subprocess.PIPE if quiet else None,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(f"mapseek {arguments[0]} ended with exit code {done.returncode}", file=sys.stderr)
        return None
    return done.stdout if quiet else ""


def _environment() -> dict[str, str]:
    """The environment without the user's own mapseek settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MAPSEEK_")}


def _show(command: list[str]) -> None:
    print(f"$ mapseek {shlex.join(command[3:])}", flush=True)


def _say(sentence: str) -> None:
    print(f"\n{sentence}", flush=True)
