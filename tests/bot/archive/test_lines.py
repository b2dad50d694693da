"""Export to JSON lines and import from them, good ones and hostile ones."""

import base64
import gzip
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bot.archive.embedded import EmbeddedArchive
from bot.archive.port import ArchiveError, EntriesRefusedError, Entry, EntryKey
from bot.cli.main import app
from bot.importer.found import SourceError
from bot.moving.comparing import digest
from bot.moving.files import Imported, Importer, export_lines, numbered
from bot.moving.lines import MOST_BYTES, LineError, dump, load

MakeEntry = Callable[..., Entry]


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[EmbeddedArchive]:
    async with EmbeddedArchive(tmp_path / "maps.db") as archive:
        yield archive


async def stored(archive: EmbeddedArchive) -> dict[EntryKey, bytes]:
    return {entry.key: digest(entry) async for entry in archive.entries()}


async def import_(archive: EmbeddedArchive, data: bytes, **options: Any) -> Imported:
    importer = Importer(archive, **options)
    await importer.run(io.BytesIO(data))
    return importer.imported


async def test_all_that_was_exported_is_imported(
    tmp_path: Path, archive: EmbeddedArchive, make_entry: MakeEntry
) -> None:
    vectors = np.random.default_rng(0).standard_normal((600, 7))
    entries = [make_entry(vector, message=str(n)) for n, vector in enumerate(vectors)]
    odd = make_entry(
        vectors[0],
        author='Zoë\u2028"\n\x00🗺',
        posted_at=datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=timezone(-timedelta(hours=3))),
        user_id="",
        content_hash="",
        spoiler=True,
        file_size=2**63 - 1,
    )
    await archive.upsert_many([*entries, odd, replace(entries[0], model_id="other@1")])
    file = io.BytesIO()
    assert await export_lines(archive, file) == 602
    assert file.getvalue().count(b"\n") == 602
    async with EmbeddedArchive(tmp_path / "other.db") as other:
        imported = await import_(other, file.getvalue())
        assert imported == Imported(stored=602)
        assert await stored(other) == await stored(archive)
        again = await import_(other, file.getvalue())
        assert again == Imported(there=602)
    only = io.BytesIO()
    assert await export_lines(archive, only, model_id="other@1") == 1


def test_a_line_is_what_the_documentation_says(make_entry: MakeEntry) -> None:
    entry = make_entry([0.6, 0.8], message="5", attachment="6", spoiler=True, day=0)
    documented = (Path(__file__).parents[3] / "docs" / "jsonl.md").read_text()
    line = json.loads(dump(entry))
    for name in line:
        assert f"| `{name}` |" in documented
    example = documented.split("```json\n")[1].split("```")[0]
    assert load(example.encode()).picture.key.message_id
    assert json.loads(example).keys() == line.keys()
    vector = np.frombuffer(base64.b64decode(line["embedding"]), "<f4")
    np.testing.assert_array_equal(vector, entry.embedding)
    assert line["posted_at"] == "2024-01-01T00:00:00Z"


def encoded(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


HOSTILE: list[tuple[Any, str]] = [
    (b"", ""),
    (b"null", "object"),
    (b"[]", "object"),
    (b'{"model_id": "x"}', "required"),
    (b"\xff\xfe{}", "invalid"),
    (b"not json", "JSON"),
    (b"[" * 100_000, "JSON"),
    (b"{" + b" " * MOST_BYTES + b"}", "longer than"),
    ({"spoler": True}, "spoler"),
    ({"spoiler": "no"}, "spoiler"),
    ({"message_id": ""}, "message_id"),
    ({"message_id": 5}, "message_id"),
    ({"author": "x" * 10_001}, "author"),
    ({"posted_at": "2024-01-01T00:00:00"}, "posted_at"),
    ({"posted_at": "0001-01-01T00:00:00+10:00"}, "posted_at"),
    ({"posted_at": "yesterday"}, "posted_at"),
    ({"width": -1}, "width"),
    ({"file_size": 2**63}, "file_size"),
    ({"file_size": 1.5}, "file_size"),
    ({"embedding": "%%%"}, "base64"),
    ({"embedding": "AAAA"}, "base64"),
    ({"embedding": encoded(0.5, 0.5)}, "length 0.7"),
    ({"embedding": encoded(float("nan"), 1)}, "length nan"),
    ({"embedding": encoded(1, 0, 0)}, "has 3 numbers, but its model makes 2"),
    ({"embedding": ""}, "embedding"),
]


@pytest.mark.parametrize(("hostile", "reason"), HOSTILE)
async def test_hostile_lines_are_named_and_stop_nothing(
    archive: EmbeddedArchive, make_entry: MakeEntry, hostile: Any, reason: str
) -> None:
    good = [dump(make_entry([1, 0])), dump(make_entry([0, 1]))]
    if isinstance(hostile, dict):
        hostile = json.dumps(json.loads(dump(make_entry([1, 0]))) | hostile).encode()
    imported = await import_(archive, good[0] + hostile + b"\n" + good[1])
    assert imported.stored == 2
    if reason:
        (bad,) = imported.bad_lines
        assert bad.number == 2
        assert reason in bad.reason
        assert len(bad.reason) < 300
    else:
        assert imported.bad == 0


def test_a_lone_surrogate_is_no_text(make_entry: MakeEntry) -> None:
    line = dump(make_entry()).replace(b'"Alice"', rb'"\ud800"')
    with pytest.raises(LineError):
        load(line)


@pytest.mark.parametrize("replacing", [False, True])
async def test_of_an_entry_that_comes_twice_the_first_counts_or_with_replace_the_last(
    archive: EmbeddedArchive, make_entry: MakeEntry, *, replacing: bool
) -> None:
    first, last = make_entry([1, 0], message="m"), make_entry([0, 1], message="m")
    data = dump(first) + b"\n  \n" + dump(last).rstrip()  # the last line needs no end
    imported = await import_(archive, data, replace=replacing)
    assert imported == (Imported(stored=2) if replacing else Imported(stored=1, there=1))
    counts = last if replacing else first
    assert await stored(archive) == {counts.key: digest(counts)}


async def test_replacing_is_asked_for(archive: EmbeddedArchive, make_entry: MakeEntry) -> None:
    before = make_entry([1, 0], message="m")
    after = replace(before, picture=replace(before.picture, author="Bob"))
    await archive.upsert_many([before])
    assert await import_(archive, dump(after)) == Imported(there=1)
    assert await stored(archive) == {before.key: digest(before)}
    assert await import_(archive, dump(after), replace=True) == Imported(stored=1)
    assert await stored(archive) == {after.key: digest(after)}


async def test_an_interrupted_import_goes_on(
    tmp_path: Path, archive: EmbeddedArchive, make_entry: MakeEntry
) -> None:
    class Dying(EmbeddedArchive):
        left = 1

        async def upsert_many(self, entries: Sequence[Entry]) -> None:
            if not self.left:
                raise ArchiveError("The archive is gone.")
            self.left -= 1
            await super().upsert_many(entries)

    data = b"".join(dump(make_entry()) for _ in range(600))
    async with Dying(tmp_path / "maps.db") as dying:
        importer = Importer(dying)
        with pytest.raises(ArchiveError):
            await importer.run(io.BytesIO(data))
    kept = importer.imported.stored
    assert 0 < kept < 600
    assert await import_(archive, data) == Imported(stored=600 - kept, there=kept)


async def test_what_the_archive_refuses_is_named_by_its_line(
    tmp_path: Path, make_entry: MakeEntry
) -> None:
    class Refusing(EmbeddedArchive):
        async def upsert_many(self, entries: Sequence[Entry]) -> None:
            await super().upsert_many(entries[:1])
            raise EntriesRefusedError({entries[1].key: "too large"})

    async with Refusing(tmp_path / "maps.db") as archive:
        imported = await import_(archive, dump(make_entry()) + dump(make_entry()))
    assert (imported.stored, imported.bad) == (1, 1)
    assert (imported.bad_lines[0].number, imported.bad_lines[0].reason) == (2, "too large")


def test_endless_lines_take_no_memory() -> None:
    class Endless(io.RawIOBase):
        left = 300 * MOST_BYTES

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            size = min(len(buffer), self.left)
            buffer[:size] = b"x" * size
            self.left -= size
            return size

    assert list(numbered(io.BufferedReader(Endless()))) == [(1, None)]


def mapseek(*arguments: object, data: bytes | None = None) -> Result:
    words = [str(argument) for argument in ("archive", *arguments)]
    return CliRunner().invoke(app, words, input=data)


def test_the_commands(
    tmp_path: Path, make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = b"".join(dump(make_entry()) for _ in range(5))
    done = mapseek("import", "-", data=data + b"oops\n")
    assert done.exit_code == 1
    assert "5 stored, 1 lines skipped" in done.stdout
    assert "line 6: " in done.stdout
    done = mapseek("export", "maps.jsonl.gz")
    assert done.exit_code == 0, done.output
    assert gzip.decompress(Path("maps.jsonl.gz").read_bytes()) == data
    assert "already" in mapseek("export", "maps.jsonl.gz").stderr
    assert mapseek("export", "maps.jsonl.gz", "--force").exit_code == 0
    assert mapseek("export", "none/maps.jsonl").exit_code == 1
    assert mapseek("export", "x.jsonl", "--model", "none@1").exit_code == 2
    assert mapseek("import", "maps.jsonl.gz", "--archive", "other.db").exit_code == 0
    assert mapseek("export", "-", "--archive", "other.db").stdout_bytes == data
    assert mapseek("import", "none.jsonl").exit_code == 1
    Path("cut.jsonl.gz").write_bytes(Path("maps.jsonl.gz").read_bytes()[:-20])
    cut = mapseek("import", "cut.jsonl.gz", "--archive", "cut.db")
    assert cut.exit_code == 1
    assert "damaged" in cut.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        *("mapseek.db", "other.db", "cut.db", "maps.jsonl.gz", "cut.jsonl.gz")
    }


def test_damaged_compression_is_a_sentence(make_entry: MakeEntry) -> None:
    data = gzip.compress(b"".join(dump(make_entry()) for _ in range(50)))
    for damaged in (data[:-30], data[:40] + b"\0\0\0\0" + data[44:], b"no gzip"):
        with pytest.raises(SourceError, match="damaged after line"):
            list(numbered(cast("BinaryIO", gzip.GzipFile(fileobj=io.BytesIO(damaged)))))


def test_a_reader_that_goes_away_ends_the_export(tmp_path: Path, make_entry: MakeEntry) -> None:
    file = tmp_path / "maps.jsonl"
    file.write_bytes(b"".join(dump(make_entry()) for _ in range(2000)))
    assert mapseek("import", file, "--archive", tmp_path / "maps.db").exit_code == 0
    command = [sys.executable, "-m", "bot.cli.main", "archive", "export", "-"]
    with subprocess.Popen(
        [*command, "--archive", tmp_path / "maps.db"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        complaint = process.stderr.read().decode()
    assert "Traceback" not in complaint
    assert process.returncode == 1
