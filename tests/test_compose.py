"""What can be said of the containers without Docker: well formed, and their commands work."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from bot.cli.main import app
from bot.settings import BotSettings
from inference.client import ClientSettings
from inference.settings import ServerSettings
from tests.bot.cli.toy import ToyProcess

ROOT = Path(__file__).resolve().parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
OURS = ("server", "bot")


@pytest.mark.parametrize("name", OURS)
def test_our_containers_have_no_rights_that_they_do_not_need(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert "privileged" not in service
    assert "ports" not in service
    assert "USER mapseek" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("name", OURS)
def test_every_setting_and_command_of_the_containers_exists(name: str) -> None:
    service = COMPOSE["services"][name]
    known = {
        f"MAPSEEK_{field.upper()}"
        for settings in (BotSettings, ServerSettings, ClientSettings)
        for field in settings.model_fields
    }
    assert {key for key in service["environment"] if key.startswith("MAPSEEK_")} <= known
    assert CliRunner().invoke(app, [*service["command"], "--help"]).exit_code == 0


def test_nothing_secret_is_written_down() -> None:
    text = (ROOT / "compose.yaml").read_text()
    for line in text.splitlines():
        if re.search(r"(PASSWORD|TOKEN|URI): ", line):
            assert "${" in line


def test_the_healthcheck_of_the_server_tells_whether_it_serves() -> None:
    command = COMPOSE["services"]["server"]["healthcheck"]["test"]
    assert command[:2] == ["CMD", "python"]

    def checked(server: str) -> int:
        environment = {
            "MAPSEEK_SERVER": server,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}",
        }
        return subprocess.run(
            [sys.executable, *command[2:]],
            env=os.environ | environment,
            check=False,
            capture_output=True,
        ).returncode

    process = ToyProcess()
    try:
        assert checked(process.address) == 0
    finally:
        process.close()
    assert checked(process.address) != 0
