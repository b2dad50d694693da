"""`mapseek archive`: looking after the archive itself."""

import typer

from bot import moving_cli

app = typer.Typer(
    name="archive",
    help="Set up, check and move the archive.",
    rich_markup_mode="rich",
    no_args_is_help=True,
)
moving_cli.add_to(app)
