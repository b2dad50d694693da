"""`mapseek bench lucene` with a program in Java's place that speaks the same lines."""

import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

from benchmarks.cli import app
from benchmarks.lucene.bench import ASKED, LuceneOptions, bench_lucene
from inference.errors import StartupError

# Takes the same arguments as Lucene.java. Exact searches are exact; the others find the same, but
# over int8 they end with the best, and with few candidates they miss it.
_JAVA = f"""#!{sys.executable}
import os, sys
import numpy as np
if sys.argv[1:] == ["-version"]:
    sys.exit(0)
_, jar, _, _, program, folder, index, *numbers = sys.argv[1:]
dimensions, size, quantization, asked, rounds, *candidates = numbers
assert os.path.exists(jar) and program.endswith("Lucene.java")
assert os.listdir(index) == []
queries, vectors = (
    np.fromfile(f"{{folder}}/{{name}}.f32", "<f4").reshape(-1, int(dimensions))
    for name in ("queries", "vectors")
)
with open(f"{{jar}}.pid", "w") as file:
    file.write(str(os.getpid()))
print("lucene 9.9.1 java 17")
print("indexed", size, flush=True)
for _ in range(int(rounds)):
    for some in map(int, candidates):
        for number, query in enumerate(queries):
            best = np.argsort(-(vectors[: int(size)] @ query))[: int(asked)].tolist()
            if some == 5 * int(asked):
                best = best[1:]
            if some and quantization == "scalar":
                best.reverse()
            print("found", some, number, 1_000_000 * (some + 1), *best)
sys.stdout.flush()
"""
_NEEDED = "org/apache/lucene/codecs/lucene99/Lucene99HnswScalarQuantizedVectorsFormat.class"
REAL = os.environ.get("MAPSEEK_TEST_LUCENE_JAR", "")


@pytest.fixture
def jar(tmp_path: Path) -> Path:
    path = tmp_path / "lucene.jar"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(_NEEDED, b"")
    return path


@pytest.fixture
def java(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "java"
        path.write_text(text)
        path.chmod(0o755)
        return path

    return write


def bench(model: Path, *arguments: object) -> Result:
    few = ("--maps", 12, "--searches", 6, "--size", 60, "--size", 40)
    return CliRunner().invoke(app, [str(one) for one in ("lucene", "-m", model, *few, *arguments)])


def rows_of(out: Path) -> list[dict[str, Any]]:
    found = json.loads(out.read_text())
    assert found["complete"]
    rows: list[dict[str, Any]] = found["data"]["rows"]
    assert [(row["pictures"], row["quantization"], row["candidates"]) for row in rows] == [
        (size, quantization, None if per_hit is None else per_hit * ASKED)
        for size in (40, 60)
        for quantization in ("none", "scalar")
        for per_hit in (None, 5, 10, 20, 50)
    ]
    return rows


def test_lucene(model: Path, tmp_path: Path, jar: Path, java: Callable[[str], Path]) -> None:
    out, plot = tmp_path / "lucene.json", tmp_path / "lucene.svg"
    what = ("--jar", jar, "--java", java(_JAVA), "--json", out, "--plot", plot)
    done = bench(model, *what)
    assert done.exit_code == 0, done.output
    assert "<svg" in plot.read_text()
    assert "lucene 9.9.1 java 17" in done.output
    for row in rows_of(out):
        assert row["latency"]["count"] == 6 * 3
        assert row["latency"]["p50_ms"] == pytest.approx((row["candidates"] or 0) + 1)
        missed = row["candidates"] == 5 * ASKED
        assert row["reranked"] == pytest.approx(2 / 3 if missed else 1)
        if row["quantization"] == "none" or row["candidates"] is None:
            assert row["recall"] == row["reranked"]
        else:  # the worst of the hits came first
            assert row["recall"] == 0


def test_ctrl_c_keeps_what_was_measured_and_ends_the_program(
    model: Path, jar: Path, java: Callable[[str], Path]
) -> None:
    def stop(what: str, done: float) -> None:
        if what.startswith("indexing 60"):
            raise KeyboardInterrupt

    # At the second size it would never end by itself.
    endless = "iter(int, 1) if size == '60' else range(int(rounds))"
    program = java(_JAVA.replace("range(int(rounds))", endless))
    options = LuceneOptions(
        jar=jar, java=str(program), sizes=[40, 60], model=model, maps=12, searches=6
    )
    report, rows = bench_lucene(options, stop)
    assert not report.complete
    assert {row.pictures for row in rows} == {40}
    assert len(rows) == 10
    assert not psutil.pid_exists(int(Path(f"{jar}.pid").read_text()))


def test_what_is_missing_is_said_before_anything_is_drawn(
    model: Path, tmp_path: Path, jar: Path, java: Callable[[str], Path]
) -> None:
    works = java(_JAVA)
    (tmp_path / "text.jar").write_text("x")
    with zipfile.ZipFile(tmp_path / "other.jar", "w") as file:
        file.writestr("a.class", b"")
    for found_jar, found_java, sentence in (
        (tmp_path / "none.jar", works, "none.jar is no jar that can be read"),
        (tmp_path / "text.jar", works, "text.jar is no jar that can be read"),
        (tmp_path / "other.jar", works, "There is no Lucene 9.9 in .*other.jar: take lucene-core"),
        (jar, tmp_path / "nowhere", "Java does not run .*--java"),
        (jar, "false", "Java does not run .*--java"),
    ):
        error = bench(model, "--jar", found_jar, "--java", found_java).exception
        with pytest.raises(StartupError, match=sentence):
            raise error or AssertionError


def test_the_last_words_of_the_program_are_told(
    model: Path, jar: Path, java: Callable[[str], Path]
) -> None:
    broken = java('#!/bin/sh\n[ "$1" = -version ] || { echo "no such class" >&2; exit 1; }\n')
    error = bench(model, "--jar", jar, "--java", broken).exception
    assert isinstance(error, StartupError)
    assert str(error) == "The program in Java failed:\nno such class\n"


@pytest.mark.skipif(not REAL, reason="MAPSEEK_TEST_LUCENE_JAR names no jar with Lucene 9.9")
def test_the_real_lucene_finds_what_is_there(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "lucene.json"
    done = bench(model, "--jar", REAL, "--json", out)
    assert done.exit_code == 0, done.output
    for row in rows_of(out):
        assert row["reranked"] == 1  # more candidates than there are vectors
        assert 0 < row["latency"]["p50_ms"] < 1000
        if row["quantization"] == "none":
            assert row["recall"] == 1
