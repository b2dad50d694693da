"""What `mapseek archive` does to Atlas, between options (`bot.cli.archive_cli`) and use cases."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any

from rich.text import Text

from bot.archive.atlas import indexes, managing, migrating
from bot.archive.atlas.driver import Driver
from bot.archive.opening import name_of
from bot.archive.port import ArchiveError, ForbiddenError
from bot.cli import console
from bot.settings import BotSettings
from inference import telemetry
from inference.client import ClientSettings, EmbeddingClient
from inference.errors import EmbeddingError

# What the models of OpenAI's CLIP make that most people serve.
_USUAL = 512
_SERVER_S = 1.0


def init(dimensions: Sequence[int], *, only_print: bool, wait_s: float) -> int:
    """Runs `mapseek archive init` and returns its exit code."""
    settings = BotSettings.load()
    if only_print:
        for length in dimensions or (_USUAL,):
            _print_page(settings, length)
        return 0
    return _run(_init(settings, dimensions, wait_s))


async def _init(settings: BotSettings, dimensions: Sequence[int], wait_s: float) -> int:
    lengths: Sequence[int] = dimensions
    async with _driver(settings) as driver:
        try:
            lengths = lengths or await _lengths(driver)
            await managing.init(driver, settings, lengths, tell=_tell, wait_s=wait_s)
        except ForbiddenError as error:
            return _by_hand(settings, lengths or (_USUAL,), error)
    return 0


def _by_hand(settings: BotSettings, lengths: Sequence[int], error: ForbiddenError) -> int:
    _tell(
        f"{error}\nMake the index by hand: on the cluster's page, Search & Vector Search > "
        f"Create Search Index > Vector Search > JSON Editor, for "
        f"{settings.atlas_database}.{settings.atlas_collection}, and give it this:"
    )
    for length in lengths:
        _print_page(settings, length)
    return 1


async def _lengths(driver: Driver) -> list[int]:
    """The lengths of vectors that are stored, and of the model that is served."""
    lengths = {model.dimensions for model in await managing.stored(driver)}
    with suppress(EmbeddingError):
        async with EmbeddingClient(ClientSettings.load()) as client:
            lengths.add((await client.wait_ready(_SERVER_S)).dimensions)
    return sorted(lengths) or [_USUAL]


def status(*, as_json: bool) -> int:
    """Runs `mapseek archive status` and returns its exit code."""
    return _run(_status(BotSettings.load(), as_json=as_json))


async def _status(settings: BotSettings, *, as_json: bool) -> int:
    async with _driver(settings) as driver:
        health = await managing.inspect(driver, settings)
    if as_json:
        shown = asdict(health)
        for index in shown["indexes"]:
            index["filters"] = sorted(index["filters"])
        console.print_json(shown)
    else:
        _print_health(health, settings)
    return 1 if health.problems else 0


def _print_health(health: managing.Health, settings: BotSettings) -> None:
    out = console.console()
    out.print(Text(console.plain(name_of("atlas", settings))))
    for model in health.models:
        line = f"  {model.entries} entries of {model.id}, {model.dimensions} numbers each"
        out.print(Text(console.plain(line)))
    if not health.models:
        out.print("  nothing stored yet")
    for index in health.indexes:
        kind = "search index of the old kind" if index.legacy else "vector search index"
        of = "" if index.dimensions is None else f" for {index.dimensions} numbers"
        state = index.status + ("" if index.queryable else ", not answering yet")
        out.print(Text(console.plain(f"  {kind} {index.name}{of}: {state}")))
    for problem in health.problems:
        out.print(Text(console.plain(f"problem: {problem}"), style="red"))
    for hint in health.hints:
        out.print(Text(console.plain(f"hint: {hint}"), style="yellow"))
    if not health.problems and health.models:
        out.print(Text("Searches are answered.", style="green"))


def migrate(model_id: str | None, *, wait_s: float) -> int:
    """Runs `mapseek archive migrate` and returns its exit code."""
    return _run(_migrate(BotSettings.load(), model_id, wait_s))


async def _migrate(settings: BotSettings, model_id: str | None, wait_s: float) -> int:
    async with _driver(settings) as driver:
        try:
            done = await migrating.migrate(driver, settings, model_id, tell=_tell, wait_s=wait_s)
        except ForbiddenError as error:
            lengths = sorted({model.dimensions for model in await managing.stored(driver)})
            _tell("Once the index is there, run the same command again: it goes on from here.")
            return _by_hand(settings, lengths or (_USUAL,), error)
    parts = [
        f"{done.claimed} documents completed",
        f"{done.packed} vectors packed",
        f"{done.doubles} doubles deleted",
        f"{done.unreadable} documents are no pictures and were left alone",
        f"{done.dropped} old search indexes dropped",
    ]
    console.console().print(Text(", ".join(parts) + "."))
    return 0


def _print_page(settings: BotSettings, length: int) -> None:
    page = indexes.for_the_page(settings.atlas_index, length, settings.atlas_quantization)
    console.console().print(Text(page))


def _tell(line: str) -> None:
    console.console(err=True).print(Text(console.plain_lines(line)))


@asynccontextmanager
async def _driver(settings: BotSettings) -> AsyncIterator[Driver]:
    if settings.kind != "atlas":
        raise ArchiveError(
            "The archive in use is the file "
            f"{settings.archive}, which needs none of this: set MAPSEEK_ATLAS_URI for Atlas."
        )
    driver = Driver(settings)
    try:
        yield driver
    finally:
        await driver.close()


def _run(work: Coroutine[Any, Any, int]) -> int:
    with telemetry.set_up("mapseek-cli", telemetry.TelemetrySettings.load()):
        return asyncio.run(work)
