"""The loopback Discord of the tests, for the benchmarks that need one.

It is part of the tests, which are in the project's folder and not in an installed wheel: whoever
measures the bot has that folder. So the 1,000 lines are kept once, where they are also tested.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from inference.errors import StartupError

if TYPE_CHECKING:
    from tests.bot.discord.loopback import Discord

_ROOT = Path(__file__).resolve().parents[1]


def from_tests() -> None:
    """Makes the tests' modules importable.

    Raises:
        StartupError: This is no checkout of the project.
    """
    if not (_ROOT / "tests" / "bot" / "discord" / "loopback.py").is_file():
        raise StartupError(
            "The loopback Discord is in mapseek's tests: run this from a checkout of the project."
        )
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))


def loopback() -> "Discord":
    """A Discord on this machine; enter it to start it.

    Raises:
        StartupError: This is no checkout of the project.
    """
    from_tests()
    from tests.bot.discord.loopback import Discord  # noqa: PLC0415  see above

    return Discord()


def token() -> str:
    """What the bot has to say to be let in."""
    from tests.bot.discord.loopback import TOKEN  # noqa: PLC0415  after `loopback`

    return TOKEN
