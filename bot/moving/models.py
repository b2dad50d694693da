"""`mapseek archive reembed`, `switch`, `drop`: which model an archive is searched with."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bot.archive.opening import open_archive
from bot.cli.bar import Bar
from bot.cli.waiting import ready
from bot.moving.commands import run
from bot.moving.reembedding import Reembedder
from bot.moving.showing import print_reembedded, print_switch, say
from bot.moving.sources import Sources, discord_links, files_by_content
from bot.settings import BotSettings
from inference.client import ClientSettings, EmbeddingClient, ModelInfo
from inference.errors import StartupError

# How long a bot may take to store what it had begun to embed with the old model.
_LATE_POSTS_S = 5.0


def reembed(
    *,
    archive: Path | None,
    server: str | None,
    media: Path | None,
    links: bool,
    leave_behind: bool,
    drop_old: bool,
) -> int:
    """Runs `mapseek archive reembed` and returns its exit code."""
    settings = BotSettings.load(archive=archive)
    server = server or settings.next_server
    client_settings = ClientSettings.load(server=server)
    if media is not None and not media.is_dir():
        raise StartupError(f"There is no folder {media} for --media.")
    return run(
        _reembed(
            settings,
            client_settings,
            media=media,
            links=links,
            leave_behind=leave_behind,
            drop_old=drop_old,
        )
    )


async def _reembed(
    settings: BotSettings,
    client_settings: ClientSettings,
    *,
    media: Path | None,
    links: bool,
    leave_behind: bool,
    drop_old: bool,
) -> int:
    async with (
        open_archive(None, settings, create=False) as archive,
        EmbeddingClient(client_settings) as client,
    ):
        model = await ready(client, client_settings, start="mapseek serve --model DIR")
        counts = (await archive.stats()).by_model
        current = await archive.current_model()
        if current is None and len(counts) > 1:
            raise StartupError(
                f"The archive holds vectors of {', '.join(counts)}, and none of them was chosen "
                "for searches: choose one with `mapseek archive switch MODEL`."
            )
        if current is not None and current != model.id:
            # Written down before the first new vector: with two models nothing is implied.
            await archive.choose_model(current)
            say(f"Searches go on on {current} while {model.id} is being embedded.")
        async with _sources(settings, model, media=media, links=links) as sources:
            total = sum(count for model_id, count in counts.items() if model_id != model.id)
            with Bar(total) as bar:
                reembedder = Reembedder(
                    archive=archive,
                    client=client,
                    model=model,
                    sources=sources,
                    report=lambda done: bar.show(
                        "Embedding",
                        done.looked_at,
                        f"{done.missing} could not be" if done.missing else "",
                    ),
                )
                try:
                    complete = await reembedder.run()
                    switched = current != model.id and (complete or leave_behind)
                    if switched:
                        await archive.choose_model(model.id)
                        # What bots had begun with the old model is there by then.
                        await asyncio.sleep(_LATE_POSTS_S)
                        complete = await reembedder.run()
                except BaseException:
                    bar.stop()
                    print_reembedded(reembedder, model.id, stopped=True)
                    raise
        print_reembedded(reembedder, model.id)
        if current not in (None, model.id):
            print_switch(str(current), model.id, switched=switched, server=client_settings.server)
        if drop_old and (complete or leave_behind):
            for old in [model_id for model_id in counts if model_id != model.id]:
                dropped = await archive.drop_model(old)
                say(f"Dropped {dropped} vectors of {old}.")
    return 0 if complete or leave_behind else 1


@asynccontextmanager
async def _sources(
    settings: BotSettings, model: ModelInfo, *, media: Path | None, links: bool
) -> AsyncIterator[Sources]:
    max_bytes = model.limits.max_image_bytes
    files: dict[str, Path] = {}
    if media is not None:
        with Bar(None) as bar:
            files = await asyncio.to_thread(
                files_by_content, media, lambda done: bar.show("Reading the media folder", done)
            )
    if not links:
        yield Sources(max_bytes=max_bytes, media=files, fetcher=None, refresh=None)
        return
    from bot.fetch import DISCORD_ORIGINS, Fetcher  # noqa: PLC0415 - comes with the bot extra

    try:
        fetcher = Fetcher(
            origins=DISCORD_ORIGINS,
            trusted_origins=[*filter(None, map(str.strip, settings.download_origins.split(",")))],
            max_bytes=max_bytes,
            timeout_s=settings.download_s,
        )
    except ValueError as error:
        raise StartupError(f"MAPSEEK_DOWNLOAD_ORIGINS: {error}.") from None
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(fetcher)
        refresh = None
        if settings.discord_token is not None:
            token = settings.discord_token.get_secret_value()
            refresh = await stack.enter_async_context(discord_links(token))
        yield Sources(max_bytes=max_bytes, media=files, fetcher=fetcher, refresh=refresh)


def switch(model_id: str, *, archive: Path | None) -> int:
    """Runs `mapseek archive switch` and returns its exit code."""
    return run(_switch(BotSettings.load(archive=archive), model_id))


async def _switch(settings: BotSettings, model_id: str) -> int:
    async with open_archive(None, settings, create=False) as archive:
        counts = (await archive.stats()).by_model
        _check_held(model_id, counts)
        await archive.choose_model(model_id)
    most = max(counts.values())
    say(f"Searches use {model_id} from now on: {counts[model_id]} pictures.")
    if counts[model_id] < most:
        say(
            f"{most - counts[model_id]} pictures have no vector of it and are not found: run "
            "`mapseek archive reembed` with its server."
        )
    return 0


def drop(model_id: str, *, archive: Path | None) -> int:
    """Runs `mapseek archive drop` and returns its exit code."""
    return run(_drop(BotSettings.load(archive=archive), model_id))


async def _drop(settings: BotSettings, model_id: str) -> int:
    async with open_archive(None, settings, create=False) as archive:
        _check_held(model_id, (await archive.stats()).by_model)
        if await archive.current_model() == model_id:
            raise StartupError(
                f"Searches use {model_id}: choose another model with `mapseek archive switch` "
                "before you drop it."
            )
        dropped = await archive.drop_model(model_id)
    say(f"Dropped {dropped} vectors of {model_id}.")
    return 0


def _check_held(model_id: str, counts: Mapping[str, int]) -> None:
    if model_id not in counts:
        held = ", ".join(counts) or "nothing"
        raise StartupError(f"The archive has no vectors of {model_id}, only of {held}.")
