"""How long an event loop in another process keeps whatever has come waiting."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_EVERY_S = 0.1


def watched(run: Callable[_P, Awaitable[_T]], file: str) -> Callable[_P, Awaitable[_T]]:
    """The coroutine function, writing down beside it how late its loop wakes a sleeper.

    Args:
        run: What runs in the loop.
        file: A line for each time, in seconds.
    """

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        with Path(file).open("w", buffering=1) as out:  # noqa: ASYNC230 (a line, now and then)
            while True:
                due_s = loop.time() + _EVERY_S
                await asyncio.sleep(_EVERY_S)
                out.write(f"{loop.time() - due_s:.6f}\n")

    async def both(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        watching = asyncio.create_task(watch())
        try:
            return await run(*args, **kwargs)
        finally:
            watching.cancel()

    return both


def lags(file: Path) -> list[float]:
    """What was written down, in seconds; a line that is being written is left out."""
    text = file.read_text() if file.is_file() else ""
    return [float(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
