"""What the README promises and a test can check without doing it."""

from pathlib import Path

from typer.testing import CliRunner

from bot.cli.main import app

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_the_readme_lists_the_settings_as_the_command_does() -> None:
    printed = CliRunner().invoke(app, ["settings"]).stdout
    assert printed.count("| `MAPSEEK_") > 40
    assert printed.strip() in README


def test_every_command_of_the_readme_exists() -> None:
    commands = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    }
    groups = {
        group.typer_instance.info.name for group in app.registered_groups if group.typer_instance
    }
    words = [line.split() for line in README.splitlines() if line.startswith("mapseek ")]
    assert len(words) > 8
    assert {word[1] for word in words if not word[1].startswith("-")} <= commands | groups
