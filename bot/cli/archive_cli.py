"""`mapseek archive`: setting up, checking and moving the archive.

Every command imports what it needs when it runs; see `bot.cli.main`.
"""
# ruff: noqa: PLC0415 - imports wait for their command
# ruff: noqa: FBT002 - typer makes options of parameters

from typing import Annotated

import typer

from bot.cli import moving_cli

app = typer.Typer(
    name="archive",
    help="Set up, check and move the archive.",
    rich_markup_mode="rich",
    no_args_is_help=True,
)

_WaitOption = Annotated[
    float,
    typer.Option("--wait", metavar="S", min=0, help="How long to wait for an index, in seconds."),
]


@app.command()
def init(
    dimensions: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            max=8192,
            help="Length of the vectors; may be repeated. Unset: those of what is stored, and of "
            "the model that the server serves, else 512.",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--print", help="Only print what to type into Atlas's page.")
    ] = False,
    wait: _WaitOption = 600.0,
) -> None:
    """Make the collection and its indexes in Atlas, and wait until they answer.

    [dim]mapseek archive init[/]
    [dim]mapseek archive init --dimensions 768[/]

    It may be run at any time: what is there already stays, what is old is brought up to date.
    """
    from bot.cli.archive_commands import init as run

    raise typer.Exit(run(tuple(dimensions or ()), only_print=show, wait_s=wait))


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Show what the archive in Atlas holds and whether it can be searched.

    [dim]mapseek archive status[/]

    Atlas says nothing about indexes that are missing, misspelt or for vectors of another length:
    searches just find nothing. This tells, and says what to do. It ends with 1 if it must be done.
    """
    from bot.cli.archive_commands import status as run

    raise typer.Exit(run(as_json=as_json))


@app.command()
def migrate(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="The model that made vectors of documents that do not say it."
        ),
    ] = None,
    wait: _WaitOption = 3600.0,
) -> None:
    """Move a collection of the first bot to today's documents and index.

    [dim]mapseek archive migrate --model clip-vit-b-32@0123456789ab[/]

    The archive serves all the while: the old index goes last. Stopping it loses nothing; the same
    command goes on from there.
    """
    from bot.cli.archive_commands import migrate as run

    raise typer.Exit(run(model, wait_s=wait))


@app.command()
def verify(
    samples: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many pictures must find themselves.")
    ] = 25,
) -> None:
    """Read everything that is stored, and look for some of it.

    [dim]mapseek archive verify[/]

    Every entry must be readable and there once, and a picture's own vector must find it. It works
    for both kinds of archive, and ends with 1 if something is wrong.
    """
    from bot.cli import commandline

    raise typer.Exit(commandline.verify(samples=samples))


moving_cli.add_to(app)
