"""One `mapseek index` and one `mapseek find`, as the collector sees them."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).parent / "programs" / "toy_server.py"
COLOURS = ["red", "green", "blue", "white", "black", "yellow"]


@dataclass(frozen=True)
class Search:
    received: Any
    server_log: list[dict[str, Any]]


@pytest.fixture(scope="module")
def search(receiver: Any, tmp_path_factory: pytest.TempPathFactory) -> Search:
    folder = tmp_path_factory.mktemp("search")
    pictures = folder / "pictures"
    pictures.mkdir()
    for colour in COLOURS:
        Image.new("RGB", (64, 64), colour).save(pictures / f"{colour}.png")
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAPSEEK_", "OTEL_"))
    } | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}",
        "MAPSEEK_OTLP_ENDPOINT": receiver.endpoint,
        "MAPSEEK_LOG_FORMAT": "json",
        "MAPSEEK_LOG_LEVEL": "debug",
        "MAPSEEK_ARCHIVE": str(folder / "maps.db"),
    }
    server = subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        env=environment, cwd=folder, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert server.stdout is not None
    environment["MAPSEEK_SERVER"] = server.stdout.readline().strip()
    for command in (["index", "pictures"], ["find", "pictures/red.png"]):
        subprocess.run(
            [sys.executable, "-m", "bot.cli.main", *command],
            env=environment, cwd=folder, check=True, timeout=60, capture_output=True,
        )  # fmt: skip
    _, log = server.communicate(timeout=60)
    assert server.returncode == 0, log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return Search(receiver.received, lines)


def spans_below(search: Search, root: Any) -> dict[str, list[Any]]:
    """The spans of a trace by name."""
    found: dict[str, list[Any]] = {}
    for _, span in search.received.spans:
        if span.trace_id == root.trace_id:
            found.setdefault(span.name, []).append(span)
    return found


def named(search: Search, root: str, call: str) -> Any:
    """The server's span of a call that a command made."""
    spans = spans_below(search, search.received.one(root))[f"mapseek.v1.EmbeddingService/{call}"]
    (server,) = [span for span in spans if span.kind == span.SPAN_KIND_SERVER]
    return server


@pytest.mark.parametrize(
    ("command", "call", "images"),
    [("mapseek.find", "Embed", 1), ("mapseek.index", "EmbedStream", len(COLOURS))],
)
def test_each_image_has_its_stages_below_the_call_and_a_batch_that_is_linked_both_ways(
    search: Search, command: str, call: str, images: int
) -> None:
    server = named(search, command, call)
    below = spans_below(search, server)
    decoded = [span for span in below["decode"] if not span.status.code]
    assert len(decoded) == len(below["queue"]) == images
    assert {s.parent_span_id for s in decoded + below["queue"]} == {server.span_id}
    batches = [
        batch
        for batch in search.received.named("batch")
        if server.span_id in {link.span_id for link in batch.links}
    ]
    assert sum(len(batch.links) for batch in batches) == images
    assert {link.span_id for link in server.links} == {batch.span_id for batch in batches}
    assert all(batch.trace_id != server.trace_id for batch in batches)


def test_the_archive_is_part_of_the_trace(search: Search) -> None:
    assert "archive.search" in spans_below(search, search.received.one("mapseek.find"))
    assert "archive.upsert" in spans_below(search, search.received.one("mapseek.index"))


def test_a_search_tells_how_often_it_looked(search: Search) -> None:
    counts = {
        pair.key: pair.value.int_value for pair in search.received.one("mapseek.find").attributes
    }
    assert counts["mapseek.looks"] == 1


def test_every_stage_has_its_metric(search: Search) -> None:
    stages = {
        (attributes["stage"], attributes["lane"]): count
        for attributes, count in points(search, "mapseek.embed.duration")
    }
    for stage in ("decode", "queue", "inference", "total"):
        assert stages[stage, "interactive"] == 1
        assert stages[stage, "bulk"] == len(COLOURS)
    batches = search.received.metric("mapseek.batch.size").histogram.data_points
    assert sum(point.sum for point in batches) == len(COLOURS) + 1
    depth = search.received.metric("mapseek.queue.depth").sum.data_points
    assert [point.as_int for point in depth] == [0, 0]
    rejected = search.received.metric("mapseek.rejected").sum.data_points
    assert [(names(point), point.as_int) for point in rejected] == [({"reason": "invalid"}, 1)]
    assert points(search, "mapseek.archive.duration")


def test_lines_of_the_server_can_be_found_by_the_trace(search: Search) -> None:
    server = named(search, "mapseek.index", "EmbedStream")
    (line,) = [line for line in search.server_log if line["message"].startswith("refused")]
    assert line["trace_id"] == server.trace_id.hex()


def points(search: Search, metric: str) -> list[tuple[dict[str, Any], int]]:
    data = search.received.metric(metric).histogram.data_points
    return [(names(point), point.count) for point in data]


def names(point: Any) -> dict[str, Any]:
    return {pair.key: pair.value.string_value for pair in point.attributes}
