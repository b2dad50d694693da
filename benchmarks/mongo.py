"""The MongoDB server of the tests and the proxy that makes an Atlas of it; see `discord`.

The server is SecantusDB, a process of its own under the GPL: it is never imported.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.discord import from_tests
from inference.errors import StartupError

if TYPE_CHECKING:
    from tests.bot.archive.atlas.proxy import AtlasProxy
    from tests.bot.archive.atlas.secantus import Secantus


@contextmanager
def atlas(folder: Path) -> Iterator[tuple["Secantus", "AtlasProxy"]]:
    """A server with its files in a folder, and the proxy before it.

    Raises:
        StartupError: This is no checkout of the project, or SecantusDB is not installed.
    """
    from_tests()
    from tests.bot.archive.atlas.proxy import AtlasProxy  # noqa: PLC0415  after `from_tests`
    from tests.bot.archive.atlas.secantus import MISSING, Secantus  # noqa: PLC0415

    if MISSING:
        raise StartupError(f"{MISSING}: `make .venv/.dev` installs it.")
    server = Secantus(folder, "--sync-on-commit")
    server.start()
    try:
        with AtlasProxy(server.address) as proxy:
            yield server, proxy
    finally:
        server.kill()
