"""The peers' environment, and a peer's process for as long as a benchmark needs it."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

import benchmarks.peers
from benchmarks.load import Body
from benchmarks.peers.worker import MODEL
from benchmarks.server_process import free_port
from inference.errors import StartupError

REQUIREMENTS = Path(benchmarks.peers.__file__).with_name("requirements.txt")

_START_S = 120.0
_STOP_S = 10.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server to measure.

    Attributes:
        name: What it is called.
        module: What `python -m` runs.
        port_option: What stands before the port on its command line.
        body: What a request to it holds; None where it speaks mapseek's own protocol.
        path: Where it is asked.
    """

    name: str
    module: str
    port_option: tuple[str, ...] = ()
    body: Body | None = None
    path: str = ""

    def address(self, port: int) -> str:
        """Where `LoadProcess` finds it."""
        return f"127.0.0.1:{port}" if self.body is None else f"http://127.0.0.1:{port}/{self.path}"

    def embedding(self, answer: bytes) -> NDArray[np.float32]:
        """The vector in an answer over HTTP."""
        if self.body == "json":
            return np.array(json.loads(answer)["embedding"], np.float32)
        return np.frombuffer(answer, np.float32)


PEERS = (
    Peer(
        name="mosec",
        module="benchmarks.peers.mosec_server",
        port_option=("--port",),
        body="image",
        path="inference",
    ),
    Peer(name="LitServe", module="benchmarks.peers.litserve_server", body="json", path="predict"),
    Peer(name="plain grpc.aio", module="benchmarks.peers.plain_server"),
)


def environment(folder: Path) -> Path:
    """Makes an environment with the peers, once, and returns its Python.

    Raises:
        StartupError: They cannot be installed.
    """
    python, done = folder / "bin" / "python", folder / "installed"
    wanted = REQUIREMENTS.read_text()
    if done.exists() and done.read_text() == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    ended = subprocess.run(  # noqa: S603  our own requirements
        [*pip, "-r", str(REQUIREMENTS)], check=False, capture_output=True, text=True
    )
    if ended.returncode:
        raise StartupError(f"The peers cannot be installed into {folder}:\n{ended.stderr[-2000:]}")
    done.write_text(wanted)
    return python


@contextmanager
def run_peer(peer: Peer, python: Path, model: Path) -> Iterator[str]:
    """Runs a peer for the length of the block; yields its address.

    Raises:
        StartupError: It did not come up; the message ends with its last words.
    """
    port = free_port()
    with tempfile.TemporaryFile("w+") as words, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(  # noqa: S603  our own program
            [python, "-m", peer.module, *peer.port_option, str(port)],
            env={
                **os.environ,
                # Ours first: the same onnxruntime and Pillow for everybody.
                "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
                MODEL: str(model.resolve()),
            },
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            start_new_session=True,
        )
        try:
            _wait_until_it_listens(process, peer, port, words)
            yield peer.address(port)
        finally:
            # Its workers are processes of its own session.
            for number in (signal.SIGTERM, signal.SIGKILL):
                _signal(process.pid, number)
                if number is signal.SIGTERM:
                    _wait(process)
            process.wait()


def _wait_until_it_listens(
    process: "subprocess.Popen[bytes]", peer: Peer, port: int, words: IO[str]
) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(_POLL_S)
    words.seek(0)
    raise StartupError(f"{peer.name} did not start:\n" + words.read()[-2000:])


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _wait(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        return
