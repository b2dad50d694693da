"""What `make demo` and `make test` do on a machine that lacks something."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A Python as Debian has it before `apt install python3-venv`, until the file `venv` is there.
PYTHON = """\
#!/bin/sh
[ "$1" = -m ] || exit 0
mkdir -p "$3/bin" && ln -sf /bin/sh "$3/bin/python" && echo half-made >> log
[ -e venv ]
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_an_environment_that_was_made_half_way_is_made_again(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}

    def make() -> int:
        command = ["make", ".venv/bin/python", "PYTHON=./python", "VENV=.venv"]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, check=False
        ).returncode

    assert make() != 0
    (tmp_path / "venv").touch()
    assert make() == 0
    assert make() == 0
    assert (tmp_path / "log").read_text().splitlines() == ["half-made"] * 2
