"""`mapseek bench bot`: a long backfill with searches and new posts beside it.

The real bot, server and model, as processes; Discord is the tests' loopback one, on this machine
too, as are those who search. So the figures are of everything together on these cores, and say
which share of them each part took.
"""

import asyncio
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.bot_load import SHARES, Measured, Sample, measure
from benchmarks.latency import Latency
from benchmarks.machine import this_machine
from benchmarks.memory import MB
from benchmarks.report import Cell, Progress, Report, Table, Target

_LONGEST_LIVE_S = 10.0
_LONGEST_SEARCH_MS = 2000.0
_LEAST_IN_FULL = 0.99
# In the second half of the run. What is kept has bounds, but some of it may still be filling.
_MOST_GROWTH = 6 * MB
_LEAST_HALF_S = 60.0
# The run in so many parts, for the memory over time.
_PARTS = 10
# Of what the backfill does alone, what it must still do beside searches.
_LEAST_SHARE = 0.1
# A guild that asks for little is answered this often at least.
_LEAST_ANSWERED = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class BotBenchOptions:
    """How much is to happen.

    Attributes:
        model: The model folder that is served.
        posts: How many old posts, one picture each, are backfilled.
        rate: Searches a second, arriving independently.
        seconds: For how long there are searches, also when the backfill is done.
        seed: Which picture is searched for when.
    """

    model: Path
    posts: int
    rate: float
    seconds: float
    seed: int


def bench_bot(options: BotBenchOptions, progress: Progress) -> tuple[Report, Measured]:
    """Lets it run until the backfill and the searches are done."""
    given = {name: value for name, value in asdict(options).items() if name != "model"}
    seen = asyncio.run(measure(options.model, progress=progress, **given))
    answered = Latency.of(seen.took("answered"))
    busy = Latency.of(seen.took("busy"))
    lives = Latency.of([took for _, took in seen.lives])
    growth = {name: _growth(seen.processes.get(name, [])) for name in ("bot", "server")}
    alone, beside = _speeds(seen)
    report = Report(
        command="mapseek bench bot",
        machine=this_machine(),
        model_id=options.model.name,
        settings=asdict(options),
        tables=[
            _of_searches(options, seen),
            _of_guilds(seen),
            _of_processes(seen),
            _of_memory(seen),
        ],
        targets=[
            Target(
                name="every search is answered, or told to try again",
                met=not seen.took("failed"),
                found=f"{len(seen.took('failed'))} were not",
            ),
            Target.at_least(
                "answered, of all that was asked",
                answered.count / max(1, len(seen.searches)),
                _LEAST_IN_FULL,
            ),
            Target.at_most("p99 of an answer, ms", answered.p99_ms, _LONGEST_SEARCH_MS),
            Target.at_most("p99 of being told, ms", busy.p99_ms, _LONGEST_SEARCH_MS),
            Target.at_least(
                "answered of a guild that asks little", _least_answered(seen), _LEAST_ANSWERED
            ),
            Target.at_least("backfill beside searches, of alone", beside / alone, _LEAST_SHARE),
            Target.at_most("p99 of a new post, s", lives.p99_ms / 1000, _LONGEST_LIVE_S),
            *(
                Target.at_most(
                    f"growth of the {name}'s own memory in the second half, MB",
                    one / MB,
                    _MOST_GROWTH / MB,
                )
                for name, one in growth.items()
            ),
        ],
        data={"answered": answered, "busy": busy, "lives": lives, "measured": seen},
    )
    return report, seen


def _of_searches(options: BotBenchOptions, seen: Measured) -> Table:
    phases = {"beside the backfill": (seen.searched_from_s, seen.beside_until_s)}
    if seen.beside_until_s < seen.searched_until_s:
        phases["afterwards"] = (seen.beside_until_s, seen.searched_until_s)
    rows: list[tuple[Cell, ...]] = []
    for phase, (start_s, end_s) in phases.items():
        asked = [one for one in seen.searches if start_s <= one.moment_s < end_s]
        for outcome, words in (("answered", "answered"), ("busy", "told at once to try again")):
            one = Latency.of([one.took_s for one in asked if one.outcome == outcome])
            rate = one.count / max(end_s - start_s, 1e-9)
            rows.append((f"{words}, {phase}", one.count, rate, *_milliseconds(one)))
    for kind, words in (("post", "old posts"), ("screenshot", "new screenshots")):
        one = Latency.of(seen.took("answered", kind=kind))
        rows.append((f"answered, {words}", one.count, None, *_milliseconds(one)))
    lives = Latency.of([took for _, took in seen.lives])
    rows.append(("new posts indexed", lives.count, None, *_milliseconds(lives)))
    return Table(
        title=f"{options.rate:g} searches/s while {options.posts:,} old posts are indexed",
        columns=("", "count", "per s", "p50 ms", "p95 ms", "p99 ms", "max ms"),
        rows=rows,
        notes=[
            _backfill(seen),
            f"Event loop of the bot: {_lag(seen)}.",
            _questions(seen),
        ],
    )


def _backfill(seen: Measured) -> str:
    alone, beside = _speeds(seen)
    return (
        f"Backfill: {alone:.1f} posts/s alone, {beside:.1f} beside the searches; "
        f"done after {seen.done_s:.0f} s."
    )


def _questions(seen: Measured) -> str:
    rate = seen.messages_asked / max(seen.searched_until_s - seen.searched_from_s, 1e-9)
    return (
        f"Discord was asked for {rate:.0f} messages/s, to see whether what was found is still "
        "there; the real one allows a bot 50 requests/s, answers to members not counted."
    )


def _milliseconds(one: Latency) -> tuple[Cell, ...]:
    return (one.p50_ms, one.p95_ms, one.p99_ms, one.max_ms)


def _of_guilds(seen: Measured) -> Table:
    rows = []
    for guild, share in SHARES.items():
        asked = [one for one in seen.searches if one.guild == guild]
        latency = Latency.of(seen.took("answered", guild))
        answered = latency.count / len(asked) if asked else None
        rows.append((f"{guild} ({share:.0%})", len(asked), answered, latency.p99_ms))
    columns = ("guild (share of the searches)", "asked", "answered", "p99 ms")
    return Table(title="Fair between guilds", columns=columns, rows=rows)


def _least_answered(seen: Measured) -> float:
    shares = [
        len(seen.took("answered", guild)) / asked
        for guild, share in SHARES.items()
        if share < max(SHARES.values())
        and (asked := sum(one.guild == guild for one in seen.searches))
    ]
    return min(shares, default=float("nan"))


def _of_processes(seen: Measured) -> Table:
    names = {"bot": "bot", "server": "server", "bench": "loopback Discord and members"}
    rows = []
    for key, name in names.items():
        some = _while_searching(seen, seen.processes.get(key, []))
        if not some:
            continue
        took_s = some[-1].moment_s - some[0].moment_s
        share = (some[-1].cpu_s - some[0].cpu_s) / max(took_s, 1e-9)
        rows.append((name, share))
    return Table(
        title=f"On {os.cpu_count()} cores, while there are searches",
        columns=("", "cores used"),
        rows=rows,
    )


def _of_memory(seen: Measured) -> Table:
    """What the bot and the server held at the end of each part of the run."""
    bot, server = seen.processes.get("bot", []), seen.processes.get("server", [])
    rows: list[tuple[Cell, ...]] = []
    end_s = bot[-1].moment_s if bot else 0.0
    for part in range(_PARTS + 1):
        moment_s = end_s * part / _PARTS
        cells: list[Cell] = [f"{moment_s:.0f} s", _indexed_by(seen, moment_s)]
        for samples in (bot, server):
            one = min(samples, key=lambda one: abs(one.moment_s - moment_s), default=None)
            cells += [one.own / MB if one else None, one.rss / MB if one else None]
        rows.append(tuple(cells))
    return Table(
        title="Memory over the run, in MB",
        columns=("", "indexed", "bot's own", "resident", "server's own", "resident"),
        rows=rows,
        notes=[
            "Own: without mapped files. The bot maps the archive, once for each connection.",
            f"Slope of the bot's own in the second half: {_text_of(_slope(bot))} MB a minute.",
        ],
    )


def _indexed_by(seen: Measured, moment_s: float) -> int:
    return max((count for when, count in seen.indexed if when <= moment_s), default=0)


def _text_of(slope: float | None) -> str:
    return "-" if slope is None else f"{slope:+.2f}"


def _while_searching(seen: Measured, samples: list[Sample]) -> list[Sample]:
    return [one for one in samples if seen.searched_from_s <= one.moment_s <= seen.searched_until_s]


def _slope(samples: list[Sample]) -> float | None:
    half = samples[len(samples) // 2 :]
    if len(half) < 3:  # noqa: PLR2004 (a line goes through any two)
        return None
    slope, _ = np.polyfit([one.moment_s for one in half], [one.own / MB for one in half], 1)
    return float(slope) * 60


def _growth(samples: list[Sample]) -> float:
    """By how many bytes the line through the second half rises; NaN where that is too short."""
    half = samples[len(samples) // 2 :]
    slope = _slope(samples)
    if slope is None or half[-1].moment_s - half[0].moment_s < _LEAST_HALF_S:
        return float("nan")
    return slope * MB * (half[-1].moment_s - half[0].moment_s) / 60


def _speeds(seen: Measured) -> tuple[float, float]:
    """Old posts indexed a second: alone before the searches, and beside them."""
    before = [one for one in seen.indexed if one[0] <= seen.searched_from_s]
    beside = [one for one in seen.indexed if seen.searched_from_s <= one[0] <= seen.beside_until_s]
    return _speed([(0.0, 0), *before]), _speed(beside)


def _speed(counts: list[tuple[float, int]]) -> float:
    if len(counts) < 2 or counts[-1][0] == counts[0][0]:  # noqa: PLR2004 (a way has two ends)
        return float("nan")
    return (counts[-1][1] - counts[0][1]) / (counts[-1][0] - counts[0][0])


def _lag(seen: Measured) -> str:
    lag = Latency.of(seen.lags_s)
    return f"a sleeper was woken {lag.p50_ms:.0f} ms late (p50), p99 {lag.p99_ms:.0f} ms"
