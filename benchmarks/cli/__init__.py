"""`mapseek bench`: measure it yourself."""

# In the order of the list of commands: they are part of it once they are imported.
from benchmarks.cli import serving  # noqa: F401, I001
from benchmarks.cli import finding  # noqa: F401
from benchmarks.cli import enduring  # noqa: F401
from benchmarks.cli.shared import app

__all__ = ["app"]
