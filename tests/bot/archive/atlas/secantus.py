"""SecantusDB as a process of its own: a MongoDB server for tests, without search.

It is under the GPL, so nothing of it is imported, here or anywhere.
"""

import importlib.util
import re
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pymongo import MongoClient

MISSING = (
    ""
    if importlib.util.find_spec("secantus")
    else "SecantusDB, the MongoDB server of these tests, is not installed: it has no wheel for "
    "this Python or platform"
)


class Secantus:
    """The process. May be killed and started again on the same port and files.

    Args:
        folder: Where its files lie; None keeps them nowhere.
        options: More of its command line.
    """

    def __init__(self, folder: Path | None = None, *options: str) -> None:
        self._storage = ":memory:" if folder is None else str(folder)
        self._options = options
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        return f"mongodb://{self.address}/?directConnection=true"

    def start(self) -> None:
        """Returns when it listens."""
        self._process = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("secantusd-py")), "--host", "127.0.0.1"),
                *("--port", str(self.port), "--storage-path", self._storage),
                *("--cache-size", "64M", "--enable-test-commands", *self._options),
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        log = self._process.stderr
        assert log is not None
        for line in log:
            if found := re.search(r"listening on [\d.]+:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError("SecantusDB did not start")
        # Read on, so that it never waits for somebody to read its log.
        self._reading = threading.Thread(target=deque, args=(log, 0), name="secantus-log")
        self._reading.start()

    def kill(self) -> None:
        """Ends it as a power cut does."""
        self._end("kill")

    def stop(self) -> None:
        """Ends it in good order."""
        self._end("terminate")

    def _end(self, how: str) -> None:
        if self._process is not None:
            getattr(self._process, how)()
            self._process.wait()
            self._reading.join()
            assert self._process.stderr is not None
            self._process.stderr.close()
            self._process = None

    def command(self, *command: Any, **fields: Any) -> None:
        """One command to its `admin` database."""
        client: MongoClient[dict[str, Any]] = MongoClient(self.uri)
        with client:
            client.admin.command(*command, **fields)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
