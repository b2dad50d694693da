"""The `mapseek` command as people run it: what it prints, and how it exits."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bot.archive.embedded import EmbeddedArchive
from bot.cli.main import app
from tests.bot.cli.toy import ROOT, ToyProcess
from tests.bot.importer.exports import (
    CHANNEL,
    FIRST_MESSAGE,
    GUILD,
    attachment,
    media,
    message,
    picture_bytes,
    write,
)

MAPSEEK = (sys.executable, "-m", "bot.cli.main")
EVERY_COMMAND = ("serve", "bot", "up", "index", "find", "stats", "export", "demo", "bench")


# Runs a command for which the rights of files hold, as they do for everyone but root.
ORDINARY_USER = (
    sys.executable,
    "-c",
    """
import ctypes, os, sys
drop, (write_all, read_all) = 24, (1, 2)  # of prctl(2) and capabilities(7)
for right in (write_all, read_all):
    ctypes.CDLL(None).prctl(drop, right, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
""",
)


def run(
    *arguments: str | Path, prefix: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, *MAPSEEK, *map(str, arguments)],
        env=_environment() | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _environment() -> dict[str, str]:
    paths = f"{ROOT}{os.pathsep}{ROOT / 'proto'}"
    return {**os.environ, "PYTHONPATH": paths, "PYTHONFAULTHANDLER": "1"}


def ended(command: subprocess.Popen[str]) -> tuple[str, str]:
    """What a command printed; of one that hangs, where its threads are, too."""
    try:
        return command.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        command.send_signal(signal.SIGABRT)
        pytest.fail("it does not end:\n{}\n{}".format(*command.communicate(timeout=60)))


def assert_fails(done: subprocess.CompletedProcess[str], code: int, sentence: str) -> None:
    """It failed with one sentence on stderr, and with no traceback."""
    assert (done.returncode, done.stdout) == (code, ""), done
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def maps(folder: Path, count: int) -> Path:
    """An export with so many pictures in two channels' worth of messages."""
    folder.mkdir()
    messages = []
    for number in range(count):
        url = media(folder, f"{number:03}.png", picture_bytes(number))
        messages.append(message(number, attachments=[attachment(number, url)]))
    write(folder / "export.json", messages)
    return folder


def test_alone_it_shows_the_first_steps() -> None:
    done = run()
    assert done.returncode == 0
    for command in ("mapseek serve", "mapseek index PATH", "mapseek find IMAGE", "mapseek --help"):
        assert command in done.stdout


def test_the_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("mapseek 0.")


def test_help_lists_every_command_and_each_has_an_example() -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["--help"])
    assert listed.exit_code == 0
    for command in EVERY_COMMAND:
        assert f" {command} " in listed.output
        if command == "bench":  # its help is that of the benchmarks
            continue
        shown = runner.invoke(app, [command, "--help"])
        assert shown.exit_code == 0
        assert f"mapseek {command} " in shown.output.replace("Usage:", ""), shown.output


def test_help_imports_nothing_heavy() -> None:
    heavy = {
        "PIL", "aiohttp", "apsw", "disnake", "grpc", "ijson", "matplotlib", "numpy", "onnxruntime",
        "opentelemetry", "optimum", "pydantic", "sqlite_vec", "tokenizers", "torch", "transformers",
    }  # fmt: skip
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom bot.cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["index", "nothing-there"], "There is no file or folder nothing-there."),
        (
            ["find", "a.png"],
            "There is no archive at mapseek.db: make one with `mapseek index PATH`.",
        ),
        (["stats"], "There is no archive at mapseek.db"),
        (["stats", "--archive", "folder"], "folder is a folder, and the archive is a file"),
        (["stats", "--archive", "plain.json"], "plain.json is no mapseek archive: name another"),
        (["index", "plain.json"], "plain.json is no export of DiscordChatExporter"),
    ],
)
def test_failures_are_sentences(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain.json").write_text("{}" * 500)
    assert_fails(run(*arguments), 1, sentence)


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "locked/maps"],
        ["index", "maps", "--archive", "locked/maps.db"],
        ["stats", "--archive", "locked/maps.db"],
        ["archive", "export", "maps.jsonl", "--archive", "locked/maps.db"],
        ["demo", "--out", "locked/demo"],
    ],
)
def test_a_folder_that_may_not_be_looked_into_is_a_sentence(
    tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "locked").mkdir(mode=0)
    done = run(*arguments, prefix=ORDINARY_USER)
    assert_fails(done, 1, "Permission denied.")
    assert "locked/" in done.stderr


def test_a_name_that_no_file_can_have_is_a_sentence() -> None:
    assert_fails(run("index", "x" * 300), 1, "File name too long.")


@pytest.mark.parametrize("arguments", [["find"], ["find", "a.png", "--text", "red"]])
def test_find_wants_a_picture_or_words(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "give a picture or --text, and not both" in done.stderr


@pytest.mark.parametrize("command", ["find", "index"])
def test_an_address_is_no_file(command: str) -> None:
    done = run(command, "https://example.org/map.png")
    assert done.returncode == 2
    said = " ".join(done.stderr.replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ").split())
    assert "an address is not read from here: download what it leads to" in said


def test_a_wrong_setting_names_its_variable() -> None:
    assert_fails(run("stats", MAPSEEK_RESULTS="many"), 2, "MAPSEEK_RESULTS: ")


def test_without_a_server_it_says_how_to_start_one(process: ToyProcess, tmp_path: Path) -> None:
    maps(tmp_path / "maps", 1)
    sentence = "No server answers at 127.0.0.1:1: start one with `mapseek serve`."
    assert_fails(run("index", "maps", "--server", "127.0.0.1:1"), 1, sentence)
    assert not (tmp_path / "mapseek.db").exists()
    here = run("index", "maps", "--archive", ".")
    assert_fails(here, 1, ". is a folder, and the archive is a file")
    run("index", "maps")
    done = run("find", "maps/export.json_Files/000.png", "--server", "127.0.0.1:1")
    assert_fails(done, 1, sentence)


@pytest.mark.parametrize(
    ("command", "module", "extra"), [("bot", "disnake", "bot"), ("bench", "psutil", "bench")]
)
def test_a_missing_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, command: str, module: str, extra: str
) -> None:
    where = {"bot": "bot.app", "bench": "benchmarks.cli"}[command]
    monkeypatch.delitem(sys.modules, where, raising=False)
    for loaded in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)

    class Absent:
        """Answers as if the extra had never been installed."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == where:
                raise ModuleNotFoundError(f"No module named {module!r}", name=f"{module}.sub")

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    done = CliRunner().invoke(app, [command])
    assert done.exit_code == 1
    assert f"{module}.sub is not installed: run `pip install -e '.[{extra}]'`" in done.stderr


def test_index_find_and_stats(process: ToyProcess, tmp_path: Path) -> None:
    export = maps(tmp_path / "export", 30)
    (export / "export.json_Files" / "003.png").write_text("This content is no longer available.")

    done = run("index", export)
    assert done.returncode == 0, done.stderr
    assert "29 stored, 1 set aside. The archive is mapseek.db." in done.stdout
    assert "is no picture; perhaps it was gone already" in done.stdout
    assert f"003.png in message {FIRST_MESSAGE + 3}" in done.stdout

    again = run("index", export)
    assert again.returncode == 0
    assert "0 stored, 29 there already, 1 set aside." in again.stdout

    (tmp_path / "query.png").write_bytes(picture_bytes(7, side=64))
    found = run("find", "query.png", "--limit", "3")
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0].split() == ["#", "score", "verdict", "author", "date", "link"]
    link = f"https://discord.com/channels/{GUILD}/{CHANNEL}/{FIRST_MESSAGE + 7}"
    assert lines[1].split() == ["1", "1.000", "same", "map", "Alice", "2024-05-01", link]
    assert len(lines) == 6
    assert "mapseek-find.png" in lines[-1]
    assert (tmp_path / "mapseek-find.png").read_bytes().startswith(b"\x89PNG")

    as_json = run("find", "query.png", "--json", "--sheet", tmp_path / "other.png")
    answer = json.loads(as_json.stdout)
    assert len(answer["matches"]) == 5
    assert answer["matches"][0] | {"score": 1.0} == {
        "rank": 1,
        "score": 1.0,
        "verdict": "same map",
        "link": link,
        "image": str(export / "export.json_Files" / "007.png"),
        "author": "Alice",
        "user_id": "42",
        "posted_at": "2024-05-01T08:07:00.123000+00:00",
        "guild_id": GUILD,
        "channel_id": CHANNEL,
        "channel": "map-archive",
        "message_id": str(FIRST_MESSAGE + 7),
        "attachment_id": "5007",
        "width": 16,
        "height": 16,
        "spoiler": False,
    }
    assert Path(answer["sheet"]).read_bytes().startswith(b"\x89PNG")

    (tmp_path / "mapseek-find.png").unlink()
    unasked = run("find", "query.png", "--json", "--limit", "1")
    assert json.loads(unasked.stdout) == answer | {"sheet": None, "matches": answer["matches"][:1]}
    assert not (tmp_path / "mapseek-find.png").exists()  # a script gets no file that it did not ask

    counted = run("stats")
    assert counted.returncode == 0
    assert "29 pictures" in counted.stdout
    assert "map-archive" in counted.stdout
    stats = json.loads(run("stats", "--json").stdout)
    assert stats["pictures"] == 29
    assert stats["by_channel"] == [
        {"guild_id": GUILD, "channel_id": CHANNEL, "channel": "map-archive", "pictures": 29}
    ]


def test_find_within_a_guild_or_channel(process: ToyProcess, tmp_path: Path) -> None:
    run("index", maps(tmp_path / "export", 3))
    query = tmp_path / "export" / "export.json_Files" / "000.png"

    def links(*arguments: str) -> int:
        done = run("find", query, "--json", *arguments)
        return len(json.loads(done.stdout)["matches"]) if done.returncode == 0 else 0

    assert links("--guild", GUILD) == 3
    assert links("--channel", CHANNEL, "--channel", "999") == 3
    assert links("--guild", "999") == 0
    done = run("find", query, "--channel", "999")
    assert_fails(done, 1, "no picture in that part of the archive")


def test_find_by_words(process: ToyProcess, tmp_path: Path) -> None:
    run("index", maps(tmp_path / "export", 3))
    done = run("find", "--text", "something red", "--json")
    assert done.returncode == 0, done.stderr
    matches = json.loads(done.stdout)["matches"]
    assert len(matches) == 3
    # Words and pictures are scored on another scale than two pictures are.
    assert {match["verdict"] for match in matches} == {None}
    assert_fails(run("find", "--text", "anything"), 1, "The text names no colour.")


def test_find_by_words_without_a_text_tower(tmp_path: Path) -> None:
    server = ToyProcess("--no-text")
    maps(tmp_path / "export", 1)
    assert run("index", "export", MAPSEEK_SERVER=server.address).returncode == 0
    done = run("find", "--text", "red", MAPSEEK_SERVER=server.address)
    assert_fails(done, 1, "no text tower")
    server.close()


def test_index_and_find_over_the_open_inference_protocol(
    process: ToyProcess, tmp_path: Path
) -> None:
    other = f"oip://{process.address}"
    done = run("index", maps(tmp_path / "export", 5), MAPSEEK_SERVER=other)
    assert done.returncode == 0, done.stderr
    assert "5 stored." in done.stdout
    (tmp_path / "query.png").write_bytes(picture_bytes(3, side=64))
    answers = [
        json.loads(run("find", "query.png", "--json", MAPSEEK_SERVER=server).stdout)
        for server in (other, process.address)
    ]
    assert answers[0] == answers[1]
    assert answers[0]["matches"][0]["message_id"] == str(FIRST_MESSAGE + 3)


def test_find_says_what_is_wrong_with_the_picture(process: ToyProcess, tmp_path: Path) -> None:
    run("index", maps(tmp_path / "export", 1))
    (tmp_path / "notes.txt").write_text("no picture")
    assert_fails(run("find", "notes.txt"), 1, "notes.txt: This is no image in a format")
    assert_fails(run("find", "gone.png"), 1, "gone.png cannot be read: No such file")
    done = run("find", "export/export.json_Files/000.png", "--sheet", "none/sheet.png")
    assert done.returncode == 1
    assert "The sheet cannot be written to none/sheet.png" in done.stderr


def test_nothing_to_index(process: ToyProcess, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    assert_fails(run("index", "empty"), 1, "There are no pictures (PNG, JPEG, WebP, GIF or AVIF)")
    assert_fails(run("index", "empty/notes.txt"), 1, "empty/notes.txt is no picture (PNG,")
    # What was made for them is an archive all the same.
    counted = run("stats")
    assert counted.stdout.splitlines()[1:] == ["Put some in with mapseek index PATH."]
    assert json.loads(run("stats", "--json").stdout) | {"size_bytes": 0} == {
        "pictures": 0,
        "by_model": {},
        "by_channel": [],
        "newest": None,
        "size_bytes": 0,
    }
    (tmp_path / "query.png").write_bytes(picture_bytes(0))
    assert_fails(run("find", "query.png"), 1, "mapseek.db is empty: put pictures in with")


def test_a_picture_of_another_model_is_no_match(process: ToyProcess, tmp_path: Path) -> None:
    run("index", maps(tmp_path / "export", 3))
    query = tmp_path / "export" / "export.json_Files" / "000.png"
    other = ToyProcess("--name", "other")
    done = run("find", query, MAPSEEK_SERVER=other.address)
    assert_fails(done, 1, "is searched with toy@43602d44172a, and the server at")
    assert "mapseek archive reembed" in done.stderr
    done = run("index", "export", MAPSEEK_SERVER=other.address)
    assert "3 stored." in done.stdout
    assert "no search finds both" in done.stdout
    assert run("find", query, MAPSEEK_SERVER=other.address).returncode == 0
    other.close()
    stats = json.loads(run("stats", "--json").stdout)
    assert stats["pictures"] == 3
    assert stats["by_model"] == {"toy@43602d44172a": 3, "other@43602d44172a": 3}


def test_what_this_user_may_not_touch(process: ToyProcess, tmp_path: Path) -> None:
    folder, archive = tmp_path / "maps", tmp_path / "own" / "maps.db"
    folder.mkdir()
    archive.parent.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture_bytes(number))
    (folder / "1.png").chmod(0)

    def ordinary(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run(*arguments, "--archive", archive, prefix=ORDINARY_USER)

    done = ordinary("index", folder)
    assert done.returncode == 0, done.stderr
    assert "2 stored, 1 set aside." in done.stdout
    assert "Set aside (1): cannot be read: Permission denied" in done.stdout
    (folder / "3.png").write_bytes(picture_bytes(3))
    archive.chmod(0o444)
    assert "2 pictures" in ordinary("stats").stdout  # reading is free
    done = ordinary("index", folder)
    assert done.returncode == 1
    assert done.stdout.startswith("Stopped: 0 stored, 2 there already")
    assert "maps.db may not be written to: give this user the right" in done.stderr
    archive.rename(tmp_path / "maps.db")
    archive.parent.chmod(0o555)
    assert_fails(ordinary("index", folder), 1, "maps.db cannot be opened: is its folder there, and")
    archive.parent.chmod(0o755)
    (tmp_path / "maps.db").rename(archive)
    (tmp_path / "closed").mkdir(0o555)
    done = ordinary("find", folder / "0.png", "--json", "--sheet", tmp_path / "closed" / "a.png")
    assert done.returncode == 1
    assert len(json.loads(done.stdout)["matches"]) == 2  # what was found is said all the same
    assert "The sheet cannot be written to" in done.stderr


def test_an_export_without_its_media(process: ToyProcess, tmp_path: Path) -> None:
    url = "https://cdn.discordapp.com/attachments/1/2/map.png?ex=1&is=2&hm=3"
    write(
        tmp_path / "export.json",
        [message(n, attachments=[attachment(n, url, "map.png")]) for n in range(25)],
    )
    done = run("index", "export.json")
    assert done.returncode == 1  # nothing at all could be used
    reason = "Set aside (25): is not in the export: export again with --media"
    assert reason in done.stdout
    assert done.stdout.count("\n  map.png in message ") == 25  # a file of them is complete
    assert "Indexing" not in done.stderr

    # In a terminal there is a bar, and the list stays short.
    shown = run("index", "export.json", FORCE_COLOR="1", TERM="xterm")
    assert shown.stdout.count("map.png in message ") == 10
    assert "and 15 more: add `> list.txt` for all of them" in shown.stdout
    assert "Indexing" in shown.stderr
    assert "25 set aside" in shown.stderr


def test_names_cannot_steer_the_terminal(process: ToyProcess, tmp_path: Path) -> None:
    export = maps(tmp_path / "export", 1)
    author = {"id": "42", "name": "\x1b[31mred\x07\u202e[bold]", "nickname": None}
    url = "export.json_Files/000.png"
    write(export / "export.json", [message(0, author=author, attachments=[attachment(0, url)])])
    run("index", export)
    done = run("find", export / url)
    assert "�[31mred��[bold]" in done.stdout
    assert "\x1b" not in done.stdout


def start_indexing(export: Path, process: ToyProcess) -> subprocess.Popen[str]:
    """An index run that waits in the middle of its work."""
    process.limit(100)
    indexing = subprocess.Popen(
        [*MAPSEEK, "index", str(export)],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.wait_until_spent()
    # The server has answered a hundred; the run may still have to read that, and stores 64 of them.
    give_up_at_s = time.monotonic() + 60
    while stored_pictures() < 64:
        assert indexing.poll() is None, "the run ended early"
        assert time.monotonic() < give_up_at_s, "the run never stored its first batch"
        time.sleep(0.05)
    return indexing


def stored_pictures() -> int:
    """How many pictures the archive of this folder holds, also while a run is writing."""

    async def count() -> int:
        async with EmbeddedArchive(Path("mapseek.db"), create=False) as archive:
            return (await archive.stats()).pictures

    return asyncio.run(count())


def assert_exact(export: Path, count: int) -> None:
    """The archive holds every picture of the export once."""
    stats = json.loads(run("stats", "--json").stdout)
    assert stats["pictures"] == count
    assert list(stats["by_model"].values()) == [count]
    for number in (0, count // 2, count - 1):
        picture = export / "export.json_Files" / f"{number:03}.png"
        answer = json.loads(run("find", picture, "--json", "--limit", "1").stdout)
        assert answer["matches"][0]["attachment_id"] == str(5000 + number)


def test_ctrl_c_keeps_what_was_done_and_the_next_run_goes_on(
    process: ToyProcess, tmp_path: Path
) -> None:
    export = maps(tmp_path / "export", 200)
    indexing = start_indexing(export, process)
    indexing.send_signal(signal.SIGINT)
    out, err = ended(indexing)
    assert indexing.returncode == 130
    assert out.startswith("Stopped: ")
    assert "The same command goes on from here." in out
    assert "Traceback" not in err
    kept = int(out.split()[1])
    assert 64 <= kept <= 120
    process.go_on()
    again = run("index", export)
    assert f"{200 - kept} stored, {kept} there already." in again.stdout
    assert_exact(export, 200)


def test_a_killed_run_loses_only_what_was_under_way(process: ToyProcess, tmp_path: Path) -> None:
    export = maps(tmp_path / "export", 200)
    indexing = start_indexing(export, process)
    indexing.kill()
    indexing.communicate(timeout=60)
    assert indexing.returncode == -signal.SIGKILL
    kept = json.loads(run("stats", "--json").stdout)["pictures"]
    assert kept % 64 == 0  # whole batches
    process.go_on()
    again = run("index", export)
    assert again.returncode == 0
    assert f"{200 - kept} stored" in again.stdout
    assert_exact(export, 200)


def test_two_runs_at_once_leave_one_archive(process: ToyProcess, tmp_path: Path) -> None:
    export = maps(tmp_path / "export", 150)
    runs = [
        subprocess.Popen(
            [*MAPSEEK, "index", str(export)],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for one in runs:
        out, err = one.communicate(timeout=120)
        assert one.returncode == 0, out + err
    assert_exact(export, 150)
