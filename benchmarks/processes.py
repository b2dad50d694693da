"""The bot, the server and others as processes that can be killed and started again."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from inference.errors import StartupError

_SETTINGS = ("MAPSEEK_", "OTEL_")

SERVER = (
    "import sys; from inference.server import run; from inference.settings import ServerSettings; "
    "sys.exit(run(ServerSettings.load()))"
)
# The real bot, with another address for Discord.
BOT = (
    "import sys, disnake.http; disnake.http.Route.BASE = sys.argv[1]; "
    "from bot.app import run_bot; from bot.settings import BotSettings; "
    "sys.exit(run_bot(BotSettings.load()))"
)
# The same, and how late its event loop is goes into a file.
BOT_WATCHED = (
    "from bot import app; from benchmarks.lag import watched; import sys; "
    "app._run = watched(app._run, sys.argv[2]); "
) + BOT


class Process:
    """A Python program of ours.

    Args:
        program: Its code.
        arguments: What it is given.
        settings: `MAPSEEK_*` variables for it, by lower-case name without the prefix.
        folder: Where it runs, and where its output is kept.
        name: Names the file with its output.
    """

    def __init__(
        self,
        program: str,
        arguments: Sequence[str] = (),
        *,
        settings: Mapping[str, str],
        folder: Path,
        name: str,
    ) -> None:
        self._command = [sys.executable, "-c", program, *arguments]
        # A developer's own settings must not change what happens.
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_SETTINGS)}
        self._environment = {
            **kept,
            "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path),
            **{f"MAPSEEK_{key.upper()}": value for key, value in settings.items()},
        }
        self._folder = folder
        self.output = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "it was started"  # noqa: S101
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it, and does not wait until it is ready. One that runs already is killed first."""
        self.kill()
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  our own program
                self._command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Ends it at once, wherever it is."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, grace_s: float = 30.0) -> int:
        """Asks it to end, kills it where it does not, and returns its exit status."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def check(self) -> None:
        """Looks after it.

        Raises:
            StartupError: It has ended; the message has its last words.
        """
        if not self.alive:
            words = self.output.read_text(errors="replace").splitlines()[-20:]
            raise StartupError("\n".join([f"{self.output.stem} ended:", *words]))
