import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import apsw
import pytest

from bot.archive.port import PictureKey, Selection
from bot.ingest.queue import Queue
from bot.ingest.queued import Depth, KnownThread, Lane
from bot.ingest.state import StateError
from bot.pictures import Sighting


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
        "from bot.ingest.queue import Queue; from bot.pictures import Sighting\n"
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


def test_many_may_make_the_file_at_once(path: Path) -> None:
    start = threading.Barrier(8)

    def open_it(number: int) -> None:
        start.wait()
        with Queue(path) as queue:
            queue.add([sighting(number)], now_s=100)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(open_it, range(8)))
    with Queue(path) as queue:
        assert queue.depth().waiting == 8


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


def due(queue: Queue, limit: int) -> list[str]:
    return [item.sighting.message_id for item in queue.due(now_s=99, limit=limit)]


def test_new_posts_go_first_and_guilds_in_turn(path: Path) -> None:
    with Queue(path) as queue:
        queue.add(
            [sighting(100 + number, guild_id="1") for number in range(40)],
            now_s=0,
            lane=Lane.BACKFILL,
        )
        queue.add([sighting(500, guild_id="3")], now_s=1, lane=Lane.BACKFILL)
        queue.add([sighting(200 + number, guild_id="1") for number in range(3)], now_s=2)
        queue.add([sighting(300, guild_id="2")], now_s=3)
        assert due(queue, 8) == ["200", "300", "201", "202", "100"], "few old ones beside new ones"
        # Nobody is done yet; whose turn was last, comes last.
        assert due(queue, 2) == ["300", "200"]


def test_old_posts_are_worked_on_together_while_there_are_no_new_ones(path: Path) -> None:
    with Queue(path) as queue:
        for guild in "1", "2":
            queue.add(
                [sighting(100 * int(guild) + n, guild_id=guild) for n in range(3)],
                now_s=0,
                lane=Lane.BACKFILL,
            )
        assert due(queue, 4) == ["100", "200", "101", "201"]


def test_a_flood_of_new_posts_leaves_an_eighth_to_old_ones(path: Path) -> None:
    with Queue(path) as queue:
        queue.add([sighting(number) for number in range(100, 140)], now_s=0)
        queue.add([sighting(900), sighting(901), sighting(902)], now_s=0, lane=Lane.BACKFILL)
        assert due(queue, 16)[-2:] == ["900", "901"]
        assert len(due(queue, 16)) == 16


def test_with_more_guilds_than_places_each_has_its_turn(path: Path) -> None:
    with Queue(path) as queue:
        for guild in range(10, 17):
            queue.add([sighting(guild * 10 + n, guild_id=str(guild)) for n in (0, 1)], now_s=0)
        served = []
        for _ in range(7):
            batch = queue.due(now_s=1, limit=2)
            served += [item.sighting.guild_id for item in batch]
            queue.done(item.sighting for item in batch)
        assert sorted(served) == sorted([str(guild) for guild in range(10, 17)] * 2)
        assert served[:7] == [str(guild) for guild in range(10, 17)]


def test_what_is_indexed_waits_again_when_it_is_seen_again(path: Path) -> None:
    with Queue(path) as queue:
        queue.add([sighting(1)], now_s=0)
        queue.done([sighting(1)])
        assert queue.depth().waiting == 0
        assert queue.known_in("2") == {1: {"1": False}}
        queue.add([sighting(1)], now_s=5, lane=Lane.BACKFILL)
        (item,) = queue.due(now_s=5, limit=9)
        assert (item.lane, item.anew, item.attempts) == (Lane.BACKFILL, False, 0)
        # A spoiler that was set meanwhile is not lost by what was under way.
        queue.add([sighting(1, spoiler=True)], now_s=6)
        queue.done([sighting(1)])
        (item,) = queue.due(now_s=6, limit=9)
        assert item.anew
        queue.done([sighting(1, spoiler=True)])
        assert queue.depth().waiting == 0


def test_what_is_set_aside_is_listed_and_tried_again_by_guild(path: Path) -> None:
    with Queue(path) as queue:
        queue.add([sighting(1), sighting(2), sighting(3, guild_id="7")], now_s=0)
        for number in (1, 2):
            queue.set_aside(sighting(number).key, reason="Broken.")
        queue.set_aside(sighting(3, guild_id="7").key, reason="Broken.")
        assert queue.set_aside_count("1") == 2
        assert len(queue.set_aside_list("1", limit=1, offset=1)) == 1
        assert queue.retry_set_aside("1", now_s=4) == 2
        assert queue.set_aside_count("1") == 0
        assert queue.set_aside_count("7") == 1
        assert sorted(due(queue, 9)) == ["1", "2"]


def test_a_notice_is_given_once(path: Path) -> None:
    with Queue(path) as queue:
        assert queue.notice("1", "1")
        assert not queue.notice("1", "1")
    with Queue(path) as queue:
        assert not queue.notice("1", "1")


def test_a_file_of_the_first_format_is_brought_up_to_date(path: Path) -> None:
    old = apsw.Connection(str(path))
    old.execute("""
        CREATE TABLE sightings (message_id TEXT NOT NULL, attachment_id TEXT NOT NULL,
            guild_id TEXT NOT NULL, channel_id TEXT NOT NULL, user_id TEXT NOT NULL,
            body TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due_at_s REAL NOT NULL,
            set_aside INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '',
            PRIMARY KEY (message_id, attachment_id));
        CREATE INDEX sightings_due ON sightings (due_at_s) WHERE NOT set_aside;
        CREATE TABLE deletions (id INTEGER PRIMARY KEY, selection TEXT NOT NULL);
        CREATE TABLE threads (channel_id TEXT PRIMARY KEY, guild_id TEXT NOT NULL,
            parent_id TEXT NOT NULL, private INTEGER NOT NULL);
        PRAGMA user_version = 1;
    """)
    for number, aside in ((1, 0), (2, 1)):
        body = json.dumps(asdict(sighting(number, spoiler=number == 1)))
        old.execute(
            "INSERT INTO sightings VALUES (?, '1', '1', '2', '3', ?, 4, 50, ?, 'Because.')",
            (str(number), body, aside),
        )
    old.execute('INSERT INTO deletions (selection) VALUES (\'{"user_id": "9"}\')')
    old.execute("INSERT INTO threads VALUES ('5', '1', '2', 1)")
    old.close()
    with Queue(path) as queue:
        (item,) = queue.due(now_s=50, limit=9)
        assert (item.sighting, item.attempts) == (sighting(1, spoiler=True), 4)
        (given_up,) = queue.set_aside_list("1")
        assert (given_up.sighting, given_up.reason) == (sighting(2), "Because.")
        assert [selection for _, selection in queue.deletions()] == [Selection(user_id="9")]
        assert queue.threads("1") == [KnownThread(thread_id="5", parent_id="2", private=True)]
