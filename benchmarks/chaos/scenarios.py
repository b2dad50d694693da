"""The faults, and what may come of each."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.chaos.outcome import FULL, GONE, INTERNAL, OK, UNAVAILABLE
from benchmarks.chaos.run import Chaos
from inference.server import EXIT_ENGINE_FAILED, EXIT_ENGINE_HUNG

# Of the servers here, so that a run takes a minute: what counts as hung, and what is given up.
WATCHDOG_S = 1.0
GRACE_S = 2.0
_HANG_S = 3.0
_FOR_GOOD_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One fault.

    Attributes:
        name: What goes wrong.
        inflict: Does it.
        allowed: How images may be answered meanwhile.
        exit_status: What the process has to end with; None where it lives on.
        settings: Settings of its server.
    """

    name: str
    inflict: Callable[[Chaos], Awaitable[None]]
    allowed: frozenset[str]
    exit_status: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


async def _errors(chaos: Chaos) -> None:
    for _ in range(3):
        chaos.inflict("fail 2")
        await asyncio.sleep(chaos.options.seconds / 3)
    chaos.inflict("mend")
    await chaos.health_says(True)


async def _breaks(chaos: Chaos) -> None:
    chaos.inflict("break")
    await chaos.health_says(False)
    await chaos.last()
    chaos.inflict("mend")
    await chaos.health_says(True)
    before = {way: statuses[OK] for way, statuses in chaos.outcome.statuses.items()}
    await chaos.during(
        lambda: all(chaos.outcome.statuses[way][OK] > right for way, right in before.items())
    )


async def _hangs(chaos: Chaos) -> None:
    chaos.inflict(f"hang {_HANG_S}")
    await chaos.health_says(False, after_s=WATCHDOG_S)
    await chaos.health_says(True, after_s=_HANG_S - WATCHDOG_S)


async def _memory(chaos: Chaos) -> None:
    chaos.inflict("memory 1")
    await chaos.last()
    chaos.must_be_healthy()


async def _no_memory(chaos: Chaos) -> None:
    chaos.inflict("memory 0")
    await chaos.health_says(False)
    chaos.inflict("mend")
    await chaos.health_says(True)


async def _poison(chaos: Chaos) -> None:
    await chaos.poison()
    chaos.must_be_healthy()
    wrong = {code: count for code, count in chaos.outcome.poisoned.items() if code != INTERNAL}
    chaos.outcome.faults += [f"poisoned: {code} {count}" for code, count in wrong.items()]


async def _clients(chaos: Chaos) -> None:
    await chaos.annoy()
    chaos.must_be_healthy()


async def _clock(chaos: Chaos) -> None:
    for jump in (86_400.0, -86_400.0 * 365, 0.0):
        chaos.inflict(f"clock {jump}")
        await asyncio.sleep(chaos.options.seconds / 3)
    chaos.must_be_healthy()


async def _sigterm(chaos: Chaos) -> None:
    chaos.signal(signal.SIGTERM)
    await chaos.health_says(False)
    await chaos.ended()


async def _sigkill(chaos: Chaos) -> None:
    chaos.signal(signal.SIGKILL)
    await chaos.health_says(False)
    await chaos.ended()


async def _hangs_for_good(chaos: Chaos) -> None:
    chaos.inflict(f"hang {_FOR_GOOD_S}")
    await chaos.health_says(False, after_s=WATCHDOG_S)
    await chaos.ended()


async def _breaks_for_good(chaos: Chaos) -> None:
    chaos.inflict("break")
    await chaos.health_says(False)
    await chaos.ended()


async def _sigterm_while_it_hangs(chaos: Chaos) -> None:
    chaos.inflict(f"hang {_FOR_GOOD_S}")
    await chaos.health_says(False, after_s=WATCHDOG_S)
    chaos.signal(signal.SIGTERM)
    await chaos.ended()


_PATIENT = {"watchdog_grace_s": "0"}
SCENARIOS = (
    Scenario(name="engine errors", inflict=_errors, allowed=frozenset({OK, INTERNAL, UNAVAILABLE})),
    Scenario(
        name="engine breaks and recovers",
        inflict=_breaks,
        allowed=frozenset({OK, INTERNAL, UNAVAILABLE}),
        settings=_PATIENT,
    ),
    Scenario(
        name="engine hangs and returns",
        inflict=_hangs,
        allowed=frozenset({OK, UNAVAILABLE}),
        settings=_PATIENT,
    ),
    Scenario(name="memory for one picture at a time", inflict=_memory, allowed=frozenset({OK})),
    Scenario(
        name="no memory at all",
        inflict=_no_memory,
        # A stream of the Open Inference Protocol has no status, only "The model failed".
        allowed=frozenset({OK, FULL, UNAVAILABLE, INTERNAL}),
        settings=_PATIENT,
    ),
    Scenario(name="poisoned pictures", inflict=_poison, allowed=frozenset({OK})),
    Scenario(name="slow and vanishing clients", inflict=_clients, allowed=frozenset({OK, FULL})),
    Scenario(name="wall clock jumps", inflict=_clock, allowed=frozenset({OK})),
    Scenario(
        name="SIGTERM under load", inflict=_sigterm, allowed=frozenset({OK, *GONE}), exit_status=0
    ),
    Scenario(
        name="SIGKILL under load",
        inflict=_sigkill,
        allowed=frozenset({OK, *GONE}),
        exit_status=-signal.SIGKILL,
    ),
    Scenario(
        name="engine hangs for good",
        inflict=_hangs_for_good,
        allowed=frozenset({OK, *GONE}),
        exit_status=EXIT_ENGINE_HUNG,
    ),
    Scenario(
        name="engine breaks for good",
        inflict=_breaks_for_good,
        allowed=frozenset({OK, INTERNAL, *GONE}),
        exit_status=EXIT_ENGINE_FAILED,
    ),
    Scenario(
        name="SIGTERM while the engine hangs",
        inflict=_sigterm_while_it_hangs,
        allowed=frozenset({OK, *GONE}),
        exit_status=0,
        settings=_PATIENT,
    ),
)
