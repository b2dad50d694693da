"""Secrets stay out of everything that a process says about itself."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pictures import plain
from benchmarks.server_process import run_server
from inference.client import ClientSettings, EmbeddingClient
from inference.errors import UnauthenticatedError
from inference.settings import BUNDLED_MODEL

TOKEN, LISTED = "a-token-that-nobody-may-read", "another-token-for-nobody-else"
WRONG = "a-token-that-somebody-guessed"


async def call(address: str, token: str) -> None:
    async with EmbeddingClient(ClientSettings.load(server=address, token=token)) as client:
        await client.wait_ready(30)
        await client.embed(plain((1, 2, 3)))


def test_no_token_is_in_logs_traces_or_settings(
    receiver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokens").write_text(LISTED)
    said = {
        "token": TOKEN,
        "token_file": str(tmp_path / "tokens"),
        "max_calls_per_client": "10",
        "log_level": "debug",
        "otlp_endpoint": receiver.endpoint,
    }
    with run_server(BUNDLED_MODEL, said) as server:
        for token in (TOKEN, LISTED):
            asyncio.run(call(server.address, token))
        with pytest.raises(UnauthenticatedError):
            asyncio.run(call(server.address, WRONG))
        server.process.terminate()
        server.process.wait(60)
        server.output.seek(0)
        log = server.output.read()
    assert "serving" in log
    assert receiver.received.spans
    told = log + repr(receiver.received)
    listed = subprocess.run(
        [sys.executable, "-m", "bot.cli.main", "settings"],
        env={**os.environ, "MAPSEEK_TOKEN": TOKEN, "MAPSEEK_DISCORD_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        check=True,
    )
    told += listed.stdout + listed.stderr
    for secret in (TOKEN, LISTED, WRONG):
        assert secret not in told
