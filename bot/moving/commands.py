"""`mapseek archive copy`, `export`, `import`: each assembles what it needs and runs it."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from bot.archive.embedded import EmbeddedArchive
from bot.archive.opening import name_of, open_archive
from bot.archive.port import ImageArchive
from bot.cli.bar import Bar
from bot.moving.copying import Copier
from bot.moving.files import Importer, export_lines, reading, writing
from bot.moving.showing import print_copied, print_imported, say
from bot.settings import BotSettings
from inference import telemetry
from inference.errors import StartupError


def copy(*, source: str, target: str, archive: Path | None, delete: bool) -> int:
    """Runs `mapseek archive copy` and returns its exit code."""
    settings = BotSettings.load(archive=archive)
    return run(_copy(settings, source, target, delete=delete))


async def _copy(settings: BotSettings, source: str, target: str, *, delete: bool) -> int:
    source_name, opened_source = place(source, settings, create=False)
    target_name, opened_target = place(target, settings, create=True)
    if source_name == target_name:
        raise StartupError(f"--from and --to are both {source_name}.")
    async with opened_source as one, opened_target as other:
        total = sum((await one.stats()).by_model.values())
        with Bar(total) as bar:
            copier = Copier(one, other, delete=delete, report=bar.show)
            try:
                await copier.run()
            except BaseException:
                say(f"Stopped: {copier.copied.stored} copied. The same command goes on from here.")
                raise
        current = await one.current_model()
        if current is not None and await other.current_model() is None:
            await other.choose_model(current)
    print_copied(copier.copied, source_name, target_name)
    return 0 if copier.copied.verified else 1


def place(name: str, settings: BotSettings, *, create: bool) -> tuple[str, ImageArchive]:
    """An archive by what it is called on the command line: embedded, atlas or a file.

    Returns:
        What to call it in a sentence, and the archive, not opened yet.
    """
    if name == "atlas" or name == "embedded":  # noqa: PLR1714 - mypy tells them apart so
        kind: Any = name
        shown = name_of(kind, settings)
        if name == "embedded":
            shown = str(settings.archive.absolute())
        return shown, open_archive(kind, settings, create=create)
    path = Path(name).absolute()
    if create and not path.suffix and not path.exists():
        raise StartupError(
            f"There is no archive called {name}: say embedded, atlas, or a file such as {name}.db."
        )
    return str(path), EmbeddedArchive(path, create=create)


def export(file: Path, *, archive: Path | None, model_id: str | None, force: bool) -> int:
    """Runs `mapseek archive export` and returns its exit code."""
    settings = BotSettings.load(archive=archive)
    return run(_export(settings, file, model_id=model_id, force=force))


async def _export(settings: BotSettings, file: Path, *, model_id: str | None, force: bool) -> int:
    async with open_archive(None, settings, create=False) as archive:
        counts = (await archive.stats()).by_model
        total = sum(counts.values()) if model_id is None else counts.get(model_id, 0)
        if not total:
            held = ", ".join(counts) or "nothing"
            raise StartupError(f"There is nothing to export: the archive holds {held}.")
        with writing(file, replace_it=force) as opened, Bar(total) as bar:
            written = await export_lines(
                archive,
                opened,
                model_id=model_id,
                report=lambda done: bar.show("Exporting", done),
            )
    say(f"{written} entries of {name_of(None, settings)} are in {file}.")
    return 0


def import_(file: Path, *, archive: Path | None, replace: bool) -> int:
    """Runs `mapseek archive import` and returns its exit code."""
    return run(_import(BotSettings.load(archive=archive), file, replace=replace))


async def _import(settings: BotSettings, file: Path, *, replace: bool) -> int:
    name = name_of(None, settings)
    with reading(file) as opened:
        async with open_archive(None, settings) as archive:
            with Bar(None) as bar:
                importer = Importer(
                    archive,
                    replace=replace,
                    report=lambda done: bar.show(
                        "Importing", done.done, f"{done.bad} skipped" if done.bad else ""
                    ),
                )
                try:
                    await importer.run(opened)
                except BaseException:
                    bar.stop()
                    print_imported(importer.imported, name, stopped=True)
                    raise
    print_imported(importer.imported, name)
    return 1 if importer.imported.bad else 0


def run(work: Coroutine[Any, Any, int]) -> int:
    """Runs a command in an event loop, watched like all others."""
    with telemetry.set_up("mapseek-cli", telemetry.TelemetrySettings.load()):
        return asyncio.run(work)
