"""The toy server of `tests.bot.cli` with telemetry, until standard input ends."""

import asyncio
import sys

from inference import telemetry
from inference.telemetry import TelemetrySettings
from tests.bot.cli.toy import toy_server


async def main() -> None:
    async with toy_server() as server:
        sys.stdout.write(f"{server.address}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with telemetry.set_up("mapseek-server", TelemetrySettings.load()):
        asyncio.run(main())
