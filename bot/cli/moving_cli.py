"""`mapseek archive copy|export|import|reembed|switch|drop`: what can be asked of them."""
# ruff: noqa: PLC0415 - imports wait for their command, so that --help is quick
# ruff: noqa: FBT002, PLR0917 - typer makes options of parameters

from pathlib import Path
from typing import Annotated

import typer

ArchiveOption = Annotated[
    Path | None,
    typer.Option(
        "--archive",
        metavar="FILE",
        help="The embedded archive; what the settings choose if unset. [dim]MAPSEEK_ARCHIVE[/]",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands to `mapseek archive`."""
    app.command("copy")(copy)
    app.command("export")(export)
    app.command("import")(import_)
    app.command("reembed")(reembed)
    app.command("switch")(switch)
    app.command("drop")(drop)


def copy(
    source: Annotated[
        str, typer.Option("--from", metavar="ARCHIVE", help="embedded, atlas, or a file.")
    ],
    target: Annotated[
        str, typer.Option("--to", metavar="ARCHIVE", help="embedded, atlas, or a file.")
    ],
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete from the target what the source has not.")
    ] = False,
    archive: ArchiveOption = None,
) -> None:
    """Copy an archive into another one, and verify it.

    [dim]mapseek archive copy --from embedded --to atlas[/]
    [dim]mapseek archive copy --from atlas --to backup.db[/]

    What is there already is not copied again, so that the same command goes on after a stop.

    At the end both are compared, entry by entry; it exits with 1 where they differ.
    """
    from bot.moving import commands

    raise typer.Exit(commands.copy(source=source, target=target, archive=archive, delete=delete))


def export(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="Where to: FILE.jsonl, FILE.jsonl.gz, or - for standard output.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Only the vectors of this model.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    archive: ArchiveOption = None,
) -> None:
    """Write the archive into a file, one entry a line, as JSON.

    [dim]mapseek archive export maps.jsonl.gz[/]
    [dim]mapseek archive export - | wc -l[/]

    docs/jsonl.md describes a line.
    """
    from bot.moving import commands

    raise typer.Exit(commands.export(file, archive=archive, model_id=model, force=force))


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="What `export` wrote, compressed if it ends with .gz; - for standard input.",
        ),
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Store again what the archive has already.")
    ] = False,
    archive: ArchiveOption = None,
) -> None:
    """Put the entries of a file of JSON lines into the archive.

    [dim]mapseek archive import maps.jsonl.gz[/]

    Lines that are no entry are listed with their numbers and skipped; it then exits with 1.

    What is there already is skipped, so that the same command goes on after a stop.
    """
    from bot.moving import commands

    raise typer.Exit(commands.import_(file, archive=archive, replace=replace))


def reembed(
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The server of the new model. [dim]MAPSEEK_NEXT_SERVER, else MAPSEEK_SERVER[/]",
        ),
    ] = None,
    media: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder with the pictures, such as an export's media; names do not matter.",
        ),
    ] = None,
    links: Annotated[
        bool, typer.Option("--links/--no-links", help="Whether to download from stored links.")
    ] = True,
    leave_behind: Annotated[
        bool,
        typer.Option(
            "--leave-behind", help="Switch even if some pictures could not be embedded again."
        ),
    ] = False,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Delete the vectors of other models at the end.")
    ] = False,
    archive: ArchiveOption = None,
) -> None:
    """Embed every picture again with another model, and switch searches over when done.

    [dim]mapseek serve --model models/b32 --listen 127.0.0.1:50052[/]
    [dim]mapseek archive reembed --server 127.0.0.1:50052 --media ~/exports[/]

    Searches go on on the old model and its server meanwhile.

    The pictures come from --media, from where they lie on disk, and from Discord: that needs the
    bot's token (MAPSEEK_DISCORD_TOKEN). What is not to be had is listed; then it exits with 1 and
    does not switch.

    Stopping keeps what was done; the same command goes on from there.
    """
    from bot.moving import models

    raise typer.Exit(
        models.reembed(
            archive=archive,
            server=server,
            media=media,
            links=links,
            leave_behind=leave_behind,
            drop_old=drop_old,
        )
    )


_ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", show_default=False, help="As `mapseek stats` names it.")
]


def switch(model: _ModelArgument, archive: ArchiveOption = None) -> None:
    """Choose the model whose vectors searches compare; a server must serve it.

    [dim]mapseek archive switch mapseek-small@0123456789ab[/]
    """
    from bot.moving import models

    raise typer.Exit(models.switch(model, archive=archive))


def drop(model: _ModelArgument, archive: ArchiveOption = None) -> None:
    """Delete a model's vectors, and pictures that have no vector of another.

    [dim]mapseek archive drop mapseek-small@0123456789ab[/]

    The model that searches use is not dropped.
    """
    from bot.moving import models

    raise typer.Exit(models.drop(model, archive=archive))
