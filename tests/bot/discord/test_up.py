"""`mapseek up` with real processes: a server of the real protocol, and a program for a bot."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bot.settings import BotSettings
from bot.up import run_up
from inference.errors import StartupError
from tests.bot.discord.conftest import PATIENCE_S, until

ROOT = Path(__file__).resolve().parents[3]
UP = """\
import json, sys, bot.up
from bot.settings import BotSettings
bot.up._MOST_CRASHES = int(sys.argv[3])
bot.up._GRACE_S = float(sys.argv[4])
serve, bot_ = json.loads(sys.argv[1]), json.loads(sys.argv[2])
sys.exit(bot.up.run_up(BotSettings.load(), serve=serve, bot=bot_))
"""
# A process that writes its name down when it starts and when it is asked to end.
DIARY = """\
import os, pathlib, signal, sys
from inference import tether
name, diary = sys.argv[1:3]
def note(what):
    with pathlib.Path(diary).open("a") as file:
        file.write(f"{name} {what} {os.getpid()}\\n")
def end(*_):
    note("ends")
    sys.exit(0)
"""
BOT = DIARY + (
    'signal.signal(signal.SIGTERM, end)\ntether.hold()\nnote("starts")\nsignal.pause()\n'
)
STUBBORN = DIARY + 'signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote("starts")\nsignal.pause()\n'
SERVER = (
    DIARY
    + """\
import asyncio
from tests.bot.discord.toy import main
tether.hold()
note("starts")
asyncio.run(main(int(sys.argv[3])))
note("ends")
"""
)


@dataclass
class Up:
    """One `mapseek up`, as a process."""

    process: asyncio.subprocess.Process
    diary: Path

    def entries(self) -> list[tuple[str, int]]:
        """What the processes noted, as ("server starts", its pid)."""
        lines = self.diary.read_text().splitlines() if self.diary.exists() else []
        return [(what, int(pid)) for what, pid in (line.rsplit(" ", 1) for line in lines)]

    async def noted(self, *expected: str) -> list[int]:
        """Waits until the diary reads so, and returns the process ids of its lines."""

        async def reads() -> bool:
            return [what for what, _ in self.entries()] == list(expected)

        await until(reads)
        return [pid for _, pid in self.entries()]

    async def ends(self) -> tuple[int, str]:
        async with asyncio.timeout(PATIENCE_S):
            _, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


@asynccontextmanager
async def up(
    folder: Path,
    *,
    bot: str = BOT,
    server: str = SERVER,
    most_crashes: int = 5,
    grace_s: float = 30.0,
    **environment: str,
) -> AsyncIterator[Up]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    diary = folder / "diary"
    command = {
        name: [sys.executable, "-c", program, name, str(diary), port]
        for name, program in (("server", server), ("bot", bot))
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", UP, json.dumps(command["server"]), json.dumps(command["bot"])),
        *(str(most_crashes), str(grace_s)),
        env={
            **os.environ,
            **environment,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}",
            "MAPSEEK_DISCORD_TOKEN": "a.token.for-nobody",
            "MAPSEEK_SERVER": f"127.0.0.1:{port}",
        },
        stderr=asyncio.subprocess.PIPE,
    )
    running = Up(process, diary)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for _, pid in running.entries():
            if not _alive(pid):
                continue
            os.kill(pid, signal.SIGKILL)
            pytest.fail(f"process {pid} was left behind")


async def test_the_bot_starts_when_the_server_serves_and_ends_before_it(tmp_path: Path) -> None:
    async with up(tmp_path) as running:
        await running.noted("server starts", "bot starts")
        running.process.send_signal(signal.SIGTERM)
        status, errors = await running.ends()
        assert status == 0
        assert "Server and bot are running" in errors
        await running.noted("server starts", "bot starts", "bot ends", "server ends")


async def test_without_a_token_nothing_is_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    touch = [sys.executable, "-c", f"open({str(started)!r}, 'w')"]
    with pytest.raises(StartupError, match="There is no Discord token"):
        await asyncio.to_thread(run_up, BotSettings(), serve=touch, bot=touch)
    assert not started.exists()


async def test_a_wrong_setting_of_the_server_starts_nothing(tmp_path: Path) -> None:
    async with up(tmp_path, MAPSEEK_DRAIN_S="long") as running:
        status, errors = await running.ends()
        assert status == 1
        assert "StartupError: MAPSEEK_DRAIN_S: " in errors
        assert running.entries() == []


@pytest.mark.parametrize(("end", "expected"), [(2, 2), (78, 78), (1, 1), (70, 1)])
async def test_a_server_that_cannot_start_ends_it_without_a_bot(
    tmp_path: Path, end: int, expected: int
) -> None:
    async with up(tmp_path, server=DIARY + f'note("starts")\nsys.exit({end})\n') as running:
        status, errors = await running.ends()
        assert status == expected
        assert f"The server ended with exit status {end}." in errors
        await running.noted("server starts")


@pytest.mark.parametrize(("end", "expected"), [(7, 1), (2, 2)])
async def test_a_bot_that_dies_ends_the_server(tmp_path: Path, end: int, expected: int) -> None:
    async with up(tmp_path, bot=DIARY + f'note("starts")\nsys.exit({end})\n') as running:
        status, errors = await running.ends()
        assert status == expected
        assert f"The bot ended with exit status {end}." in errors
        await running.noted("server starts", "bot starts", "server ends")


async def test_a_server_that_crashes_is_started_again_beside_the_bot(tmp_path: Path) -> None:
    async with up(tmp_path) as running:
        server, _bot = await running.noted("server starts", "bot starts")
        os.kill(server, signal.SIGKILL)
        await running.noted("server starts", "bot starts", "server starts")
        running.process.send_signal(signal.SIGINT)
        status, errors = await running.ends()
        assert status == 0
        assert "The server ended with exit status -9; it is started again in 1 s." in errors


async def test_a_server_that_crashes_too_often_ends_it(tmp_path: Path) -> None:
    async with up(tmp_path, most_crashes=0) as running:
        server, _bot = await running.noted("server starts", "bot starts")
        os.kill(server, signal.SIGKILL)
        status, errors = await running.ends()
        assert status == 1
        assert "The server ended 1 times in a row" in errors
        await running.noted("server starts", "bot starts", "bot ends")


async def test_a_second_signal_kills_what_does_not_end(tmp_path: Path) -> None:
    async with up(tmp_path, bot=STUBBORN) as running:
        await running.noted("server starts", "bot starts")
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGINT)
        status, _ = await running.ends()
        assert status == 0


async def test_the_server_may_take_as_long_as_its_drain(tmp_path: Path) -> None:
    slow = SERVER.removesuffix('note("ends")\n') + 'import time\ntime.sleep(1)\nnote("ends")\n'
    async with up(tmp_path, server=slow, grace_s=0.2, MAPSEEK_DRAIN_S="40") as running:
        await running.noted("server starts", "bot starts")
        running.process.send_signal(signal.SIGTERM)
        status, errors = await running.ends()
        assert status == 0
        assert "server ends" in [what for what, _ in running.entries()], errors


async def test_when_it_is_killed_both_end_by_themselves(tmp_path: Path) -> None:
    async with up(tmp_path) as running:
        pids = await running.noted("server starts", "bot starts")
        running.process.kill()
        await running.process.wait()

        # Their parent is gone, so that nobody but the system can wait for them.
        async def ended() -> bool:
            return not any(_alive(pid) for pid in pids)

        await until(ended)
        assert {what for what, _ in running.entries()} >= {"bot ends", "server ends"}


@pytest.mark.parametrize("end", [2, 78])
async def test_a_server_that_can_never_start_again_ends_it(tmp_path: Path, end: int) -> None:
    once = SERVER.replace(
        'note("starts")', f'if pathlib.Path(diary).exists(): sys.exit({end})\nnote("starts")'
    )
    async with up(tmp_path, server=once) as running:
        server, _bot = await running.noted("server starts", "bot starts")
        os.kill(server, signal.SIGKILL)
        status, errors = await running.ends()
        assert status == end
        assert "The server cannot start with these settings" in errors


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"  # a container's first process may not collect its orphans
