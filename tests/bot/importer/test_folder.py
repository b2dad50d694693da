import errno
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bot.importer import folder
from bot.importer.files import UnreadableError, read
from bot.importer.found import Found, SetAside, SourceError
from bot.importer.source import Kind, open_source
from bot.moving.sources import files_by_content
from tests.bot.importer import pages
from tests.bot.importer.exports import attachment, media, message, picture_bytes, write

PNG = picture_bytes(0)


def split(items: Iterable[Found | SetAside]) -> tuple[list[Found], list[SetAside]]:
    listed = list(items)
    return (
        [item for item in listed if isinstance(item, Found)],
        [item for item in listed if isinstance(item, SetAside)],
    )


def test_a_tree_of_pictures(tmp_path: Path) -> None:
    root = tmp_path / "maps"
    for name in ("b.png", "a.jpg", "deep/er/c", ".hidden.png", ".trash/d.png", "notes.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"text" if name.endswith("txt") else PNG)
    os.utime(root / "a.jpg", (1_700_000_000, 1_700_000_000))
    found, aside = split(folder.scan(root))
    assert aside == []
    assert [one.path.relative_to(root).as_posix() for one in found] == [
        "a.jpg",
        "b.png",
        "deep/er/c",
    ]
    first = found[0]
    assert first.posted_at == datetime.fromtimestamp(1_700_000_000, UTC)
    assert first.message_link == (root / "a.jpg").as_uri()
    assert (first.guild_id, first.channel_id, first.channel) == ("files", str(root), "maps")
    assert found[2].channel == "maps/deep/er"


@pytest.mark.parametrize(
    "depth", [sys.getrecursionlimit() + 100, os.pathconf("/", "PC_PATH_MAX") // 2]
)
def test_a_tree_deeper_than_python_recurses(tmp_path: Path, depth: int) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        inner = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    file = os.open("b.png", os.O_WRONLY | os.O_CREAT, dir_fd=at)
    os.write(file, picture_bytes(1))
    os.close(file)
    os.close(at)
    found, aside = split(folder.scan(tmp_path))
    known = files_by_content(tmp_path, lambda _: None)
    subprocess.run(["/bin/rm", "-rf", tmp_path / "d"], check=True)  # pytest would recurse
    if depth < os.pathconf("/", "PC_PATH_MAX") // 2:
        assert ([one.path.name for one in found], aside) == (["a.png", "b.png"], [])
        assert len(known) == 2
    else:  # no path can name what lies at the bottom
        assert ([one.path.name for one in found], len(known)) == (["a.png"], 1)
        assert [one.reason for one in aside] == ["cannot be read: File name too long"]


def test_ids_stay_until_a_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    (first,), _ = split(folder.scan(tmp_path))
    (again,), _ = split(folder.scan(tmp_path))
    (alone,), _ = split(folder.scan(path))
    assert first == again
    assert first.key == alone.key
    path.write_bytes(picture_bytes(1))
    os.utime(path, (1, 1))
    (changed,), _ = split(folder.scan(tmp_path))
    assert changed.key.message_id == first.key.message_id
    assert changed.key.attachment_id != first.key.attachment_id


def test_what_only_looks_like_a_picture_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<html>")
    (tmp_path / "empty.JPG").touch()
    (tmp_path / "old.bmp").write_bytes(b"BM" + bytes(100))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    found, aside = split(folder.scan(tmp_path))
    assert found == []
    assert sorted(Path(one.name).name for one in aside) == [
        "empty.JPG",
        "gone.png",
        "old.bmp",
        "page.png",
        "pipe.png",
    ]
    assert {one.reason for one in aside} == {"is no picture (PNG, JPEG, WebP, GIF or AVIF)"}


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "maps"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    found, (aside,) = split(folder.scan(root))
    assert found == []
    assert "leads out" in aside.reason


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/map\xff.png")).write_bytes(PNG)
    found, (aside,) = split(folder.scan(tmp_path))
    assert found == []
    assert "rename it" in aside.reason
    assert aside.name.endswith("map\\xff.png")


def test_a_date_beyond_the_calendar(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    os.utime(path, ns=(0, 2**62))
    (found,), _ = split(folder.scan(tmp_path))
    assert found.posted_at.tzinfo is UTC


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    contents = read(path, max_bytes=len(PNG))
    assert (contents.data, contents.width, contents.height) == (PNG, 16, 16)
    with pytest.raises(UnreadableError, match="at most"):
        read(path, max_bytes=len(PNG) - 1)
    with pytest.raises(UnreadableError, match="cannot be read"):
        read(tmp_path / "gone.png", max_bytes=100)
    path.write_bytes(PNG[:20])
    assert read(path, max_bytes=100).width == 0  # the server will say what is wrong
    path.write_bytes(b"")
    with pytest.raises(UnreadableError, match="is empty"):
        read(path, max_bytes=100)
    with pytest.raises(UnreadableError, match="no plain file"):
        read(Path(os.devnull), max_bytes=100)
    with pytest.raises(UnreadableError, match="Is a directory"):
        read(tmp_path, max_bytes=100)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with ThreadPoolExecutor() as threads:
        reading = threads.submit(read, tmp_path / "pipe.png", max_bytes=100)
        try:
            with pytest.raises(UnreadableError, match="a device or a pipe"):
                reading.result(timeout=10)
        finally:
            # A writer lets go whoever waits for one.
            os.close(os.open(tmp_path / "pipe.png", os.O_RDWR))


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.write(PNG)
        file.truncate(1 << 40)  # a hole: a terabyte that takes no room
    with pytest.raises(UnreadableError, match=r"1,099,511,627,776 bytes"):
        read(path, max_bytes=1 << 20)


class TestChoosing:
    def test_a_folder_of_pictures(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(PNG)
        (tmp_path / "other.json").write_text("{}")
        (found,), aside = split(open_source(tmp_path)())
        assert (found.guild_id, aside) == ("files", [])

    def test_a_folder_of_exports_reads_all_of_them(self, tmp_path: Path) -> None:
        for part, number in (("maps.json", 1), ("maps [part 2].json", 2)):
            url = media(tmp_path, f"{number}.png", PNG, export="maps.json")
            write(tmp_path / part, [message(number, attachments=[attachment(number, url)])])
        (tmp_path / "stray.png").write_bytes(PNG)
        source = open_source(tmp_path)
        found, aside = split(source())
        assert sorted(one.key.attachment_id for one in found) == ["5001", "5002"]
        assert aside == []
        assert split(source())[0] == found  # it can be read again
        as_files, _ = split(open_source(tmp_path, kind=Kind.FOLDER)())
        assert len(as_files) == 3

    def test_an_export_that_cannot_be_read_stops_no_other(self, tmp_path: Path) -> None:
        for number, name in enumerate(("a.json", "c.json")):
            url = media(tmp_path, f"{number}.png", PNG, export=name)
            write(tmp_path / name, [message(number, attachments=[attachment(number, url)])])
        # Readable by its rights, for root as well, and yet not to be read.
        (tmp_path / "b.json").symlink_to("/proc/self/mem")
        found, (aside,) = split(open_source(tmp_path)())
        assert len(found) == 2
        assert (Path(aside.name).name, "cannot be read" in aside.reason) == ("b.json", True)
        with pytest.raises(SourceError, match="cannot be read"):
            open_source(tmp_path / "b.json")
        # Where there are no exports, it is one of the files that are no pictures.
        maps = tmp_path / "maps"
        maps.mkdir()
        (maps / "a.png").write_bytes(PNG)
        (maps / "b.json").symlink_to("/proc/self/mem")
        found, aside_ = split(open_source(maps)())
        assert (len(found), aside_) == (1, [])

    def test_an_export_among_the_media_is_nobodys_export(self, tmp_path: Path) -> None:
        inner = tmp_path / "export.json_Files"
        inner.mkdir()
        write(inner / "posted.json", [message(1, attachments=[attachment(1, "a.png")])])
        (inner / "a.png").write_bytes(PNG)
        write(tmp_path / "export.json", [])
        assert split(open_source(tmp_path)()) == ([], [])

    def test_exports_are_found_at_any_depth_and_nothing_beside_them(self, tmp_path: Path) -> None:
        """As `-o exports/%G/%T/` lays them out, with a picture beside each kind of folder."""
        maps, deep = tmp_path / "Map guild" / "Archive", tmp_path / "Other" / "a" / "b" / "c"
        for number, place in enumerate((maps, deep)):
            place.mkdir(parents=True)
            name = f"map-{number:016x}.png"
            url = media(place, name, picture_bytes(number), export="maps [200].json")
            media(place, "avatar-0123456789abcdef.png", PNG, export="maps [200].json")
            write(
                place / "maps [200].json", [message(number, attachments=[attachment(number, url)])]
            )
            (place / "stray.png").write_bytes(PNG)
        url = media(maps, "map-00000000000000ff.png", picture_bytes(9), export="page.html")
        pages.write(maps, [pages.group(pages.message(9, pages.picture(url)))])
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "own.png").write_bytes(PNG)
        source = open_source(tmp_path)
        found, aside = split(source())
        assert {one.path.name for one in found} == {
            "map-0000000000000000.png",
            "map-0000000000000001.png",
            "map-00000000000000ff.png",
        }
        assert aside == []
        assert split(source())[0] == found
        assert split(open_source(tmp_path / "Map guild")())[0] == [
            one for one in found if one.path.is_relative_to(maps)
        ]

    def test_what_is_posted_into_a_shared_media_folder_is_no_export(self, tmp_path: Path) -> None:
        """Of `--media-dir`: its name tells nothing, and the names of its files do."""
        shared, deep = tmp_path / "media", tmp_path / "deep"
        forged = [message(1, attachments=[attachment(1, "a.png")])]
        for place in (shared, deep):
            place.mkdir()
            (place / "a.png").write_bytes(PNG)
            write(place / "posted-0123456789abcdef.json", forged)
        write(tmp_path / "maps-12345.json", [message(2, attachments=[attachment(2, "deep/a.png")])])
        found, aside = split(open_source(tmp_path, media=shared)())
        assert [one.key.attachment_id for one in found] == ["5002"]
        assert [Path(one.name).parent.name for one in aside] == ["deep"]
        assert "posted file" in aside[0].reason
        _, aside = split(open_source(tmp_path)())
        assert len(aside) == 2

    def test_a_folder_among_exports_that_cannot_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = media(tmp_path, "1.png", PNG)
        write(tmp_path / "export.json", [message(1, attachments=[attachment(1, url)])])
        (tmp_path / "closed").mkdir()
        listed = os.scandir

        def scandir(folder: str) -> Any:
            if Path(folder) == closed:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
            return listed(folder)

        monkeypatch.setattr(os, "scandir", scandir)  # root could read it
        closed = tmp_path / "closed"
        found, (aside,) = split(open_source(tmp_path)())
        assert len(found) == 1
        assert (aside.name, aside.reason) == (str(closed), "cannot be read: Permission denied")
        closed = tmp_path
        with pytest.raises(SourceError, match="cannot be read: Permission denied"):
            open_source(tmp_path)

    def test_what_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="no file or folder"):
            open_source(tmp_path / "none")
        (tmp_path / "x.json").write_text("{}")
        with pytest.raises(SourceError, match="no export of DiscordChatExporter"):
            open_source(tmp_path / "x.json")
        with pytest.raises(SourceError, match="no export of DiscordChatExporter"):
            open_source(tmp_path, kind=Kind.DISCORD)
        with pytest.raises(SourceError, match="no folder"):
            open_source(tmp_path, media=tmp_path / "none")
        with pytest.raises(SourceError, match="--media and --guild are for exports"):
            open_source(tmp_path, media=tmp_path)
