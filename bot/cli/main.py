"""The one `mapseek` command: what can be asked of it, and where each answer comes from.

Every command imports what it needs when it runs, so that `mapseek --help` is quick and a missing
extra stops only the command that needs it.
"""
# ruff: noqa: PLC0415 - imports wait for their command, see above
# ruff: noqa: FBT002, PLR0917 - typer makes options of parameters

import io
import sys
from datetime import UTC, datetime, time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeGuard

import typer
from typer.core import TyperGroup

from bot.cli.archive_cli import app as archive_app
from inference import tether

# Which extra of this project brings a module that not every installation has.
_EXTRAS = {
    "aiohttp": "bot",
    "disnake": "bot",
    "hpack": "bench",
    "matplotlib": "bench",
    "motor": "bot",
    "onnx": "exporter",
    "onnxruntime": "cpu",
    "onnxscript": "exporter",
    "optimum": "exporter",
    "psutil": "bench",
    "safetensors": "exporter",
    "torch": "exporter",
    "transformers": "exporter",
}

INTERRUPTED = 130

FIRST_STEPS = """\
[bold]mapseek[/] finds map art by picture.

  [cyan]mapseek demo[/]                see all of it at work on a small sample archive

  [cyan]mapseek serve[/]               start the embedding server (leave it running)
  [cyan]mapseek index PATH[/]          put a folder or a Discord export into the archive
  [cyan]mapseek find IMAGE[/]          find what looks like a picture
  [cyan]mapseek stats[/]               see what the archive holds

[cyan]mapseek --help[/] lists every command, [cyan]mapseek COMMAND --help[/] explains one."""


class _Sentences(TyperGroup):
    """Ends every failure that a user can mend with one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            _complain(
                f"{error.name} is not installed: run `pip install -e '.[{extra}]'` "
                "in mapseek's folder."
            )
            raise typer.Exit(1) from None
        except Exception as error:
            code = _exit_code(error)
            if code is None:
                raise
            _complain(_sentence(error))
            raise typer.Exit(code) from None


def _exit_code(error: Exception) -> int | None:
    """2 where a setting is wrong, 1 where the work failed; None for a fault in the program."""
    from bot.archive.port import ArchiveError
    from bot.importer.found import SourceError
    from inference.errors import EmbeddingError, StartupError

    if isinstance(error, StartupError):
        return 2
    known = isinstance(error, ArchiveError | EmbeddingError | SourceError)
    return 1 if known or _is_of_a_file(error) else None


def _is_of_a_file(error: Exception) -> TypeGuard[OSError]:
    """Whether the system refuses to touch a file or folder, for its name or its rights."""
    return isinstance(error, OSError) and error.filename is not None


def _sentence(error: Exception) -> str:
    return f"{error.filename}: {error.strerror}." if _is_of_a_file(error) else str(error)


def _complain(sentence: str) -> None:
    typer.secho("error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo(sentence, err=True)


app = typer.Typer(
    name="mapseek",
    cls=_Sentences,
    help="Find map art by picture: an embedding server, an archive and a Discord bot.",
    epilog="Settings come from options, then MAPSEEK_* variables, then .env.",
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_show_locals=False,  # a traceback must not show a token
)

_SERVING = "Serving"
_ARCHIVE = "Archive"
_MODELS = "Models"
_TRYING = "Trying and measuring"

_SHEET = Path("mapseek-find.png")
_DATES = ["%Y-%m-%d"]

ArchiveOption = Annotated[
    Path | None,
    typer.Option(
        "--archive",
        metavar="FILE",
        help="The archive; mapseek.db if unset. [dim]MAPSEEK_ARCHIVE[/]",
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        help="The server; 127.0.0.1:50051 if unset. [dim]MAPSEEK_SERVER[/]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


class Provider(StrEnum):
    """Where the model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


class Precision(StrEnum):
    """The arithmetic of an exported model."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Layout(StrEnum):
    """What is written for an exported model."""

    MAPSEEK = "mapseek"
    TRITON = "triton"


class Kind(StrEnum):
    """What a path holds."""

    AUTO = "auto"
    FOLDER = "folder"
    DISCORD = "discord"


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it so
    if asked:
        from importlib.metadata import version

        typer.echo(f"mapseek {version('mapseek')}")
        raise typer.Exit


def _no_address(path: Path | None) -> Path | None:
    # A path has lost one of the slashes.
    if path is not None and str(path).lower().startswith(("https:/", "http:/")):
        raise typer.BadParameter(
            "an address is not read from here: download what it leads to, and give that file"
        )
    return path


@app.callback(invoke_without_command=True)
def start(
    ctx: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Find map art by picture: an embedding server, an archive and a Discord bot."""
    if ctx.invoked_subcommand is None:
        from rich import print as show

        show(FIRST_STEPS)


@app.command(rich_help_panel=_SERVING)
def serve(
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Model folder to serve. [dim]MAPSEEK_MODEL[/]"),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where to listen. [dim]MAPSEEK_LISTEN[/]"),
    ] = None,
    provider: Annotated[
        Provider | None, typer.Option(help="Where the model runs. [dim]MAPSEEK_PROVIDER[/]")
    ] = None,
    engine_threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="CPU threads of the model. [dim]MAPSEEK_ENGINE_THREADS[/]"),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most images in one run. [dim]MAPSEEK_MAX_BATCH[/]"),
    ] = None,
) -> None:
    """Start the embedding server.

    [dim]mapseek serve --listen 127.0.0.1:50051[/]

    Without options it serves the bundled map-art model, on this machine only.

    Stop it with Ctrl-C: what is running is finished first.

    `mapseek settings` lists what can be set.
    """
    from inference.server import run
    from inference.settings import ServerSettings

    settings = ServerSettings.load(
        model=model,
        listen=listen,
        provider=provider,
        engine_threads=engine_threads,
        max_batch=max_batch,
    )
    raise typer.Exit(run(settings))


@app.command(rich_help_panel=_SERVING)
def health(
    server: ServerOption = None,
    within: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 3.0,
) -> None:
    """Ask a server whether it serves: exit status 0 if it does, 1 if not.

    [dim]mapseek health --server 127.0.0.1:50051[/]

    For health checks of containers; it speaks TLS where the settings say so, and needs no token.
    """
    import asyncio

    from inference.client import ClientSettings
    from inference.client.probe import is_serving

    settings = ClientSettings.load(server=server)
    serves = asyncio.run(is_serving(settings, timeout_s=within))
    typer.echo(f"{settings.server} {'serves' if serves else 'does not serve'}")
    raise typer.Exit(0 if serves else 1)


@app.command("bot", rich_help_panel=_SERVING)
def discord(archive: ArchiveOption = None) -> None:
    """Start the Discord bot; it needs a server (`mapseek serve`).

    [dim]MAPSEEK_DISCORD_TOKEN=... mapseek bot[/]
    """
    from bot.app import run_bot
    from bot.settings import BotSettings

    raise typer.Exit(run_bot(BotSettings.load(archive=archive)))


@app.command(rich_help_panel=_SERVING)
def settings() -> None:
    """List every setting with its default and meaning, as Markdown.

    [dim]mapseek settings | less[/]

    Write them as lines of .env, for example MAPSEEK_RESULTS=5, or set them in the environment.
    """
    from bot.settings import BotSettings
    from inference.client import ClientSettings
    from inference.environment import describe
    from inference.settings import ServerSettings
    from inference.telemetry import TelemetrySettings

    for title, group in (
        ("The server", ServerSettings),
        ("What calls the server: `index`, `find`, the bot, your programs", ClientSettings),
        ("The archive and the bot", BotSettings),
        ("Every process", TelemetrySettings),
    ):
        typer.echo(f"**{title}**\n\n| setting | default | meaning |\n|---|---|---|")
        for row in describe(group):
            default = f"`{row.default}`" if row.default else ""
            typer.echo(f"| `{row.variable}` | {default} | {row.description} |")
        typer.echo()


@app.command(rich_help_panel=_SERVING)
def up(archive: ArchiveOption = None) -> None:
    """Start server and bot together.

    [dim]MAPSEEK_DISCORD_TOKEN=... mapseek up[/]
    """
    from bot.settings import BotSettings
    from bot.up import run_up

    raise typer.Exit(run_up(BotSettings.load(archive=archive)))


@app.command(rich_help_panel=_ARCHIVE)
def index(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            callback=_no_address,
            show_default=False,
            help="A folder of pictures, a DiscordChatExporter file, or a folder with those at any "
            "depth.",
        ),
    ],
    kind: Annotated[
        Kind, typer.Option("--as", help="What PATH is; auto looks for itself.")
    ] = Kind.AUTO,
    media: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the export's media lie, if not beside it (its own --media-dir); no exports "
            "are looked for in there.",
        ),
    ] = None,
    guild: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="The Discord server of HTML exports, which rarely tell it."
        ),
    ] = None,
    archive: ArchiveOption = None,
    server: ServerOption = None,
) -> None:
    """Put pictures into the archive.

    [dim]mapseek index ~/maps[/]
    [dim]mapseek index "Guild - maps [123].json"[/]

    It needs a running server: `mapseek serve`.

    Export from Discord with DiscordChatExporter, as JSON (or HTML) and with --media.

    Pictures of your own beside exports are left out: index their folder by itself.

    Stopping (Ctrl-C) keeps what was done; the same command goes on from there.

    Files that cannot be used are listed at the end and stop nothing.
    """
    from bot.cli import commandline
    from bot.importer import source

    raise typer.Exit(
        commandline.index(
            path,
            kind=source.Kind(kind),
            media=media,
            guild=guild,
            archive=archive,
            server=server,
        )
    )


@app.command(rich_help_panel=_ARCHIVE)
def find(
    image: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGE",
            callback=_no_address,
            show_default=False,
            help="The picture to look for: a file.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help="Words to look for, where the model reads text."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many matches.")] = 5,
    guild: Annotated[
        str | None, typer.Option(metavar="ID", help="Only pictures of this guild.")
    ] = None,
    channel: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Only pictures of this channel; may be repeated."),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            metavar="DATE", formats=_DATES, help="Only pictures posted on this day (UTC) or later."
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            metavar="DATE", formats=_DATES, help="Only pictures posted on this day or earlier."
        ),
    ] = None,
    spoilers: Annotated[
        bool, typer.Option("--spoilers/--no-spoilers", help="Whether spoilers may be found.")
    ] = True,
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Where to draw query and matches side by side; {_SHEET} if unset, "
            "with --json only if set.",
        ),
    ] = None,
    as_json: JsonOption = False,
    archive: ArchiveOption = None,
    server: ServerOption = None,
) -> None:
    """Find what looks like a picture.

    [dim]mapseek find screenshot.png[/]
    [dim]mapseek find screenshot.png --limit 10 --channel 123456[/]
    [dim]mapseek find screenshot.png --since 2024-01-01 --until 2024-06-30[/]
    [dim]mapseek find --text "a red dragon"[/]

    Prints the matches, best first, and draws them beside the query into a PNG.

    It needs a running server (`mapseek serve`) and an archive (`mapseek index PATH`).
    """
    if (image is None) == (text is None):
        raise typer.BadParameter("give a picture or --text, and not both", param_hint="IMAGE")
    from bot.cli import commandline
    from bot.search import Scope

    raise typer.Exit(
        commandline.find(
            image if image is not None else text or "",
            scope=Scope(
                limit=limit,
                guild_id=guild,
                channel_ids=frozenset(channel) if channel else None,
                include_spoilers=spoilers,
                posted_from=since and since.replace(tzinfo=UTC),
                posted_before=until and datetime.combine(until, time.max, UTC),
            ),
            sheet=sheet or (None if as_json else _SHEET),
            as_json=as_json,
            archive=archive,
            server=server,
        )
    )


@app.command(rich_help_panel=_ARCHIVE)
def stats(archive: ArchiveOption = None, as_json: JsonOption = False) -> None:
    """Count what the archive holds.

    [dim]mapseek stats[/]
    """
    from bot.cli import commandline

    raise typer.Exit(commandline.stats(archive=archive, as_json=as_json))


app.add_typer(archive_app, rich_help_panel=_ARCHIVE)


@app.command(rich_help_panel=_MODELS)
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A CLIP model: a Hugging Face id or a folder; with --layout triton also a folder "
            "that was exported before.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the model folder.")],
    precision: Annotated[
        Precision | None,
        typer.Option(help="Arithmetic: fp32 (the default), fp16 for GPUs, int8 for CPUs."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit of the hub's model.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call it; by default the id or the folder's name.")
    ] = None,
    layout: Annotated[
        Layout, typer.Option(help="A model folder for mapseek, or a model repository for Triton.")
    ] = Layout.MAPSEEK,
    max_batch: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Triton: most pictures in one run (64)."),
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Triton: copies of the model for each device; else its default.",
        ),
    ] = None,
) -> None:
    """Export a CLIP model for serving, and verify it against the original.

    [dim]mapseek export openai/clip-vit-base-patch32 --out models/b32[/]
    [dim]mapseek serve --model models/b32[/]

    [dim]mapseek export models/b32 --layout triton --out repository[/]
    [dim]tritonserver --model-repository=repository[/]
    """
    from exporter.commands import export_for

    exported = export_for(
        model,
        out,
        precision=precision and precision.value,
        revision=revision,
        name=name,
        triton=layout is Layout.TRITON,
        max_batch=max_batch,
        instances=instances,
        report=lambda line: typer.echo(line, err=True),
    )
    serve = (
        "tritonserver --model-repository=" if layout is Layout.TRITON else "mapseek serve --model "
    )
    typer.echo(
        f"{out}: {exported.artifact.manifest.model_id}, {exported.size_bytes / 1e6:,.1f} MB, "
        f"in {exported.elapsed_s:.0f} s. Serve it with `{serve}{out}`."
    )


@app.command(rich_help_panel=_TRYING)
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to leave the pictures and the archive.")
    ] = Path("demo-out"),
    number: Annotated[
        int, typer.Option("--map", metavar="N", min=0, help="Which map of the sample to look for.")
    ] = 4,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Which bad picture of it to draw.")
    ] = 4,
) -> None:
    """See it all at work: index a sample archive, and find a map in it from a bad picture.

    [dim]mapseek demo[/]
    [dim]mapseek demo --map 7 --seed 3[/]

    It starts its own server, shows every command that it runs, and takes some seconds.
    """
    from benchmarks.demo import run_demo

    raise typer.Exit(run_demo(out, number=number, seed=seed))


@app.command(
    rich_help_panel=_TRYING,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(ctx: typer.Context) -> None:
    """Measure the server and the model on this machine.

    [dim]mapseek bench --help[/]
    """
    from benchmarks.cli import app as benchmarks

    code = benchmarks(args=ctx.args, prog_name="mapseek bench", standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)


def main() -> None:
    """The console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An author's name that the terminal has no letters for must not end a search.
        sys.stdout.reconfigure(errors="replace")
    tether.hold()
    sys.exit(app())


if __name__ == "__main__":
    main()
