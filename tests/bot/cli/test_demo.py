"""`mapseek demo`, with the real commands and sample, and a toy in the place of the model."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from benchmarks import demo
from bot.cli.main import app
from tests.bot.cli.toy import ROOT, ToyProcess


@contextlib.contextmanager
def toy(address: str) -> Iterator[None]:
    process = ToyProcess("--listen", address)
    yield
    process.close()


@pytest.mark.parametrize(("invert", "code"), [(False, 0), (True, 1)])
def test_it_says_whether_it_found_the_map(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    invert: bool,  # noqa: FBT001 - pytest passes it
    code: int,
) -> None:
    def easy(pixels: NDArray[np.uint8], *_: Any) -> tuple[bytes, str]:
        """The map itself, which any model finds, or its negative, which is another picture."""
        out = io.BytesIO()
        Image.fromarray(255 - pixels if invert else pixels).save(out, "PNG")
        return out.getvalue(), ".png"

    monkeypatch.setattr(demo, "_server", toy)
    monkeypatch.setattr(demo, "render_file", easy)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'proto'}")
    done = CliRunner().invoke(app, ["demo", "--out", "out", "--map", "2"])
    assert done.exit_code == code, done.output
    assert ("NOT found in" if invert else "Found in") in done.output
    assert "47 stored" in capfd.readouterr().out
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "demo.db",
        "out",
        "query.png",
        "sheet.png",
    ]
