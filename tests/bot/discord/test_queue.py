import os
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from bot.archive.port import PictureKey, Selection
from bot.pictures import Sighting
from bot.queue import Depth, KnownThread, Queue
from bot.state import StateError


def sighting(message: int, attachment: int = 1, **fields: str | int | bool) -> Sighting:
    given = {
        "guild_id": "1",
        "channel_id": "2",
        "user_id": "3",
        "fetch_url": "https://cdn.discordapp.com/a",
        "image_url": "https://cdn.discordapp.com/a",
        "posted_at": "2024-01-01T00:00:00+00:00",
    } | fields
    return Sighting(message_id=str(message), attachment_id=str(attachment), **given)  # type: ignore[arg-type]  # fields of a dataclass, by name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def test_what_is_added_is_there_after_opening_it_again(path: Path) -> None:
    with Queue(path) as queue:
        queue.add([sighting(10), sighting(11)], now_s=100)
    with Queue(path) as queue:
        assert [item.sighting for item in queue.due(now_s=100, limit=9)] == [
            sighting(10),
            sighting(11),
        ]


def test_a_picture_that_is_seen_again_keeps_its_place_and_gets_its_new_link(path: Path) -> None:
    with Queue(path) as queue:
        queue.add([sighting(10)], now_s=100)
        queue.retry(sighting(10).key, reason="slow", due_at_s=200)
        queue.add([sighting(10, fetch_url="https://cdn.discordapp.com/b")], now_s=101)
        assert queue.due(now_s=199, limit=9) == []
        (item,) = queue.due(now_s=200, limit=9)
        assert item.attempts == 1
        assert item.sighting.fetch_url == "https://cdn.discordapp.com/b"


def test_due_takes_the_longest_due_and_no_more_than_asked(path: Path) -> None:
    with Queue(path) as queue:
        for number in (3, 1, 2):
            queue.add([sighting(number)], now_s=number)
        assert [item.sighting.message_id for item in queue.due(now_s=9, limit=2)] == ["1", "2"]
        assert queue.next_due_at_s() == 1


def test_what_is_set_aside_waits_no_more_and_keeps_its_reason(path: Path) -> None:
    with Queue(path) as queue:
        queue.add([sighting(1)], now_s=0)
        queue.set_aside(sighting(1).key, reason="The file is no picture.")
        queue.add([sighting(1)], now_s=0)
        assert queue.due(now_s=9, limit=9) == []
        assert queue.next_due_at_s() is None
        assert queue.depth() == Depth(waiting=0, set_aside=1, deletions=0)
        (entry,) = queue.set_aside_list()
        assert (entry.sighting, entry.reason) == (sighting(1), "The file is no picture.")


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(message_ids=frozenset({"1"})), {("2", "1"), ("3", "1")}),
        (Selection(guild_id="1", channel_id="20"), {("1", "1"), ("1", "2"), ("3", "1")}),
        (Selection(user_id="30"), {("1", "1"), ("1", "2"), ("2", "1")}),
        (
            Selection(message_ids=frozenset({"1"}), attachment_ids=frozenset({"2"})),
            {("1", "1"), ("2", "1"), ("3", "1")},
        ),
        (Selection(guild_id="1"), set()),
    ],
)
def test_delete_drops_what_matches_and_keeps_the_deletion(
    path: Path, selection: Selection, left: set[tuple[str, str]]
) -> None:
    with Queue(path) as queue:
        everything = [
            sighting(1, 1),
            sighting(1, 2),
            sighting(2, channel_id="20"),
            sighting(3, user_id="30"),
        ]
        queue.add(everything, now_s=0)
        queue.delete(selection)
        keys = [one.key for one in everything]
        assert queue.still_here(keys) == {
            PictureKey(message_id=message, attachment_id=attachment) for message, attachment in left
        }
    with Queue(path) as queue:
        ((number, kept),) = queue.deletions()
        assert kept == selection
        queue.deletion_done(number)
        assert queue.deletions() == []


def test_an_empty_selection_is_refused(path: Path) -> None:
    with Queue(path) as queue:
        queue.add([sighting(1)], now_s=0)
        with pytest.raises(ValueError, match="would delete everything"):
            queue.delete(Selection())
        assert queue.depth().waiting == 1


def test_threads_are_remembered_until_they_are_deleted(path: Path) -> None:
    with Queue(path) as queue:
        queue.add(
            [
                sighting(1, channel_id="50", parent_id="2"),
                sighting(2, channel_id="51", parent_id="2", private_thread=True),
                sighting(3, channel_id="2"),
            ],
            now_s=0,
        )
        queue.done([sighting(1)])
        queue.delete(Selection(message_ids=frozenset({"2"})))
        assert queue.threads("1") == [
            KnownThread(thread_id="50", parent_id="2", private=False),
            KnownThread(thread_id="51", parent_id="2", private=True),
        ]
        assert queue.threads("9") == []
        queue.delete(Selection(guild_id="1", channel_id="50"))
        assert [thread.thread_id for thread in queue.threads("1")] == ["51"]


def test_what_was_added_survives_a_kill(path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from bot.queue import Queue; from bot.pictures import Sighting\n"
        "queue = Queue(Path(sys.argv[1]))\n"
        "queue.add([Sighting(message_id='1', attachment_id='2', guild_id='', channel_id='',\n"
        "    user_id='', fetch_url='', image_url='', posted_at='')], now_s=0)\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    root = Path(__file__).resolve().parents[3]
    killed = subprocess.run([sys.executable, "-c", program, path], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    with Queue(path) as queue:
        assert queue.depth().waiting == 1


def test_a_file_that_is_no_queue_is_named(path: Path) -> None:
    path.write_bytes(b"hello, I am no database at all" * 100)
    with pytest.raises(StateError, match=r"queue\.db is no usable SQLite file"):
        Queue(path)


def test_a_queue_of_another_version_is_left_alone(path: Path) -> None:
    other = apsw.Connection(str(path))
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StateError, match="format 99"):
        Queue(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StateError, match="cannot be opened"):
        Queue(tmp_path / "sub" / "queue.db")
