"""A child process that ends when its parent does, however that one ends.

The parent holds the one end of a pipe and the child the other. When the parent is gone, were it by
SIGKILL, the kernel closes its end, and the child hears of it on any Unix.
"""

import os
import signal
import threading
from collections.abc import Callable, Mapping

_VARIABLE = "MAPSEEK_TETHER_FD"


class Tether:
    """The parent's end; give `environment` and `pass_fds` to every child that shall hang on it."""

    def __init__(self) -> None:
        # The writing end is not inherited by anybody, so it closes with this process.
        self._child_end, self._own_end = os.pipe()
        self.environment: Mapping[str, str] = {_VARIABLE: str(self._child_end)}
        self.pass_fds = (self._child_end,)

    def close(self) -> None:
        """Lets go: children that are still there end."""
        os.close(self._own_end)
        os.close(self._child_end)


def hold(on_end: Callable[[], None] | None = None) -> None:
    """The child's part: when the parent is gone, asks this process to end by SIGTERM.

    Does nothing in a process that no parent tethered.

    Args:
        on_end: Called instead, on a thread of its own.
    """
    # Taken out, so that what this process starts does not hang on a pipe that it does not have.
    descriptor = os.environ.pop(_VARIABLE, "")
    if descriptor.isdecimal():
        threading.Thread(
            target=_wait, args=(int(descriptor), on_end or _terminate), name="tether", daemon=True
        ).start()


def _wait(descriptor: int, on_end: Callable[[], None]) -> None:
    os.set_inheritable(descriptor, False)
    try:
        while os.read(descriptor, 1):
            pass
    except OSError:  # it is no pipe of ours
        return
    on_end()


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
