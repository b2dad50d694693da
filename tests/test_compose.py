"""What can be said of the containers without Docker: well formed, and their commands work."""

import re
import shutil
import subprocess
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
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].partition(":")[0] == "10001"
    stages = (ROOT / "Dockerfile").read_text().split("FROM ")
    (stage,) = [
        stage for stage in stages if stage.startswith(f"base AS {service['build']['target']}")
    ]
    assert "USER mapseek" in stage


def test_an_image_holds_what_it_runs_and_no_more() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "'.[cpu]'" in dockerfile  # the server knows nothing of Discord
    assert "'.[bot]'" in dockerfile  # and the bot nothing of models
    assert "HEALTHCHECK" in dockerfile.split("AS server")[-1]


def test_the_unit_is_one_that_systemd_knows_and_exposes_little() -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here")
    command = (analyze, "security", "--offline=true", "--threshold=20")
    done = subprocess.run(
        [*command, str(ROOT / "deploy" / "mapseek.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "Unknown key" not in done.stderr


def test_the_unit_lets_threads_choose_their_core_and_priority() -> None:
    unit = (ROOT / "deploy" / "mapseek.service").read_text()
    *_, last = re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE)
    # What `inference.threads` calls; a call that is forbidden fails there without a word.
    assert set(last.split()) == {"sched_setaffinity", "setpriority"}


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
    assert command == ["CMD", "mapseek", "health"]

    def checked(server: str) -> int:
        return CliRunner().invoke(app, ["health", "--server", server]).exit_code

    process = ToyProcess()
    try:
        assert checked(process.address) == 0
    finally:
        process.close()
    assert checked(process.address) == 1
