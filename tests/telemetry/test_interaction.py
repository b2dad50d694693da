"""One question of a member, as the collector sees it: from the click to the batch of the model."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server_process import run_server
from inference.settings import BUNDLED_MODEL
from tests.bot.discord.conftest import Bot, map_art, photographed
from tests.bot.discord.loopback import TOKEN, Answer, Discord
from tests.telemetry.conftest import Received, attributes

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (
    "import sys, disnake.http; disnake.http.Route.BASE = sys.argv.pop(1);"
    "from bot.cli.main import main; main()"
)
BOB = 43


@asynccontextmanager
async def bot_process(bot: Bot, endpoint: str) -> AsyncIterator[None]:
    """A process of its own, because the OpenTelemetry API takes its providers only once."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAPSEEK_", "OTEL_"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, bot.discord.api, "bot"),
        env={
            **kept,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}",
            "MAPSEEK_ARCHIVE": str(bot.settings.archive),
            "MAPSEEK_SERVER": bot.client.server,
            "MAPSEEK_DISCORD_TOKEN": TOKEN,
            "MAPSEEK_DOWNLOAD_ORIGINS": bot.discord.origin,
            "MAPSEEK_OTLP_ENDPOINT": endpoint,
        },
        cwd=bot.settings.archive.parent,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await bot.discord.introduced()
        yield
        process.terminate()
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
async def told(receiver: Any, tmp_path: Path) -> tuple[Received, Answer]:
    with run_server(BUNDLED_MODEL, {"otlp_endpoint": receiver.endpoint}) as server:
        async with Discord() as discord:
            discord.add_guild(1)
            discord.add_channel(1, 10)
            bot = Bot(tmp_path, discord, server)
            async with bot_process(bot, receiver.endpoint):
                await discord.post(10, map_art(1))
                await bot.settled(1)
                await discord.use_find(photographed(map_art(1)), member=BOB, channel_id=10)
                answer = await discord.use_find(b"hello", member=BOB, channel_id=10)
    return receiver.received, answer


async def test_a_question_is_followed_from_the_click_to_the_batch(
    told: tuple[Received, Answer],
) -> None:
    received, refused = told
    found, failed = received.named("mapseek.interaction")
    assert attributes(found.attributes)["mapseek.asked"] == "image"

    # Every step is below the interaction, in the bot and in the server.
    below = {span.name: span for _, span in received.spans if span.trace_id == found.trace_id}
    call = "mapseek.v1.EmbeddingService/Embed"
    for name in ("mapseek.download", call, "decode", "queue", "archive.search", "mapseek.check"):
        assert name in below, sorted(below)
    server, *further = sorted(
        (
            span
            for _, span in received.spans
            if (span.trace_id, span.name, span.kind)
            == (found.trace_id, call, span.SPAN_KIND_SERVER)
        ),
        key=lambda span: span.start_time_unix_nano,
    )
    # The bundled model is not sure of this one: it is looked at again, as often as comes soon.
    assert 1 <= attributes(found.attributes)["mapseek.looks"] <= 1 + len(further)
    (batch,) = [
        batch
        for batch in received.named("batch")
        if server.span_id in {link.span_id for link in batch.links}
    ]
    assert {link.span_id for link in server.links} == {batch.span_id}

    # The reference in the sentence is in the trace and in the log.
    reference = attributes(failed.attributes)["mapseek.interaction_id"]
    assert f"(Reference: `{reference}`)" in refused.content
    lines = [record for _, _, record in received.logs if record.trace_id == failed.trace_id]
    said = [line for line in lines if line.body.string_value.startswith("An answer failed: ")]
    assert len(said) == 1
    assert reference in attributes(said[0].attributes).values()

    points = received.metric("mapseek.search.duration").histogram.data_points
    counted = {
        (told["asked"], told["outcome"]): point.count
        for point in points
        for told in [attributes(point.attributes)]
    }
    assert counted == {("image", "found"): 1, ("image", "failed"): 1}

    vectors = received.metric("mapseek.bot.vectors").sum.data_points
    assert {
        (told["lane"], told["from"]): point.as_int
        for point in vectors
        for told in [attributes(point.attributes)]
    } == {("bulk", "server"): 1, ("interactive", "server"): 1}
    depth = received.metric("mapseek.ingest.depth").gauge.data_points
    assert {attributes(point.attributes)["state"] for point in depth} == {
        "waiting",
        "set aside",
        "deletions",
    }
    assert {point.as_int for point in depth} == {0}
